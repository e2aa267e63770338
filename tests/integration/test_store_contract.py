"""One contract for every store: etcd in earnest, memory in tests."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio

from control.mesh import launcher
from control.mesh.options import MeshOptions
from router.store.etcd import connect_etcd
from router.store.memory import MemoryStore
from router.store.model import Store, StoreUnavailable

ONLY_ETCD = MeshOptions(only=("etcd",))


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    data = tmp_path_factory.mktemp("etcd")
    try:
        with launcher.running(data, 1, ONLY_ETCD) as state:
            yield data, state.address("etcd")
    finally:
        launcher.remove(data)


@pytest_asyncio.fixture(params=["memory", "etcd"])
async def store(request: pytest.FixtureRequest, etcd: tuple[Path, str]) -> AsyncIterator[Store]:
    made: Store = MemoryStore() if request.param == "memory" else connect_etcd(etcd[1])
    for key in (await made.list("/t/")).items:
        await made.commit(expect={}, puts={}, deletes=[key])
    yield made
    await made.close()


async def test_a_commit_is_all_or_nothing_and_compares_revisions(store: Store) -> None:
    first = await store.commit(expect={"/t/a": 0}, puts={"/t/a": "1", "/t/b": "1"})
    assert first is not None
    assert await store.commit(expect={"/t/a": 0}, puts={"/t/a": "2"}) is None
    stale = await store.commit(expect={"/t/a": first, "/t/b": 0}, puts={"/t/a": "2", "/t/c": "2"})
    assert stale is None
    assert set((await store.list("/t/")).items) == {"/t/a", "/t/b"}
    second = await store.commit(expect={"/t/a": first}, puts={"/t/a": "2"}, deletes=["/t/b"])
    assert second is not None
    assert second > first
    item = await store.get("/t/a")
    assert item is not None
    assert (item.value, item.revision) == ("2", second)
    assert await store.get("/t/b") is None


async def test_of_two_racing_commits_one_wins(store: Store) -> None:
    results = await asyncio.gather(
        *(store.commit(expect={"/t/race": 0}, puts={"/t/race": str(n)}) for n in range(8))
    )
    assert sum(result is not None for result in results) == 1


async def test_a_watch_tells_what_is_and_then_each_change(store: Store) -> None:
    await store.commit(expect={}, puts={"/t/a": "1"})
    async with aclosing(store.watch("/t/")) as watch:  # type: ignore[type-var]
        assert {key: item.value for key, item in (await anext(watch)).items.items()} == {
            "/t/a": "1"
        }
        await store.commit(expect={}, puts={"/t/b": "2", "/other": "x"})
        assert set((await anext(watch)).items) == {"/t/a", "/t/b"}
        await store.commit(expect={}, puts={}, deletes=["/t/a"])
        assert set((await anext(watch)).items) == {"/t/b"}


async def test_keys_under_a_lease_vanish_when_it_is_not_refreshed(store: Store) -> None:
    lease = await store.lease(2)
    await store.commit(expect={}, puts={"/t/mine": "1"}, lease=lease)
    for _ in range(4):
        await asyncio.sleep(0.6)
        assert await lease.refresh()
    assert await store.get("/t/mine") is not None
    async with aclosing(store.watch("/t/")) as watch:  # type: ignore[type-var]
        while (await anext(watch)).items:
            pass
    assert not await lease.refresh()


async def test_a_revoked_lease_takes_its_keys_along_at_once(store: Store) -> None:
    lease = await store.lease(60)
    await store.commit(expect={}, puts={"/t/mine": "1"}, lease=lease)
    await lease.revoke()
    assert await store.get("/t/mine") is None


async def test_etcd_dies_comes_back_and_the_watch_shows_what_was_missed(
    etcd: tuple[Path, str],
) -> None:
    data, address = etcd
    store, other = connect_etcd(address), connect_etcd(address)
    await store.commit(expect={}, puts={"/t/a": "before"})
    async with aclosing(store.watch("/t/")) as watch:  # type: ignore[type-var]
        assert (await anext(watch)).items["/t/a"].value == "before"
        launcher.kill(data, "etcd", signal.SIGKILL)
        with pytest.raises(StoreUnavailable):
            await store.get("/t/a")
        await asyncio.to_thread(launcher.start, data, "etcd")
        assert (await other.get("/t/a")) is not None
        await other.commit(expect={}, puts={"/t/a": "after"})
        while (await anext(watch)).items["/t/a"].value != "after":
            pass
    await store.close()
    await other.close()


def test_no_etcd_is_left_behind(etcd: tuple[Path, str]) -> None:
    """The launcher's record is the only etcd of this directory."""
    found = subprocess.run(
        ["pgrep", "-fc", f"etcd.*{etcd[0]}"], capture_output=True, text=True, check=False
    )
    assert int(found.stdout) == 1
