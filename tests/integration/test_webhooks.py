"""From the stream to a merchant's server, all of it real: NATS, the database, Redis, gRPC, HTTP."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
import pytest
from aiohttp import web
from cellpay.notifications.v1 import notifications_pb2 as pb
from cellpay.notifications.v1 import notifications_pb2_grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.bulk import Bulk
from cells.database import make_engine
from cells.keys.own import new_private
from cells.ledger.worker import Lanes
from cells.notifications.consumer import DURABLE, Consumer
from cells.notifications.cooldown import CoolDowns
from cells.notifications.secrets import Secrets
from cells.notifications.service import NotificationsService
from cells.notifications.worker import Webhooks
from cells.outbox.stream import STREAM, connect_stream
from cells.outbox.worker import OutboxRelay
from cells.reading import ReadEngine
from cells.settings import DatabaseSettings, LaneSettings, OutboxSettings, WebhookSettings
from cells.vault import keystore
from control.mesh import ca
from control.mesh.state import MeshState
from router.access import METHODS
from router.client import CallPolicy, Mesh, TlsFiles, connect_direct
from router.errors import details_of
from router.guard import GuardedServer, SlotsHere
from router.identity import spiffe_id
from router.ids import Kind
from router.minting import mint_now
from router.signing.keys import Signer, is_signed
from router.signing.model import Algorithm
from router.slotmap import SlotMap
from router.slots import slot_of_user
from router.tally import Tally
from tests.integration import behind
from tests.integration.behind import CELL, eventually, give_away, going_on, tell

pytestmark = pytest.mark.mesh
SECRET = bytes(range(32))
SIGNER = Signer("cellpay-test-1", Algorithm.ED25519, new_private(Algorithm.ED25519))
# Short, so that a test needs no patience; nothing measures them.
QUICK = WebhookSettings(
    timeout_s=5.0,
    attempts_max=3,
    backoff_base_s=0.01,
    backoff_cap_s=0.02,
    poll_interval_s=0.02,
)
STATE = pb.Delivery.State


class Received(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Receiver:
    """A merchant's server, which answers as it is told: by path, 200 otherwise."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    answers: dict[str, Callable[[], Awaitable[web.StreamResponse]]] = field(default_factory=dict)

    def paths(self) -> list[str]:
        return [item.path for item in self.received]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(request.path, headers, body))
        answer = self.answers.get(request.path)
        return await answer() if answer else web.Response()


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    application = web.Application()
    application.router.add_route("*", "/{tail:.*}", receiver.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address: Any = runner.addresses[0]
    receiver.url = f"http://127.0.0.1:{address[1]}"
    try:
        yield receiver
    finally:
        await runner.cleanup()


def _always(status: int, **named: Any) -> Callable[[], Awaitable[web.StreamResponse]]:
    async def answer() -> web.StreamResponse:
        return web.Response(status=status, **named)

    return answer


@dataclass(slots=True)
class Cell:
    """A cell with nothing but notifications, called by another cell and by a merchant's service."""

    state: MeshState
    engine: AsyncEngine
    lanes: Lanes
    # The callers.
    cell: Mesh
    merchant: Mesh
    receiver: Receiver
    secrets: Secrets

    def webhooks(self, settings: WebhookSettings = QUICK, **changes: Any) -> Webhooks:
        named: dict[str, Any] = {"redis_url": self.state.redis_url(CELL), "allow_private": True}
        named |= {"secrets": self.secrets, "signer": lambda: SIGNER}
        named |= changes
        return Webhooks(self.lanes, ReadEngine(self.engine), CELL, settings=settings, **named)

    async def endpoint(self, merchant_id: str, path: str) -> None:
        await self.merchant.notifications.SetEndpoint(
            pb.SetEndpointRequest(
                merchant_id=merchant_id, url=self.receiver.url + path, secret=SECRET
            )
        )

    async def enqueue(self, merchant_id: str) -> pb.Delivery:
        return await self.cell.notifications.EnqueueDelivery(
            pb.EnqueueDeliveryRequest(
                merchant_id=merchant_id,
                event_id=mint_now(Kind.EVENT, 3),
                event_type="test.happened",
                body='{"n":1}',
            )
        )

    async def deliveries(self, merchant_id: str, state: int = 0) -> list[pb.Delivery]:
        request = pb.ListDeliveriesRequest(merchant_id=merchant_id, state=state)  # type: ignore[arg-type]
        return list((await self.merchant.notifications.ListDeliveries(request)).deliveries)

    async def until(self, merchant_id: str, state: int, count: int = 1) -> list[pb.Delivery]:
        """The merchant's deliveries in this state, once there are as many."""

        async def there() -> list[pb.Delivery]:
            found = await self.deliveries(merchant_id, state)
            return found if len(found) == count else []

        found: list[pb.Delivery] = await eventually(there)
        return found


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshState]:
    with behind.servers(tmp_path_factory.mktemp("webhooks") / "mesh") as state:
        yield state


