"""One trace from the SDK to the merchant's webhook, over real parts; and what the tail keeps."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import grpc
import pytest
import pytest_asyncio
from cellpay.accounts.v1 import accounts_pb2
from cellpay.control.v1 import control_pb2
from cellpay.notifications.v1 import notifications_pb2
from cellpay.payments.v1 import payments_pb2
from cellpay.transfers.v1 import transfers_pb2
from prometheus_client.openmetrics import parser

from cells.channels.model import Verdict
from control.cellctl.session import Session
from router.client import Mesh, connect_direct
from router.ids import slot_of_id
from router.metrics import OPENMETRICS_TYPE, SLOT_RANGES, slot_range
from router.slots import SLOT_COUNT, slot_of_user
from router.tracing import Tracer, TracingSettings
from router.tracing.export import open_tracer
from tests.conftest import PATIENT
from tests.integration import sinks
from tests.integration.behind import eventually
from tests.integration.collector import Collector, Span
from tests.integration.test_api import opened, ordered, usd
from tests.integration.test_charges_api import carded, charge_of
from tests.integration.test_http import over_http
from tests.integration.test_webhooks import Receiver, receiving

pytestmark = pytest.mark.mesh
EDGE = "cellpay-edge"
PAY = "cellpay.payments.v1.PaymentsService/Pay"
TRANSFER = "cellpay.transfers.v1.TransfersService/CreateTransfer"
CHARGE = "cellpay.charges.v1.ChargesService/CreateCharge"
ENQUEUE = "cellpay.notifications.v1.NotificationsService/EnqueueDeliveries"


@pytest.fixture(scope="module")
def tracer(collector: Collector) -> Iterator[Tracer]:
    """A caller's own."""
    with open_tracer(TracingSettings(endpoint=collector.url, sample_ratio=1.0), "shop") as tracer:
        assert tracer is not None
        yield tracer


@pytest_asyncio.fixture(scope="module")
async def traced_edge(session: Session, tracer: Tracer) -> AsyncIterator[Mesh]:
    """The SDK through Envoy, with traces."""
    async with connect_direct(
        session.edge_address, session.tls("client"), policy=PATIENT, tracer=tracer
    ) as mesh:
        yield mesh


def new_traceparent(*, sampled: bool) -> tuple[str, str]:
    """A trace that somebody else has begun: its ID, and the header."""
    trace_id = f"{random.getrandbits(128):032x}"
    return trace_id, f"00-{trace_id}-{random.getrandbits(64):016x}-{'01' if sampled else '00'}"


def tree(spans: list[Span]) -> dict[str, str]:
    """Each call's name → its parent's, with the service that has it. Empty: nobody knows it."""
    names = {span.span_id: span for span in spans}

    def called(span: Span) -> str:
        return f"{span.service}:{span.name}"

    return {
        called(span): called(names[span.parent_id]) if span.parent_id in names else ""
        for span in spans
        # Attempts that failed, as in a mesh that has just come up, are nobody's parents.
        if span.name != "attempt" and not span.name.startswith("ledger.")
    }


async def listening(mesh: Mesh, receiver: Receiver, merchant_id: str) -> None:
    await mesh.notifications.SetEndpoint(
        notifications_pb2.SetEndpointRequest(
            merchant_id=merchant_id, url=f"{receiver.url}/{merchant_id}", secret=bytes(32)
        )
    )


async def person_in(session: Session, mesh: Mesh, cell: str, amount: int = 0) -> str:
    """A user with an account, at home in that cell."""
    async with session.control() as control:
        got = await control.GetSlotMap(control_pb2.GetSlotMapRequest(), timeout=10)
    while True:
        user_id = f"traced-{uuid.uuid4().hex[:10]}"
        slot = slot_of_user(user_id)
        if any(p.cell == cell and p.first <= slot <= p.last for p in got.ranges):
            break
    await mesh.accounts.OpenAccount(
        accounts_pb2.OpenAccountRequest(
            user_id=user_id, currency="USD", kind=accounts_pb2.Account.KIND_PERSON
        )
    )
    if amount:
        await mesh.accounts.Deposit(
            accounts_pb2.DepositRequest(user_id=user_id, amount=usd(amount))
        )
    return user_id


