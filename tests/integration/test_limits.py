"""Rate limits on a real Redis: shared buckets, on its clock, and what happens without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from cells.breakers.board import Breaker
from cells.limits.store import RedisRates
from control.mesh import launcher
from control.mesh.options import MeshOptions
from control.mesh.state import MeshState
from router.admission.rules import NamedRate
from router.policies.model import Breakers, Dependency, Rate, RateBy, RedisAway

pytestmark = pytest.mark.mesh
SLOW = Rate(RateBy.USER, 0.001, 3)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshState]:
    directory = tmp_path_factory.mktemp("limits") / "mesh"
    with launcher.running(directory, 1, MeshOptions(only=("redis",))) as state:
        yield state
    launcher.remove(directory)


def _bucket(
    name: str, rate: Rate = SLOW, away: RedisAway = RedisAway.OPEN
) -> list[tuple[str, NamedRate]]:
    return [(name, NamedRate(name, rate, away))]


@asynccontextmanager
async def _rates(url: str, breaker: Breaker | None = None) -> AsyncIterator[RedisRates]:
    # Long: what is asked here is what Redis answers, on a machine that is busy with other tests.
    rates = RedisRates(url, breaker or Breaker(Dependency.REDIS), call_wait_s=30.0)
    yield rates
    await rates.close()


async def test_processes_share_a_bucket_however_they_race(state: MeshState) -> None:
    url = state.redis_url("a")
    async with _rates(url) as one, _rates(url) as two:
        answers = await asyncio.gather(*(rates.take(_bucket("raced")) for rates in [one, two] * 20))
    assert sum(answer is None for answer in answers) == SLOW.burst
    waits = [answer[1] for answer in answers if answer is not None]
    assert all(0 < wait_ms <= 1_000_000 for wait_ms in waits)


async def test_a_token_is_taken_of_every_bucket_or_of_none(state: MeshState) -> None:
    async with _rates(state.redis_url("a")) as rates:
        full, empty = _bucket("full"), _bucket("empty", Rate(RateBy.API, 0.001, 1))
        assert await rates.take(empty) is None
        for _ in range(5):
            answer = await rates.take([*full, *empty])
            assert answer is not None
            assert answer[0] == "empty"
        for _ in range(SLOW.burst):
            assert await rates.take(full) is None
        assert await rates.take(full) is not None


async def test_tokens_come_back_with_time(state: MeshState) -> None:
    async with _rates(state.redis_url("a")) as rates:
        quick = _bucket("quick", Rate(RateBy.USER, 50, 1))
        assert await rates.take(quick) is None
        async with asyncio.timeout(30):
            while await rates.take(quick) is not None:
                await asyncio.sleep(0.005)


@pytest.mark.parametrize(("away", "passes"), [(RedisAway.OPEN, True), (RedisAway.CLOSED, False)])
async def test_without_redis_the_policy_says_who_passes_and_nobody_waits_for_long(
    away: RedisAway, passes: bool
) -> None:
    breaker = Breaker(Dependency.REDIS)
    breaker.tune(Breakers(Dependency.REDIS, failures_max=2, reset_s=3600))
    async with _rates("redis://127.0.0.1:1", breaker) as rates:
        answers = [await rates.take(_bucket("x", away=away)) for _ in range(5)]
    assert [answer is None for answer in answers] == [passes] * 5
    assert breaker.state == "open"


async def test_a_redis_that_was_started_anew_limits_again(state: MeshState) -> None:
    async with _rates(state.redis_url("a")) as rates:
        assert await rates.take(_bucket("anew")) is None
        await asyncio.to_thread(launcher.kill, state.path, "redis-a")
        assert await rates.take(_bucket("anew")) is None
        await asyncio.to_thread(launcher.start, state.path, "redis-a")
        answers = [await rates.take(_bucket("after")) for _ in range(SLOW.burst + 3)]
    assert answers[-1] is not None