def _tls(state: MeshState, kind: str) -> TlsFiles:
    return ca.issue(state.path / "tls", f"test-{kind}", spiffe_id(kind, "test"))


@asynccontextmanager
async def _serving(
    state: MeshState, lanes: Lanes, engine: AsyncEngine, secrets: Secrets
) -> AsyncIterator[str]:
    here = SlotsHere(CELL)
    here.publish(SlotMap.even([CELL]))
    server = grpc.aio.server()
    guarded: Any = GuardedServer(server, here, METHODS)
    notifications_pb2_grpc.add_NotificationsServiceServicer_to_server(
        NotificationsService(
            lanes, ReadEngine(engine), Bulk(lanes, here, Tally()),
            secrets=secrets, allow_private=True,
        ),
        guarded,
    )  # fmt: skip
    port = server.add_secure_port("127.0.0.1:0", _tls(state, "cell").server_credentials())
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest.fixture
async def cell(state: MeshState) -> AsyncIterator[Cell]:
    policy = CallPolicy(retries=False, timeout_s=30, attempt_timeout_s=30)
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(behind.database(state))
        url = engine.url.render_as_string(hide_password=False)
        lane_engine = make_engine(url, "lanes", DatabaseSettings(), pool_size=1, lanes=True)
        stack.push_async_callback(lane_engine.dispose)
        lanes = Lanes(lane_engine, CELL, LaneSettings(count=1))
        await stack.enter_async_context(going_on(*lanes.runners()))
        master = state.path / "keystore" / "master.json"
        keystore.create(master)
        secrets = Secrets(keystore.open_kms(str(master)))
        address = await stack.enter_async_context(_serving(state, lanes, engine, secrets))
        callers = [
            await stack.enter_async_context(
                connect_direct(address, _tls(state, kind), policy=policy)
            )
            for kind in ("cell", "service")
        ]
        receiver = await stack.enter_async_context(receiving())
        yield Cell(state, engine, lanes, callers[0], callers[1], receiver, secrets)


_names = itertools.count(1)


@pytest.fixture
def shop() -> str:
    """Redis is not emptied between tests: each has a merchant of its own."""
    return f"shop-{next(_names)}"


async def test_an_event_travels_from_the_outbox_to_the_merchant_signed(
    cell: Cell, shop: str
) -> None:
    await cell.endpoint(shop, "/hook")
    outbox = OutboxRelay(cell.engine, CELL, cell.state.nats_url, OutboxSettings())
    consumer = Consumer(cell.cell.notifications, CELL, cell.state.nats_url)
    async with going_on(outbox.run, consumer.run, cell.webhooks().run):
        (event_id,) = await tell(cell.engine, 1, merchant_id=shop)
        await tell(cell.engine, 3)
        (delivery,) = await cell.until(shop, STATE.STATE_DELIVERED)
    (received,) = cell.receiver.received
    assert (delivery.event_id, delivery.attempts, delivery.last_error) == (event_id, 1, "")
    document = json.loads(received.body)
    told = [document[name] for name in ("id", "type", "data")]
    assert told == [event_id, "test.happened", {"n": 1}]
    headers = received.headers
    assert headers["webhook-id"] == delivery.delivery_id
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + received.body
    expected = hmac.new(SECRET, content, hashlib.sha256).digest()
    signatures = dict(item.split(",") for item in headers["webhook-signature"].split(" "))
    assert hmac.compare_digest(base64.b64decode(signatures["v1"]), expected)
    # The same by our own key, whose public half anybody may have.
    assert headers["webhook-key-id"] == SIGNER.key_id
    ours = base64.b64decode(signatures["v1a"])
    assert is_signed(Algorithm.ED25519, SIGNER.public, ours, content)