async def test_a_payment_through_envoy_is_one_trace_up_to_the_merchants_webhook(
    session: Session, mesh: Mesh, traced_edge: Mesh, collector: Collector
) -> None:
    payer, shop = await opened(mesh, 5_000), await opened(mesh, kind=2)
    order = await ordered(mesh, payer, shop, 1_200)
    async with receiving() as receiver:
        await listening(mesh, receiver, shop)
        payment = await traced_edge.payments.Pay(
            payments_pb2.PayRequest(order_id=order.order_id), metadata=(("x-user-id", payer),)
        )

        async def delivered() -> bool:
            return bool(receiver.received)

        await eventually(delivered)
        (webhook,) = receiver.received
    # The merchant may go on with it.
    trace_id = webhook.headers["traceparent"].split("-")[1]
    assert json.loads(webhook.body)["data"]["payment_id"] == payment.payment_id
    names = [PAY, PAY, "ledger.wait", "ledger.commit", "event.publish", "event.consume", "webhook"]
    spans = await collector.until(trace_id, [*names, "delivery.enqueue", ENQUEUE, ENQUEUE], [EDGE])
    envoy = next(span for span in spans if span.service == EDGE)
    assert tree(spans) == {
        f"shop:{PAY}": "",
        f"cellpay-edge:{envoy.name}": f"shop:{PAY}",
        f"cellpay-cell:{PAY}": f"cellpay-edge:{envoy.name}",
        "cellpay-relay:event.publish": f"cellpay-cell:{PAY}",
        "cellpay-relay:event.consume": f"cellpay-cell:{PAY}",
        f"cellpay-relay:{ENQUEUE}": "cellpay-relay:event.consume",
        f"cellpay-cell:{ENQUEUE}": f"cellpay-relay:{ENQUEUE}",
        "cellpay-cell:delivery.enqueue": "cellpay-relay:event.consume",
        "cellpay-relay:webhook": "cellpay-relay:event.consume",
    }
    (commit,) = [
        span for span in spans
        if span.name == "ledger.commit" and span.parent_id == served(spans, PAY).span_id
    ]  # fmt: skip
    assert commit.attributes["cellpay.group.size"] >= 1
    assert commit.attributes["cellpay.group.commit_ms"] >= 0
    assert served(spans, PAY).attributes["cellpay.payment_id"] == payment.payment_id
    assert served(spans, PAY).attributes["cellpay.slot"] == slot_of_id(order.order_id)
    assert not [span for span in spans if span.error and span.name != "attempt"]


def served(spans: list[Span], name: str) -> Span:
    """The span of the cell that answered."""
    (found,) = [span for span in spans if span.name == name and span.service == "cellpay-cell"]
    return found


async def test_a_transfer_across_cells_is_one_trace_in_both(
    session: Session, mesh: Mesh, traced_edge: Mesh, collector: Collector
) -> None:
    payer = await person_in(session, mesh, "a", 700)
    payee = await person_in(session, mesh, "b")
    trace_id, traceparent = new_traceparent(sampled=True)
    # Without the SDK, as a client of another language.
    async with connect_direct(session.edge_address, session.tls("client"), policy=PATIENT) as plain:
        await plain.transfers.CreateTransfer(
            transfers_pb2.CreateTransferRequest(
                payer_id=payer, payee_id=payee, amount=usd(300), idempotency_key="t"
            ),
            metadata=(("x-user-id", payer), ("traceparent", traceparent)),
        )
    spans = await collector.until(
        trace_id,
        [TRANSFER, "transfer.try", "transfer.confirm", "branch.try", "branch.confirm"],
        [EDGE],
    )
    by_id = {span.span_id: span for span in spans}

    def only(name: str, cell: str) -> Span:
        (found,) = [span for span in spans if (span.name, span.cell) == (name, cell)]
        return found

    root = only(TRANSFER, "a")
    assert by_id[root.parent_id].service == EDGE
    for step in ("try", "confirm"):
        asked, done = only(f"transfer.{step}", "a"), only(f"branch.{step}", "b")
        assert asked.parent_id == root.span_id
        assert done.parent_id == asked.span_id
        commits = [s for s in spans if s.name == "ledger.commit" and s.parent_id == done.span_id]
        assert [commit.cell for commit in commits] == ["b"]
        assert asked.began_ns <= done.began_ns <= done.ended_ns <= asked.ended_ns
    # The coordinator's own commits: begun, decided, ended.
    mine = [s for s in spans if s.name == "ledger.commit" and s.parent_id == root.span_id]
    assert [commit.cell for commit in mine] == ["a"] * 3


async def test_payments_of_one_commit_are_linked_in_their_traces(
    session: Session, mesh: Mesh, collector: Collector
) -> None:
    payer, shop = await person_in(session, mesh, "a", 5_000), await opened(mesh, kind=2)
    orders = [await ordered(mesh, payer, shop, 10) for _ in range(24)]
    traces = [new_traceparent(sampled=True) for _ in orders]
    await asyncio.gather(
        *(
            mesh.payments.Pay(
                payments_pb2.PayRequest(order_id=order.order_id),
                metadata=(("traceparent", traceparent),),
            )
            for order, (_, traceparent) in zip(orders, traces, strict=True)
        )
    )
    commits = {}
    for trace_id, _ in traces:
        for span in await collector.until(trace_id, [PAY, "ledger.commit"]):
            if span.name == "ledger.commit":
                commits[span.trace_id, span.span_id] = span
    shared = [span for span in commits.values() if span.attributes["cellpay.group.size"] > 1]
    assert shared, "24 payments of one slot at once shared no commit"
    links = [tuple(link) for span in shared for link in span.links]
    assert links
    for trace_id, span_id in links:
        if (trace_id, span_id) in commits:
            other = commits[trace_id, span_id]
            assert other.attributes["cellpay.group.size"] > 1


