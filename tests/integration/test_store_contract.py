"""One contract for every store: etcd in earnest, and the one in memory that tests run on.

Whatever only a real server can do (die, hang, come back) is tested on etcd alone, at the end.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, cast

import pytest

from control.mesh import launcher
from control.mesh.options import MeshOptions
from control.mesh.state import MeshState
from router.store.etcd import EtcdStore, connect_etcd
from router.store.memory import MemoryStore
from router.store.model import Listing, Store, StoreUnavailable

pytestmark = pytest.mark.mesh

# Nothing here measures time, unless it says so: this only ends a test that hangs.
PATIENCE_S = 30.0
# etcd grants no shorter one.
TTL_S = 2
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshState]:
    directory = tmp_path_factory.mktemp("store") / "mesh"
    with launcher.running(directory, 1, MeshOptions(only=("etcd",))) as state:
        yield state
    launcher.remove(directory)


def _connect(etcd: MeshState) -> EtcdStore:
    return connect_etcd(etcd.address("etcd"))


@pytest.fixture(params=["etcd", "memory"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    real = request.param == "etcd"
    made: Store = _connect(request.getfixturevalue("etcd")) if real else MemoryStore()
    yield made
    await made.close()


@pytest.fixture
def prefix() -> str:
    """Keys of this test alone: the server is shared."""
    return f"/test/{next(_numbers)}/"


async def _until(watch: AsyncIterator[Listing], shows: Callable[[Mapping[str, str]], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        async for listing in watch:
            if shows({key: item.value for key, item in listing.items.items()}):
                return


def _watching(store: Store, prefix: str) -> Any:
    """The watch, closed at the end of the block (both stores' are generators)."""
    return aclosing(cast(Any, store.watch(prefix)))


async def test_what_was_put_is_read_with_its_revision(store: Store, prefix: str) -> None:
    key = prefix + "ключ"
    assert await store.get(key) is None
    revision = await store.commit(expect={}, puts={key: "värde"})
    assert await store.get(key) == (key, "värde", revision)


async def test_a_listing_holds_the_keys_of_its_prefix_and_no_others(
    store: Store, prefix: str
) -> None:
    keys = [prefix + "in/b", prefix + "in/a", prefix + "inside", prefix + "io", prefix + "im"]
    await store.commit(expect={}, puts=dict.fromkeys(keys, "x"))
    assert sorted((await store.list(prefix + "in/")).items) == [prefix + "in/a", prefix + "in/b"]
    assert sorted((await store.list(prefix + "in")).items) == sorted(keys[:3])
    assert (await store.list(prefix + "none")).items == {}


async def test_a_listing_shows_the_revision_of_the_last_write(store: Store, prefix: str) -> None:
    revision = await store.commit(expect={}, puts={prefix + "a": "1"})
    assert (await store.list(prefix)).revision == revision


async def test_a_commit_from_a_stale_revision_writes_nothing(store: Store, prefix: str) -> None:
    one, two = prefix + "1", prefix + "2"
    first = await store.commit(expect={one: 0}, puts={one: "a"})
    assert first is not None
    second = await store.commit(expect={one: first}, puts={one: "b"})
    assert second is not None
    assert second > first
    stale = await store.commit(expect={one: first, two: 0}, puts={one: "c", two: "c"})
    assert stale is None
    assert await store.get(one) == (one, "b", second)
    assert await store.get(two) is None


async def test_zero_expects_absence_also_after_a_deletion(store: Store, prefix: str) -> None:
    key = prefix + "a"
    assert await store.commit(expect={key: 0}, puts={key: "1"}) is not None
    assert await store.commit(expect={key: 0}, puts={key: "2"}) is None
    assert await store.commit(expect={}, puts={}, deletes=[key]) is not None
    assert await store.get(key) is None
    assert await store.commit(expect={key: 0}, puts={key: "3"}) is not None


async def test_puts_and_deletes_are_one_change(store: Store, prefix: str) -> None:
    old, new = prefix + "old", prefix + "new"
    await store.commit(expect={}, puts={old: "x"})
    async with _watching(store, prefix) as watch:
        await _until(watch, lambda seen: seen == {old: "x"})
        await store.commit(
            expect={old: (await _revision(store, old))}, puts={new: "x"}, deletes=[old]
        )
        async with asyncio.timeout(PATIENCE_S):
            assert sorted((await anext(watch)).items) == [new]


async def _revision(store: Store, key: str) -> int:
    item = await store.get(key)
    assert item is not None
    return item.revision


async def test_of_many_concurrent_swaps_one_wins(store: Store, prefix: str) -> None:
    key = prefix + "counter"
    revision = await store.commit(expect={}, puts={key: "0"})
    assert revision is not None
    won = await asyncio.gather(
        *(store.commit(expect={key: revision}, puts={key: str(n)}) for n in range(20))
    )
    assert sum(answer is not None for answer in won) == 1


async def test_a_watch_shows_what_is_there_and_then_each_change(store: Store, prefix: str) -> None:
    key = prefix + "a"
    await store.commit(expect={}, puts={key: "1"})
    async with _watching(store, prefix) as watch:
        async with asyncio.timeout(PATIENCE_S):
            assert (await anext(watch)).items[key].value == "1"
        revision = await store.commit(expect={}, puts={key: "2"})
        async with asyncio.timeout(PATIENCE_S):
            listing = await anext(watch)
        assert listing.items[key] == (key, "2", revision)
        await store.commit(expect={}, puts={}, deletes=[key])
        await _until(watch, lambda seen: not seen)


async def test_a_watch_of_nothing_begins_with_an_empty_listing(store: Store, prefix: str) -> None:
    async with asyncio.timeout(PATIENCE_S), _watching(store, prefix) as watch:
        assert (await anext(watch)).items == {}


async def test_a_watch_is_level_triggered(store: Store, prefix: str) -> None:
    """A consumer that was busy ends with the last state, whatever came between."""
    async with _watching(store, prefix) as watch:
        await _until(watch, lambda seen: not seen)
        for n in range(50):
            await store.commit(expect={}, puts={prefix + str(n % 7): str(n)})
        last = {prefix + str(n % 7): str(n) for n in range(43, 50)}
        await _until(watch, lambda seen: seen == last)


async def test_a_watch_is_quiet_about_other_prefixes(store: Store, prefix: str) -> None:
    async with _watching(store, prefix + "mine/") as watch:
        await _until(watch, lambda seen: not seen)
        await store.commit(expect={}, puts={prefix + "other": "x"})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await anext(watch)


async def test_keys_of_a_lease_vanish_when_nobody_refreshes_it(store: Store, prefix: str) -> None:
    key, lasting = prefix + "leased", prefix + "lasting"
    lease = await store.lease(TTL_S)
    await store.commit(expect={}, puts={key: "x"}, lease=lease)
    await store.commit(expect={}, puts={lasting: "x"})
    async with _watching(store, prefix) as watch:
        await _until(watch, lambda seen: len(seen) == 2)
        await _until(watch, lambda seen: seen == {lasting: "x"})
    assert await lease.refresh() is False
    assert await lease.refresh() is False


async def test_a_refreshed_lease_outlives_its_time(store: Store, prefix: str) -> None:
    key = prefix + "leased"
    lease = await store.lease(TTL_S)
    await store.commit(expect={}, puts={key: "x"}, lease=lease)
    until = time.monotonic() + 2 * lease.ttl_s
    while time.monotonic() < until:
        assert await lease.refresh() is True
        assert await store.get(key) is not None
        await asyncio.sleep(lease.ttl_s / 4)


async def test_a_revoked_lease_takes_its_keys_along_at_once(store: Store, prefix: str) -> None:
    lease = await store.lease(3600)
    await store.commit(expect={}, puts={prefix + "a": "x", prefix + "b": "x"}, lease=lease)
    await lease.revoke()
    await lease.revoke()
    assert (await store.list(prefix)).items == {}
    assert await lease.refresh() is False


async def test_a_key_put_under_a_new_lease_leaves_the_old_one(store: Store, prefix: str) -> None:
    """A cell that registers anew is not taken away when its former lease ends."""
    key = prefix + "a"
    old, new = await store.lease(3600), await store.lease(3600)
    await store.commit(expect={}, puts={key: "1"}, lease=old)
    await store.commit(expect={}, puts={key: "2"}, lease=new)
    await old.revoke()
    assert await store.get(key) is not None
    await store.commit(expect={}, puts={key: "3"})
    await new.revoke()
    assert await store.get(key) is not None


async def test_nothing_is_put_under_a_lease_that_has_ended(store: Store, prefix: str) -> None:
    lease = await store.lease(3600)
    await lease.revoke()
    with pytest.raises(StoreUnavailable):
        await store.commit(expect={}, puts={prefix + "a": "x"}, lease=lease)
    assert await store.get(prefix + "a") is None


async def test_a_closed_store_answers_nobody_and_ends_its_watches(
    store: Store, prefix: str
) -> None:
    async with _watching(store, prefix) as watch:
        await _until(watch, lambda seen: not seen)
        await store.close()
        with pytest.raises(StoreUnavailable):
            await store.get(prefix)
        with pytest.raises(StoreUnavailable):
            async with asyncio.timeout(PATIENCE_S):
                await anext(watch)


async def test_a_listing_may_be_larger_than_a_message(etcd: MeshState, prefix: str) -> None:
    """gRPC refuses answers over 4 MB by default; operations' records outgrow that."""
    store = _connect(etcd)
    for n in range(6):
        await store.commit(expect={}, puts={f"{prefix}{n}": "x" * 1_000_000})
    assert len((await store.list(prefix)).items) == 6
    async with _watching(store, prefix) as watch:
        await _until(watch, lambda seen: len(seen) == 6)
    await store.close()


async def test_a_watch_outlives_a_killed_etcd(etcd: MeshState, prefix: str) -> None:
    store, other = _connect(etcd), _connect(etcd)
    await store.commit(expect={}, puts={prefix + "kept": "1", prefix + "deleted": "1"})
    async with _watching(store, prefix) as watch:
        await _until(watch, lambda seen: len(seen) == 2)
        await asyncio.to_thread(launcher.kill, etcd.path, "etcd")
        for call in (
            store.get(prefix),
            store.list(prefix),
            store.lease(TTL_S),
            store.commit(expect={}, puts={prefix + "lost": "1"}),
        ):
            with pytest.raises(StoreUnavailable):
                async with asyncio.timeout(PATIENCE_S):
                    await call
        await asyncio.to_thread(launcher.start, etcd.path, "etcd")
        changed = {prefix + "kept": "2", prefix + "new": "1"}
        await _patiently(other, changed, [prefix + "deleted"])
        await _until(watch, lambda seen: seen == changed)
    await store.close()
    await other.close()


async def test_a_lease_outlives_a_killed_etcd(etcd: MeshState, prefix: str) -> None:
    store = _connect(etcd)
    lease = await store.lease(30)
    await store.commit(expect={}, puts={prefix + "a": "x"}, lease=lease)
    await asyncio.to_thread(launcher.kill, etcd.path, "etcd")
    with pytest.raises(StoreUnavailable):
        await lease.refresh()
    await asyncio.to_thread(launcher.start, etcd.path, "etcd")
    await _patiently(store, {prefix + "b": "x"})
    assert await lease.refresh() is True
    assert await store.get(prefix + "a") is not None
    await lease.revoke()
    await store.close()


async def test_an_etcd_that_hangs_is_unavailable_within_seconds(
    etcd: MeshState, prefix: str
) -> None:
    """A stopped process keeps its connections open and says nothing: the deadline must speak."""
    store = _connect(etcd)
    lease = await store.lease(3600)
    async with _watching(store, prefix) as watch:
        await _until(watch, lambda seen: not seen)
        pid = launcher.kill(etcd.path, "etcd", signal.SIGSTOP)
        try:
            for call in (store.get(prefix), lease.refresh()):
                begun = time.monotonic()
                with pytest.raises(StoreUnavailable):
                    await call
                assert time.monotonic() - begun < 5
        finally:
            os.kill(pid, signal.SIGCONT)
        await _patiently(store, {prefix + "a": "x"})
        await _until(watch, lambda seen: seen == {prefix + "a": "x"})
    await store.close()


async def _patiently(store: Store, puts: Mapping[str, str], deletes: Sequence[str] = ()) -> None:
    """Commits as soon as etcd takes it."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await store.commit(expect={}, puts=puts, deletes=deletes)
                return
            except StoreUnavailable:
                await asyncio.sleep(0.05)