async def test_an_event_has_one_delivery_however_often_it_is_consumed(
    cell: Cell, shop: str
) -> None:
    await cell.endpoint(shop, "/hook")
    event = {"id": mint_now(Kind.EVENT, 3), "type": "t", "merchant_id": shop, "time": "", "data": 1}

    async def all_taken() -> bool:
        info = await stream.consumer_info(STREAM, DURABLE)
        return bool(info.num_ack_pending == info.num_pending == 0 and info.delivered.stream_seq)

    async with connect_stream(cell.state.nats_url, "test") as stream:
        for _ in range(5):
            # Twice in one message, too.
            lines = "\n".join([json.dumps(event)] * 2)
            await stream.publish("cellpay.events.t", lines.encode())
        await stream.publish("cellpay.events.t", b"no event")
        # Two cells share the consumer.
        first, second = (
            Consumer(cell.cell.notifications, name, cell.state.nats_url) for name in "ab"
        )
        async with going_on(first.run, second.run, cell.webhooks().run):
            await cell.until(shop, STATE.STATE_DELIVERED)
            await eventually(all_taken)
    assert len(await cell.deliveries(shop)) == 1
    assert len(cell.receiver.received) == 1


async def test_an_event_waits_in_the_stream_until_its_home_takes_it(cell: Cell, shop: str) -> None:
    await cell.endpoint(shop, "/hook")

    class Failing:
        """The home cell fails over: the first calls find nobody."""

        calls = 0

        async def EnqueueDelivery(
            self, request: pb.EnqueueDeliveryRequest, *, timeout: float
        ) -> pb.Delivery:
            raise AssertionError("its neighbours' home is its own")

        async def EnqueueDeliveries(
            self, request: pb.EnqueueDeliveriesRequest, *, timeout: float
        ) -> pb.EnqueueDeliveriesResponse:
            self.calls += 1
            if self.calls <= 2:
                raise grpc.aio.AioRpcError(
                    grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata()
                )
            return await cell.cell.notifications.EnqueueDeliveries(request, timeout=timeout)

    failing = Failing()
    await tell(cell.engine, 1, merchant_id=shop)
    outbox = OutboxRelay(cell.engine, CELL, cell.state.nats_url, OutboxSettings())
    consumer = Consumer(failing, CELL, cell.state.nats_url)
    async with going_on(outbox.run, consumer.run):
        await cell.until(shop, STATE.STATE_PENDING)
    assert failing.calls == 3


async def test_a_failing_webhook_is_retried_then_dead_then_redelivered(
    cell: Cell, shop: str
) -> None:
    cell.receiver.answers["/hook"] = _always(503)
    await cell.endpoint(shop, "/hook")
    enqueued = await cell.enqueue(shop)
    async with going_on(cell.webhooks().run):
        (dead,) = await cell.until(shop, STATE.STATE_DEAD)
        assert (dead.attempts, dead.last_error) == (3, "HTTP 503")
        assert len(cell.receiver.received) == 3
        assert {item.headers["webhook-id"] for item in cell.receiver.received} == {
            enqueued.delivery_id
        }
        del cell.receiver.answers["/hook"]
        request = pb.RedeliverDeliveryRequest(delivery_id=dead.delivery_id, idempotency_key="k")
        first = await cell.merchant.notifications.RedeliverDelivery(request)
        again = await cell.merchant.notifications.RedeliverDelivery(request)
        assert first.delivery_id == again.delivery_id == dead.delivery_id
        (delivered,) = await cell.until(shop, STATE.STATE_DELIVERED)
    assert (delivered.attempts, delivered.last_error) == (1, "")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await cell.merchant.notifications.RedeliverDelivery(
            pb.RedeliverDeliveryRequest(delivery_id=dead.delivery_id)
        )
    assert details_of(refused.value).reason == "DELIVERY_NOT_DEAD"


async def test_a_slow_endpoint_times_out_and_holds_up_nobody(cell: Cell, shop: str) -> None:
    quick_shop = f"quick-{shop}"
    released = asyncio.Event()

    async def never() -> web.StreamResponse:
        await released.wait()
        return web.Response()

    cell.receiver.answers["/slow"] = never
    await cell.endpoint(shop, "/slow")
    await cell.endpoint(quick_shop, "/quick")
    for _ in range(12):
        await cell.enqueue(shop)
    patient = WebhookSettings(timeout_s=3600, poll_interval_s=0.02, concurrency_max=4)
    async with going_on(cell.webhooks(patient).run):

        async def asked() -> bool:
            return "/slow" in cell.receiver.paths()

        await eventually(asked)
        # Behind twelve of the slow one, and still sent: an endpoint has its share, no more.
        await cell.enqueue(quick_shop)
        await cell.until(quick_shop, STATE.STATE_DELIVERED)
        assert cell.receiver.paths().count("/slow") == 1

    other = f"other-{shop}"
    await cell.endpoint(other, "/slow")
    await cell.enqueue(other)
    hasty = WebhookSettings(
        timeout_s=0.2, attempts_max=1, backoff_base_s=0.01, poll_interval_s=0.02
    )
    async with going_on(cell.webhooks(hasty).run):
        (dead,) = await cell.until(other, STATE.STATE_DEAD)
        released.set()
    assert dead.last_error == "no answer in time"


