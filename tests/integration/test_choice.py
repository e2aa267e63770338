"""The choice of channels between processes: a real Redis, a real etcd, decisions in a database."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from cells.breakers.board import Board
from cells.channels.model import Answer, AnswerReason, Verdict
from cells.choice.document import encode
from cells.choice.model import Facts
from cells.choice.terms import make_terms
from cells.choice.worker import Choosing
from control.audit import audit_put, audit_record
from control.cellctl.route_decision import DatabaseDecisions, policies_of
from control.mesh import launcher
from control.mesh.options import MeshOptions
from control.mesh.state import MeshState
from router.errors import Refusal
from router.ids import Kind, derive
from router.policies.channels import Band, ChannelPolicy, Commitment, Fees, Quotas, Tier
from router.policies.model import POLICIES_PREFIX
from router.policies.rules import PolicySet, envelope, policy_key, take
from router.store.etcd import connect_etcd

pytestmark = pytest.mark.mesh
PATIENCE_S = 30.0
AT_MS = 1_784_073_600_000
DOWN = Answer(Verdict.FAILED, AnswerReason.CHANNEL_CLOSED)
GOOD = Answer(Verdict.APPROVED)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshState]:
    directory = tmp_path_factory.mktemp("choice") / "mesh"
    with launcher.running(directory, 1, MeshOptions(only=("etcd", "redis", "postgres"))) as state:
        yield state
    launcher.remove(directory)


def _channel(name: str, quotas: Quotas | None = None) -> ChannelPolicy:
    return ChannelPolicy(
        name, {"USD": Band()}, (Fees("USD", (Tier(0, 10, 20_000),)),), quotas=quotas or Quotas(),
        commitments=(Commitment("USD", 1_000_000, 100),),
    )  # fmt: skip


def _facts(number: int = 1, amount: int = 100) -> Facts:
    return Facts(derive(Kind.CHARGE, 7, str(number)), amount, "USD", AT_MS, scheme="visa")


@asynccontextmanager
async def _process(
    state: MeshState, *channels: ChannelPolicy, running: bool = True, patience_s: float = PATIENCE_S
) -> AsyncIterator[Choosing]:
    store = connect_etcd(state.address("etcd"))
    choosing = Choosing(store, "a", state.redis_url("a"), Board(), redis_wait_s=patience_s)
    choosing.chooser.use(make_terms(channels, {}, "a"))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(choosing.run()) if running else None
        yield choosing
        if task is not None:
            task.cancel()
    await store.close()


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.02)


def _believed(choosing: Choosing, channel: str) -> float:
    found = choosing.choose(_facts()).snapshot.standings[channel]
    return found.alpha / (found.alpha + found.beta)


async def test_what_one_process_sees_the_cells_others_believe(state: MeshState) -> None:
    channel = _channel("seen")
    async with _process(state, channel) as one, _process(state, channel) as other:
        before = _believed(other, "seen")
        for number in range(30):
            # Not the breaker's business: the issuer is away.
            answer = Answer(Verdict.FAILED, AnswerReason.ISSUER_UNAVAILABLE)
            one.end(_facts(number), "seen", answer, 100.0)
        await _until(lambda: _believed(other, "seen") < before - 0.2)
        assert _believed(one, "seen") == pytest.approx(_believed(other, "seen"), abs=0.05)
    async with _process(state, channel) as late:
        await _until(lambda: _believed(late, "seen") < before - 0.2)


async def test_processes_of_a_cell_together_keep_within_a_quota_however_they_race(
    state: MeshState,
) -> None:
    channel = _channel("tight", Quotas(per_minute=30, amount_per_day={"USD": 1_700}))
    async with (
        _process(state, channel, running=False) as one,
        _process(state, channel, running=False) as other,
    ):
        begun = await asyncio.gather(
            *(choosing.begin(_facts(), "tight") for choosing in [one, other] * 25)
        )
        # Of 100 each, the day takes 17.
        assert sum(begun) == 17
        assert one.choose(_facts()).order == ()
        assert one.choose(_facts(amount=0)).order == ("tight",)


async def test_volume_of_the_month_is_the_cells(state: MeshState) -> None:
    def volume(choosing: Choosing) -> int:
        return choosing.chooser.statistics.usage("volume", "USD", _now_ms()).month_amount

    channel = _channel("volume")
    async with _process(state, channel) as one, _process(state, channel) as other:
        for choosing in (one, other):
            facts = Facts("chg_1", 500, "USD", _now_ms())
            choosing.end(facts, "volume", GOOD, 10.0)
        await _until(lambda: volume(one) == volume(other) == 1000)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def test_a_breaker_that_one_process_opens_the_others_leave_alone_until_it_closes(
    state: MeshState,
) -> None:
    channel = _channel("broken")
    async with _process(state, channel) as one, _process(state, channel) as other:
        for number in range(5):
            assert await one.begin(_facts(number), "broken")
            one.end(_facts(number), "broken", DOWN, 10.0)
        assert one.choose(_facts()).order == ()
        await _until(lambda: other.choose(_facts()).order == ())
        assert not await other.begin(_facts(), "broken")
        # Whoever may try next tells all.
        await _until(lambda: other.choose(_facts()).order == ("broken",))
        assert await other.begin(_facts(), "broken")
        other.end(_facts(), "broken", GOOD, 10.0)
        await _until(lambda: one.chooser.breaker("broken").state == "closed")
        assert one.choose(_facts()).order == ("broken",)


async def test_without_redis_each_process_goes_by_its_own_figures_and_gives_them_later(
    state: MeshState,
) -> None:
    channel = _channel("alone", Quotas(per_minute=3))
    async with _process(state, channel, running=False, patience_s=0.2) as one:
        redis = launcher.kill(state.path, "redis-a", signal.SIGSTOP)
        try:
            assert [await one.begin(_facts(), "alone") for _ in range(5)] == [True] * 3 + [
                False
            ] * 2
            before = _believed(one, "alone")
            for _ in range(20):
                one.end(_facts(), "alone", Answer(Verdict.UNKNOWN), 10.0)
            await one.sync()
            assert _believed(one, "alone") < before
        finally:
            os.kill(redis, signal.SIGCONT)
        async with asyncio.timeout(PATIENCE_S):
            async with _process(state, channel, running=False) as other:
                while _believed(other, "alone") == before:
                    await one.sync()
                    await other.sync()
                    other.chooser.refresh()
                    await asyncio.sleep(0.1)


async def test_policies_of_a_decision_are_found_in_the_audit_log_when_they_changed(
    state: MeshState,
) -> None:
    store = connect_etcd(state.address("etcd"))
    try:

        async def write(rate_ppm: int) -> PolicySet:
            fees = [{"currency": "USD", "tiers": [{"rate_ppm": rate_ppm}]}]
            document = json.dumps({"channel": "x", "amounts": {"USD": {}}, "fees": fees})
            record = audit_record("me", "policy.channels.set", f"x: {document}", "a test")
            value = envelope(document, reason="a test", actor="me", time_ms=1)
            puts = {policy_key("channels", "x"): value, **audit_put(record)}
            await store.commit(expect={}, puts=puts)
            listing = await store.list(POLICIES_PREFIX)
            return take(
                PolicySet(),
                {key: (item.value, item.revision) for key, item in listing.items.items()},
            )

        first = await write(1000)
        choosing = Choosing(store, "a", state.redis_url("a"), Board())
        choosing.apply(first)
        decision = choosing.choose(_facts())
        assert await policies_of(store, decision) == first
        await write(2000)
        found = await policies_of(store, decision)
        assert found is not None
        assert found.policies == first.policies
    finally:
        await store.close()


async def test_a_decision_is_read_where_its_charge_is(state: MeshState) -> None:
    engine = create_async_engine(state.database_url)
    decisions = DatabaseDecisions(engine)
    facts = _facts()
    async with _process(state, _channel("kept"), running=False) as choosing:
        written = encode(choosing.choose(facts))
    try:
        with pytest.raises(Refusal, match="NO_DECISIONS"):
            await decisions.find(facts.owner_id)
        async with engine.begin() as connection:
            columns = "slot SMALLINT, owner_id TEXT, document TEXT, created_at TIMESTAMPTZ"
            await connection.execute(text(f"CREATE TABLE decisions ({columns})"))
            await connection.execute(
                text("INSERT INTO decisions VALUES (7, :id, :decision, now())"),
                {"id": facts.owner_id, "decision": written},
            )
        assert await decisions.find(facts.owner_id) == written
        with pytest.raises(Refusal, match="DECISION_NOT_FOUND"):
            await decisions.find(_facts(2).owner_id)
        for wrong in ("nonsense", derive(Kind.ORDER, 7, "x")):
            with pytest.raises(Refusal, match="INVALID_REQUEST"):
                await decisions.find(wrong)
    finally:
        await engine.dispose()