async def test_the_tail_keeps_a_payment_that_failed_though_it_is_in_no_sample(
    mesh: Mesh, collector: Collector
) -> None:
    poor, rich, shop = await opened(mesh, 10), await opened(mesh, 5_000), await opened(mesh, kind=2)
    dear, fair = await ordered(mesh, poor, shop, 1_000), await ordered(mesh, rich, shop, 1_000)
    failed, failing = new_traceparent(sampled=False)
    dropped, fine = new_traceparent(sampled=False)
    await mesh.payments.Pay(
        payments_pb2.PayRequest(order_id=fair.order_id), metadata=(("traceparent", fine),)
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await mesh.payments.Pay(
            payments_pb2.PayRequest(order_id=dear.order_id), metadata=(("traceparent", failing),)
        )
    spans = await collector.until(failed, [PAY, "ledger.commit"])
    (root,) = [span for span in spans if span.name == PAY]
    assert root.error == "FAILED_PRECONDITION INSUFFICIENT_FUNDS"
    assert root.attributes["cellpay.kept"] == "failed"
    # What came before it in the same queue of the same process, or might have, is not there.
    assert collector.spans(dropped) == []


async def test_an_event_carries_its_trace_in_its_line_and_its_message(
    session: Session, mesh: Mesh
) -> None:
    payer, shop = await opened(mesh, 5_000), await opened(mesh, kind=2)
    order = await ordered(mesh, payer, shop, 100)
    trace_id, traceparent = new_traceparent(sampled=False)
    await mesh.payments.Pay(
        payments_pb2.PayRequest(order_id=order.order_id), metadata=(("traceparent", traceparent),)
    )

    async def published() -> list[bytes]:
        return [
            content
            async for _, content in sinks.stream(session)
            if f'"order_id": "{order.order_id}"'.encode() in content
        ]

    content = (await eventually(published))[-1]
    # In the header and in the line, or in the line alone when others share the message.
    assert content.count(trace_id.encode()) in {1, 2}
    assert b"'traceparent': '00-" in content


async def test_buckets_name_a_trace_as_an_example_for_who_takes_openmetrics(
    session: Session, mesh: Mesh, collector: Collector
) -> None:
    payer, shop = await person_in(session, mesh, "c", 5_000), await opened(mesh, kind=2)
    order = await ordered(mesh, payer, shop, 100)
    trace_id, traceparent = new_traceparent(sampled=True)
    await mesh.payments.Pay(
        payments_pb2.PayRequest(order_id=order.order_id), metadata=(("traceparent", traceparent),)
    )
    address = session.state.probes_of("cell-c")
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"http://{address}/metrics", headers={"accept": OPENMETRICS_TYPE}) as answer,
    ):
        assert answer.headers["content-type"] == OPENMETRICS_TYPE
        parse: Any = parser.text_string_to_metric_families
        families = {item.name: item for item in parse(await answer.text())}
    examples = [
        sample.exemplar.labels["trace_id"]
        for sample in families["cellpay_request_duration_seconds"].samples
        if sample.exemplar and sample.labels["method"] == PAY
    ]
    assert trace_id in examples
    slots = slot_range(slot_of_id(order.order_id) // (SLOT_COUNT // SLOT_RANGES))
    counted = [
        sample.value
        for sample in families["cellpay_slot_requests"].samples
        if sample.labels.get("slots") == slots and sample.labels["method"] == PAY
    ]
    assert sum(counted) >= 1


async def test_a_charges_trace_shows_which_bank_was_asked_and_what_it_said(
    mesh: Mesh, collector: Collector
) -> None:
    user = await opened(mesh)
    card = await carded(mesh, user)
    trace_id, traceparent = new_traceparent(sampled=True)
    charge = await mesh.charges.CreateCharge(
        charge_of(user, card, 500), metadata=(("traceparent", traceparent),)
    )
    spans = await collector.until(
        trace_id, [CHARGE, "channel.choose", "vault.reveal", "bank.authorise"]
    )
    asked = next(span for span in spans if span.name == "bank.authorise")
    root = next(span for span in spans if span.name == CHARGE)
    assert asked.parent_id == root.span_id
    assert root.attributes["cellpay.charge_id"] == charge.charge_id
    assert asked.attributes["cellpay.verdict"] in set(Verdict)
    assert asked.attributes["cellpay.channel"]


async def test_a_merchants_traceparent_comes_through_the_json_edge(
    session: Session, mesh: Mesh, collector: Collector
) -> None:
    payer, shop = await opened(mesh, 5_000), await opened(mesh, kind=2)
    order = await ordered(mesh, payer, shop, 1_200)
    trace_id, traceparent = new_traceparent(sampled=True)
    async with over_http(session) as http:
        status, _ = await http(
            "POST", f"/v1/orders/{order.order_id}:pay", {"idempotency_key": "p"},
            traceparent=traceparent,
        )  # fmt: skip
    assert status == 200
    spans = await collector.until(trace_id, [PAY, "ledger.commit"], [EDGE])
    by_id = {span.span_id: span for span in spans}
    edge = by_id[served(spans, PAY).parent_id]
    assert (edge.service, edge.parent_id) == (EDGE, traceparent.split("-")[2])