async def test_a_redirect_is_not_followed(cell: Cell, shop: str) -> None:
    cell.receiver.answers["/hook"] = _always(307, headers={"Location": "/elsewhere"})
    await cell.endpoint(shop, "/hook")
    await cell.enqueue(shop)
    async with going_on(cell.webhooks().run):
        (dead,) = await cell.until(shop, STATE.STATE_DEAD)
    assert dead.last_error == "HTTP 307"
    assert set(cell.receiver.paths()) == {"/hook"}


async def test_an_endless_answer_does_no_harm(cell: Cell, shop: str) -> None:
    class Endless(web.StreamResponse):
        async def write_eof(self, data: bytes = b"") -> None:
            while True:
                await self.write(b"x" * 65536)

    async def answer() -> web.StreamResponse:
        return Endless()

    cell.receiver.answers["/hook"] = answer
    await cell.endpoint(shop, "/hook")
    await cell.enqueue(shop)
    async with going_on(cell.webhooks().run):
        await cell.until(shop, STATE.STATE_DELIVERED)
    assert len(cell.receiver.received) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"])
async def test_private_addresses_are_refused_when_not_in_development(
    cell: Cell, shop: str, host: str
) -> None:
    # Set while private addresses were allowed: as a name that resolves to one only later.
    cell.receiver.url = cell.receiver.url.replace("127.0.0.1", host)
    await cell.endpoint(shop, "/hook")
    await cell.enqueue(shop)
    async with going_on(cell.webhooks(allow_private=False).run):
        (dead,) = await cell.until(shop, STATE.STATE_DEAD)
    assert dead.last_error == "the address is not public"
    assert cell.receiver.received == []


async def test_nobody_listens_and_the_merchant_reads_why(cell: Cell, shop: str) -> None:
    cell.receiver.url = "http://127.0.0.1:1"
    await cell.endpoint(shop, "/hook")
    await cell.enqueue(shop)
    async with going_on(cell.webhooks().run):
        (dead,) = await cell.until(shop, STATE.STATE_DEAD)
    assert dead.last_error.startswith("no connection")


async def test_a_failing_endpoint_cools_down_and_the_others_do_not(cell: Cell, shop: str) -> None:
    well = f"well-{shop}"
    cell.receiver.answers["/ill"] = _always(500)
    await cell.endpoint(shop, "/ill")
    await cell.endpoint(well, "/well")
    cool_downs = CoolDowns(cell.state.redis_url(CELL))
    first = await cell.enqueue(shop)
    settings = WebhookSettings(backoff_base_s=3600, poll_interval_s=0.02)

    async def failed() -> list[pb.Delivery]:
        return [one for one in await cell.deliveries(shop) if one.last_error]

    async with going_on(cell.webhooks(settings).run):
        await eventually(failed)
        assert shop in await cool_downs.cooling()
        second = await cell.enqueue(shop)
        await cell.enqueue(well)
        await cell.until(well, STATE.STATE_DELIVERED)
        attempts = {one.delivery_id: one.attempts for one in await cell.deliveries(shop)}
        assert attempts == {first.delivery_id: 1, second.delivery_id: 0}
        del cell.receiver.answers["/ill"]
        await cool_downs.forget(shop)
        (delivered,) = await cell.until(shop, STATE.STATE_DELIVERED)
    assert delivered.delivery_id == second.delivery_id
    assert await cool_downs.cooling() & {shop, well} == set()
    await cool_downs.close()


async def test_without_redis_webhooks_go_on(cell: Cell, shop: str) -> None:
    cell.receiver.answers["/hook"] = _always(500)
    await cell.endpoint(shop, "/hook")
    await cell.enqueue(shop)
    async with going_on(cell.webhooks(redis_url="redis://127.0.0.1:1").run):
        await cell.until(shop, STATE.STATE_DEAD)
        del cell.receiver.answers["/hook"]
        await cell.enqueue(shop)
        await cell.until(shop, STATE.STATE_DELIVERED)


async def test_two_workers_do_not_send_the_same_delivery(cell: Cell, shop: str) -> None:
    await cell.endpoint(shop, "/hook")
    for _ in range(30):
        await cell.enqueue(shop)
    async with going_on(cell.webhooks().run, cell.webhooks().run):
        await cell.until(shop, STATE.STATE_DELIVERED, 30)
    assert len(cell.receiver.received) == 30


