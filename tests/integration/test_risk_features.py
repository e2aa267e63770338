"""Features on a real Redis and a real stream: what is read is what happened, whatever is killed."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nats.js.errors import NotFoundError
from redis.asyncio import Redis

import cells.risk.stream
from cells.breakers.board import Breaker
from cells.outbox.stream import connect_jetstream
from cells.risk.consumer import Consumer
from cells.risk.export import export
from cells.risk.features import RedisFeatures
from cells.risk.figures import FeatureMetrics
from cells.risk.interface import FeaturesAway
from cells.risk.layout import NOTHING_KEY, State
from cells.risk.memory import MemoryFeatures
from cells.risk.stream import Publisher, ensure_stream
from cells.risk.windows import Plan
from cells.risk.writer import FeatureWriter, new_state
from control.mesh import launcher
from control.mesh.options import MeshOptions
from control.mesh.state import MeshState
from router.metrics import Metrics
from router.policies.model import Dependency
from router.risk.features import Aggregate, Entity, Feature, FeatureSet, Observation
from router.risk.record import STREAM, SUBJECT_PREFIX, Record, encode
from tests.integration.behind import eventually, going_on
from tests.property.test_risk_features import OBSERVATIONS, by_definition, features

pytestmark = pytest.mark.mesh
# A busy machine may take its time; who is away is away all the same.
PATIENT_S = 20.0
DOCUMENT = FeatureSet(
    (
        Feature("payments", Entity.USER, Aggregate.COUNT, 3600),
        Feature("spent", Entity.USER, Aggregate.SUM, 86_400),
        Feature("devices", Entity.USER, Aggregate.DISTINCT, 3600, of=Entity.DEVICE),
        Feature("users", Entity.DEVICE, Aggregate.DISTINCT, 7200, of=Entity.USER),
        Feature("received", Entity.PAYEE, Aggregate.SUM, 86_400, currency="USD"),
    )
)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshState]:
    directory = tmp_path_factory.mktemp("features") / "mesh"
    with launcher.running(directory, 1, MeshOptions(only=("redis", "nats"))) as state:
        yield state
    launcher.remove(directory)


@pytest.fixture
async def empty(state: MeshState) -> MeshState:
    """No stream, and a Redis that knows nothing."""
    await _forget_stream(state)
    async with Redis.from_url(state.redis_url("a")) as redis:
        await redis.flushall()
    return state


@pytest.fixture
async def reading(state: MeshState) -> AsyncIterator[RedisFeatures]:
    reader = _reader(state)
    yield reader
    await reader.close()


def _reader(state: MeshState, *, stale_s: float = 3600.0) -> RedisFeatures:
    breaker = Breaker(Dependency.REDIS)
    return RedisFeatures(state.redis_url("a"), breaker, wait_s=PATIENT_S, stale_s=stale_s)


async def _forget_stream(state: MeshState) -> None:
    async with connect_jetstream(state.nats_url, "test") as stream:
        try:
            await stream.delete_stream(STREAM)
        except NotFoundError:
            pass


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _happened(count: int, *, users: int = 7) -> list[Observation]:
    """Some of it an hour ago."""
    now = _now_ms()
    return [
        Observation(
            now - (number % 5) * 900_000, "pay", "allow", f"user-{number % users}",
            f"payee-{number % 3}", f"device-{number % 11}", "10.0.0.1", "", number, "USD",
        )
        for number in range(count)
    ]  # fmt: skip


def _record(seen: Observation) -> Record:
    return Record("d", seen, {"amount": seen.amount}, seen.action, (), (), (), 1, "", ())


def _asked(count: int = 20) -> list[Observation]:
    return [item._replace(at_ms=_now_ms()) for item in _happened(count)]


def _expected(
    seen: Sequence[Observation], asked: Sequence[Observation], document: FeatureSet = DOCUMENT
) -> Sequence[Mapping[str, int]]:
    memory = MemoryFeatures()
    memory.add(document, seen)
    return memory.values(document, asked)


def _consumer(state: MeshState, document: FeatureSet = DOCUMENT) -> Consumer:
    return Consumer(state.nats_url, state.redis_url("a"), "a", lambda: document)


async def _stored(state: MeshState) -> int:
    """Messages of the stream."""
    async with connect_jetstream(state.nats_url, "test") as stream:
        await ensure_stream(stream)
        return int((await stream.stream_info(STREAM)).state.last_seq)


async def _until_counted(
    state: MeshState, reading: RedisFeatures, document: FeatureSet = DOCUMENT
) -> None:
    """All that the stream holds now."""
    plan = Plan.of(document)
    writer = FeatureWriter(state.redis_url("a"))
    last = await _stored(state)

    async def are_there() -> bool:
        states = (await writer.states(plan)).values()
        return len(states) == len(plan.unique.features) and all(
            item.position >= last and item.filled for item in states
        )

    await eventually(are_there)
    await writer.close()


async def _publish(state: MeshState, seen: Sequence[Observation]) -> None:
    publisher = Publisher(state.nats_url, "a")
    async with going_on(publisher.run):
        for item in seen:
            publisher.put(_record(item))
        assert await publisher.drain(PATIENT_S)
    assert publisher.published == len(seen)


@pytest.mark.parametrize("store", ["memory", "redis"])
async def test_values_are_those_of_the_definition_in_any_order(
    store: str, empty: MeshState, reading: RedisFeatures
) -> None:
    writer = FeatureWriter(empty.redis_url("a"))
    groups = st.lists(OBSERVATIONS, max_size=4)

    async def put(document: FeatureSet, messages: list[list[Observation]]) -> None:
        plan = Plan.of(document)
        states: Mapping[bytes, State] = {}
        for number, seen in enumerate(messages, 1):
            before = states or {item: new_state() for item in plan.identities.values()}
            then = {item: State(before[item].salt, number, True) for item in before}
            assert await writer.apply(plan, states, then, seen, age_ms=0)
            states = then

    async def check(
        document: FeatureSet, messages: list[list[Observation]], asked: list[Observation]
    ) -> None:
        base = _now_ms() - 400_000
        seen = [[item._replace(at_ms=base + item.at_ms) for item in part] for part in messages]
        queries = [item._replace(at_ms=base + 360_000 + item.at_ms // 4) for item in asked]
        if store == "memory":
            memory = MemoryFeatures()
            for part in seen:
                memory.add(document, part)
            found = await memory.read(document, queries)
        else:
            await writer.forget()
            await put(document, [*seen, []])
            found = await reading.read(document, queries)
        everything = [item for part in seen for item in part]
        for query, values in zip(queries, found, strict=True):
            for feature in document.features:
                key = getattr(query, feature.by.value)
                wanted = by_definition(feature, everything, key, query.at_ms) if key else 0
                assert values[feature.name] == wanted, feature

    loop = asyncio.get_running_loop()

    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(features(), min_size=1, max_size=5), groups, OBSERVATIONS)
    def run(
        found: list[Feature], messages: list[list[Observation]], asked: list[Observation]
    ) -> None:
        named = [replace(feature, name=f"f{number}") for number, feature in enumerate(found)]
        future = asyncio.run_coroutine_threadsafe(
            check(FeatureSet(tuple(named)), messages, asked), loop
        )
        future.result(PATIENT_S)

    await asyncio.to_thread(run)
    await writer.close()


async def test_what_is_published_is_counted_once_though_the_consumer_is_killed_in_the_middle(
    empty: MeshState, reading: RedisFeatures
) -> None:
    seen = _happened(4000)
    asked = _asked()
    await _publish(empty, seen[:2000])
    publisher = Publisher(empty.nats_url, "a")
    async with going_on(publisher.run):
        for number in range(4):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.integration.counting", empty.nats_url,
                empty.redis_url("a"), stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert process.stdout is not None
            for item in seen[2000 + number * 500 : 2500 + number * 500]:
                publisher.put(_record(item))
            # Each line is another message that it is about to apply, or has just applied.
            for _ in range(3 + 4 * number):
                await process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            await process.wait()
    assert publisher.waiting == 0
    async with going_on(_consumer(empty).run):
        await _until_counted(empty, reading)
    assert list(await reading.read(DOCUMENT, asked)) == list(_expected(seen, asked))


async def test_two_consumers_at_once_count_everything_once(
    empty: MeshState, reading: RedisFeatures
) -> None:
    seen = _happened(2000)
    async with going_on(_consumer(empty).run, _consumer(empty).run):
        await _publish(empty, seen)
        await _until_counted(empty, reading)
    asked = _asked()
    assert list(await reading.read(DOCUMENT, asked)) == list(_expected(seen, asked))


async def test_filling_anew_gives_the_same_and_nothing_is_known_meanwhile(
    empty: MeshState, reading: RedisFeatures
) -> None:
    seen = _happened(1000)
    await _publish(empty, seen)
    async with going_on(_consumer(empty).run):
        await _until_counted(empty, reading)
    asked = _asked()
    before = await reading.read(DOCUMENT, asked)
    sizes = await _sizes(empty)
    writer = FeatureWriter(empty.redis_url("a"))
    await writer.forget()
    with pytest.raises(FeaturesAway, match="being filled"):
        await reading.read(DOCUMENT, asked)
    async with going_on(_consumer(empty).run):
        await _until_counted(empty, reading)
    assert list(await reading.read(DOCUMENT, asked)) == list(before)
    # What was there before takes no room, and what is there stays.
    assert await _sizes(empty) == sizes
    async with Redis.from_url(empty.redis_url("a")) as redis:
        await redis.set(b"{risk}:" + bytes(24), "of a feature that was")
    assert await writer.sweep() == 1
    assert await writer.sweep() == 0
    assert list(await reading.read(DOCUMENT, asked)) == list(before)
    await writer.close()


async def _sizes(state: MeshState) -> Mapping[bytes, int]:
    """Of all that is known of users, devices …"""
    async with Redis.from_url(state.redis_url("a")) as redis:
        return {key: await redis.strlen(key) async for key in redis.scan_iter("{risk}=*")}


async def test_a_redis_that_forgot_everything_is_filled_again_by_the_running_consumer(
    empty: MeshState, reading: RedisFeatures
) -> None:
    seen = _happened(500)
    asked = _asked()
    async with going_on(_consumer(empty).run):
        await _publish(empty, seen)
        await _until_counted(empty, reading)
        await asyncio.to_thread(launcher.kill, empty.path, "redis-a")
        with pytest.raises(FeaturesAway):
            await reading.read(DOCUMENT, asked)
        await asyncio.to_thread(launcher.start, empty.path, "redis-a")
        await _until_counted(empty, reading)
    assert list(await reading.read(DOCUMENT, asked)) == list(_expected(seen, asked))


async def test_a_new_feature_is_filled_from_the_past_while_the_others_go_on(
    empty: MeshState, reading: RedisFeatures
) -> None:
    seen = _happened(1500)
    await _publish(empty, seen[:1000])
    async with going_on(_consumer(empty).run):
        await _until_counted(empty, reading)
    more = FeatureSet(
        (
            *DOCUMENT.features,
            Feature("addresses", Entity.USER, Aggregate.DISTINCT, 7200, of=Entity.IP),
        )
    )
    asked = _asked()
    # It is too low until it is filled; the others are as they were.
    early = await reading.read(more, asked)
    known = [dict(values) for values in _expected(seen[:1000], asked, DOCUMENT)]
    assert [{**values} for values in early] == [{**values, "addresses": 0} for values in known]
    async with going_on(_consumer(empty, more).run):
        await _publish(empty, seen[1000:])
        await _until_counted(empty, reading, more)
    assert list(await reading.read(more, asked)) == list(_expected(seen, asked, more))


async def test_a_renamed_feature_keeps_its_past_and_one_that_is_there_twice_counts_once(
    empty: MeshState, reading: RedisFeatures
) -> None:
    seen = _happened(50)
    await _publish(empty, seen)
    first, *others = DOCUMENT.features
    twice = FeatureSet((replace(first, name="a"), replace(first, name="b"), *others))
    async with going_on(_consumer(empty).run):
        await _until_counted(empty, reading)
    asked = _asked()
    assert list(await reading.read(twice, asked)) == list(_expected(seen, asked, twice))
    async with going_on(_consumer(empty, twice).run):
        await _publish(empty, seen)
        await _until_counted(empty, reading, twice)
    assert list(await reading.read(twice, asked)) == list(_expected(seen * 2, asked, twice))


async def test_messages_that_are_repeated_foreign_or_from_the_future_count_for_nothing(
    empty: MeshState, reading: RedisFeatures
) -> None:
    seen = _happened(10)
    future = seen[0]._replace(at_ms=_now_ms() + 3_600_000)
    async with connect_jetstream(empty.nats_url, "test") as stream:
        await ensure_stream(stream)

        async def send(data: bytes, message_id: str) -> None:
            headers = {"Nats-Msg-Id": message_id}
            await stream.publish(SUBJECT_PREFIX + "b", data, headers=headers)

        good = encode([_record(item) for item in seen])
        for data, message_id in (
            (b"no records", "1"), (good, "2"), (good, "2"), (encode([_record(future)]), "3"),
            (encode([]), "4"),
        ):  # fmt: skip
            await send(data, message_id)
    async with going_on(_consumer(empty).run):
        await _until_counted(empty, reading)
    asked = _asked()
    assert list(await reading.read(DOCUMENT, asked)) == list(_expected(seen, asked))


async def test_nothing_is_lost_or_told_twice_though_nats_is_killed_in_the_middle(
    empty: MeshState, reading: RedisFeatures
) -> None:
    seen = _happened(3000)
    publisher = Publisher(empty.nats_url, "a")
    async with going_on(publisher.run, _consumer(empty).run):
        for item in seen[:1500]:
            publisher.put(_record(item))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(launcher.kill, empty.path, "nats")
        for item in seen[1500:]:
            publisher.put(_record(item))
        await asyncio.to_thread(launcher.start, empty.path, "nats")
        assert await publisher.drain(60)
        await _until_counted(empty, reading)
    asked = _asked()
    assert list(await reading.read(DOCUMENT, asked)) == list(_expected(seen, asked))


async def test_a_stream_that_was_lost_is_followed_anew_and_what_is_known_stays_known(
    empty: MeshState, reading: RedisFeatures
) -> None:
    seen = _happened(600)
    async with going_on(_consumer(empty).run):
        await _publish(empty, seen[:400])
        await _until_counted(empty, reading)
        await _forget_stream(empty)
        await _publish(empty, seen[400:])
        asked = _asked()
        wanted = list(_expected(seen, asked))

        async def are_counted() -> bool:
            return list(await reading.read(DOCUMENT, asked)) == wanted

        await eventually(are_counted)


async def test_who_is_behind_the_stream_for_too_long_is_not_believed(empty: MeshState) -> None:
    async with going_on(_consumer(empty).run):
        await _publish(empty, _happened(10))
        reading = _reader(empty)
        await _until_counted(empty, reading)
        await reading.close()
    strict = _reader(empty, stale_s=0.0)

    async def is_away() -> bool:
        try:
            await strict.read(DOCUMENT, _asked())
        except FeaturesAway as error:
            return str(error) == "behind the stream"
        return False

    await eventually(is_away)
    await strict.close()


async def test_without_redis_the_breaker_opens_and_nobody_asks() -> None:
    breaker = Breaker(Dependency.REDIS)
    reading = RedisFeatures("redis://127.0.0.1:1", breaker)
    for _ in range(10):
        with pytest.raises(FeaturesAway):
            await reading.read(DOCUMENT, _asked())
    assert breaker.state == "open"
    # Nothing is asked, so there is nothing to be away.
    assert await reading.read(FeatureSet(), _asked(2)) == [{}, {}]
    await reading.close()


async def test_a_redis_that_does_not_answer_is_not_waited_for(
    empty: MeshState, reading: RedisFeatures
) -> None:
    await _publish(empty, _happened(10))
    async with going_on(_consumer(empty).run):
        await _until_counted(empty, reading)
    hasty = RedisFeatures(empty.redis_url("a"), Breaker(Dependency.REDIS), stale_s=3600.0)
    async with Redis.from_url(empty.redis_url("a")) as redis:
        # Half a second in which Redis answers nobody.
        stuck = "local t = redis.call('TIME') local e = t[1] * 1000000 + t[2] + 500000 " \
            "repeat t = redis.call('TIME') until t[1] * 1000000 + t[2] > e return 1"  # fmt: skip
        async with asyncio.TaskGroup() as group:
            group.create_task(_evaluate(redis, stuck))
            await asyncio.sleep(0.05)
            with pytest.raises(FeaturesAway, match="Timeout"):
                await hasty.read(DOCUMENT, _asked())
    # The connection that was given up answers nobody with what it still gets.
    patient = await reading.read(DOCUMENT, _asked(3))
    assert list(patient) == list(_expected(_happened(10), _asked(3)))
    await hasty.close()


async def _evaluate(redis: Redis, script: str) -> None:
    await redis.eval(script, 0)


async def test_what_is_too_much_or_too_large_is_dropped_and_counted(
    empty: MeshState, reading: RedisFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells.risk.stream, "_WAITING_MAX", 100)
    seen = _happened(100)
    publisher = Publisher(empty.nats_url, "a")
    publisher.put(_record(seen[0])._replace(facts={"large": "x" * 2_000_000}))
    publisher.put(_record(seen[0])._replace(facts={"no text": "\ud800"}))
    for item in [*seen[:98], *seen]:
        publisher.put(_record(item))
    assert publisher.dropped == 100
    async with going_on(publisher.run, _consumer(empty).run):
        assert await publisher.drain(PATIENT_S)
        await _until_counted(empty, reading)
    assert (publisher.published, publisher.dropped) == (98, 102)
    asked = _asked()
    assert list(await reading.read(DOCUMENT, asked)) == list(_expected(seen[:98], asked))


async def test_an_export_has_every_observation_in_the_streams_order(empty: MeshState) -> None:
    seen = _happened(200)
    await _publish(empty, seen)
    out = io.StringIO()
    assert await export(empty.nats_url, out) == 200
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert lines == [item._asdict() for item in seen]


async def test_metrics_tell_what_was_sent_dropped_and_counted(empty: MeshState) -> None:
    publisher, consumer = Publisher(empty.nats_url, "a"), _consumer(empty)
    publisher.put(_record(_happened(1)[0])._replace(facts={"large": "x" * 2_000_000}))
    for item in _happened(40):
        publisher.put(_record(item))
    page = Metrics(FeatureMetrics(publisher, None)).render()
    assert "cellpay_risk_records_waiting 41.0" in page
    assert "behind" not in page
    reading = _reader(empty)
    async with going_on(publisher.run, consumer.run):
        assert await publisher.drain(PATIENT_S)
        await _until_counted(empty, reading)
    page = Metrics(FeatureMetrics(publisher, consumer)).render()
    for line in (
        'cellpay_risk_records_total{outcome="published"} 40.0',
        'cellpay_risk_records_total{outcome="dropped"} 1.0',
        "cellpay_risk_observations_total 40.0",
        "cellpay_risk_features_behind 0.0",
    ):
        assert line in page
    await reading.close()


async def test_a_purged_stream_is_no_stream_that_one_is_behind(
    empty: MeshState, reading: RedisFeatures
) -> None:
    seen = _happened(100)
    await _publish(empty, seen)
    async with connect_jetstream(empty.nats_url, "test") as stream:
        await stream.purge_stream(STREAM)
    async with going_on(_consumer(empty).run):
        await _until_counted(empty, reading)
        asked = _asked()
        assert list(await reading.read(DOCUMENT, asked)) == list(_expected([], asked))
        assert await export(empty.nats_url, io.StringIO()) == 0
        await _publish(empty, seen)
        await _until_counted(empty, reading)
    assert list(await reading.read(DOCUMENT, asked)) == list(_expected(seen, asked))


async def test_few_members_are_counted_exactly_and_many_as_well_as_redis_can(
    empty: MeshState, reading: RedisFeatures
) -> None:
    feature = Feature("users", Entity.DEVICE, Aggregate.DISTINCT, 3600, of=Entity.USER)
    document = FeatureSet((feature,))
    length = feature.bucket_ms
    start = _now_ms() // length * length
    query = _happened(1)[0]._replace(device="shared", at_ms=start)
    seen: list[Observation] = []

    def use(bucket: int, users: range) -> None:
        at_ms = start - bucket * length
        named = [query._replace(at_ms=at_ms, user=f"user-{user}") for user in users]
        seen.extend(named * 2)

    async with going_on(_consumer(empty, document).run):
        for bucket, users, exact in (
            (0, range(16), True),
            (1, range(8, 24), True),
            # The first bucket becomes a HyperLogLog, and is counted together with the second.
            (0, range(16, 40), False),
            (1, range(30, 1000), False),
            (3, range(2000, 2005), False),
            # Out of the window.
            (10, range(5000, 5500), False),
        ):
            count = len(seen)
            use(bucket, users)
            await _publish(empty, seen[count:])
            await _until_counted(empty, reading, document)
            (found,) = await reading.read(document, [query])
            (wanted,) = _expected(seen, [query], document)
            assert found["users"] == pytest.approx(wanted["users"], rel=0 if exact else 0.03)
    async with Redis.from_url(empty.redis_url("a")) as redis:
        assert not await redis.exists(NOTHING_KEY)