async def test_a_worker_that_is_told_to_stop_ends_what_it_began(cell: Cell, shop: str) -> None:
    begun, released = asyncio.Event(), asyncio.Event()

    async def answer() -> web.StreamResponse:
        begun.set()
        await released.wait()
        return web.Response()

    cell.receiver.answers["/hook"] = answer
    await cell.endpoint(shop, "/hook")
    await cell.enqueue(shop)
    webhooks = cell.webhooks()
    async with asyncio.TaskGroup() as group:
        group.create_task(webhooks.run())
        await begun.wait()
        webhooks.stop()
        released.set()
    assert len(await cell.deliveries(shop, STATE.STATE_DELIVERED)) == 1


async def test_a_cancellation_is_heard_though_an_attempt_ends_at_that_moment(cell: Cell) -> None:
    """Python 3.11's wait_for lost it: the relay then sent for ever after its SIGTERM."""
    webhooks = cell.webhooks()
    async with asyncio.TaskGroup() as group:
        pause = group.create_task(webhooks._pause(3600))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        webhooks._freed.set()
        pause.cancel()
    assert pause.cancelled()


async def test_the_worker_of_a_deposed_cell_sends_nothing(cell: Cell, shop: str) -> None:
    witness = f"witness-{shop}"
    await cell.endpoint(shop, "/hook")
    await cell.endpoint(witness, "/witness")
    await cell.enqueue(shop)
    await cell.enqueue(witness)
    await give_away(cell.engine, "b", slot_of_user(shop))
    async with going_on(cell.webhooks().run):
        await cell.until(witness, STATE.STATE_DELIVERED)
    assert cell.receiver.paths() == ["/witness"]


async def test_a_database_that_is_away_for_a_while_loses_no_webhook(cell: Cell, shop: str) -> None:
    await cell.endpoint(shop, "/hook")
    await cell.enqueue(shop)
    await behind.kill(cell.state, "postgres")
    async with going_on(cell.webhooks().run):
        await behind.start(cell.state, "postgres")

        async def delivered() -> bool:
            try:
                return bool(await cell.deliveries(shop, STATE.STATE_DELIVERED))
            except grpc.aio.AioRpcError as error:
                assert error.code() == grpc.StatusCode.UNAVAILABLE
                return False

        await eventually(delivered)


async def test_without_an_endpoint_a_delivery_is_skipped(cell: Cell, shop: str) -> None:
    assert (await cell.enqueue(shop)).state == STATE.STATE_SKIPPED
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await cell.merchant.notifications.GetEndpoint(pb.GetEndpointRequest(merchant_id=shop))
    assert missing.value.code() == grpc.StatusCode.NOT_FOUND
    await cell.endpoint(shop, "/a")
    await cell.endpoint(shop, "/b")
    found = await cell.merchant.notifications.GetEndpoint(pb.GetEndpointRequest(merchant_id=shop))
    assert found.url == cell.receiver.url + "/b"
    assert (await cell.enqueue(shop)).state == STATE.STATE_PENDING


async def test_deliveries_are_listed_newest_first_in_pages(cell: Cell, shop: str) -> None:
    await cell.endpoint(shop, "/hook")
    made = [(await cell.enqueue(shop)).delivery_id for _ in range(5)]
    listed, token = list[str](), ""
    while True:
        page = await cell.merchant.notifications.ListDeliveries(
            pb.ListDeliveriesRequest(merchant_id=shop, page_size=2, page_token=token)
        )
        listed += [delivery.delivery_id for delivery in page.deliveries]
        token = page.next_page_token
        if not token:
            break
    assert listed == made[::-1]


async def test_only_cells_may_enqueue_deliveries(cell: Cell, shop: str) -> None:
    request = pb.EnqueueDeliveryRequest(
        merchant_id=shop, event_id=mint_now(Kind.EVENT, 3), event_type="t", body="{}"
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await cell.merchant.notifications.EnqueueDelivery(request)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert await cell.deliveries(shop) == []


async def test_wrong_requests_hear_of_every_wrong_field(cell: Cell, shop: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await cell.merchant.notifications.SetEndpoint(
            pb.SetEndpointRequest(merchant_id=shop, url="ftp://a.example", secret=b"short")
        )
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert [item.field for item in details_of(refused.value).violations] == ["url", "secret"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await cell.merchant.notifications.ListDeliveries(
            pb.ListDeliveriesRequest(merchant_id=shop, page_token="bm90LWEtdGltZR9u")
        )
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await cell.cell.notifications.EnqueueDelivery(
            pb.EnqueueDeliveryRequest(merchant_id=shop, event_id="x")
        )
    assert [item.field for item in details_of(refused.value).violations] == [
        "event_id",
        "event_type",
        "body",
    ]
