"""The audit log's chain: whatever is done to a stored log, `verify` sees it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.audit import audit_put, audit_record
from control.chain.rules import Head, verify
from control.chain.store import AUDIT_HEAD_KEY, ChainedStore, verify_audit_log
from router.store.memory import MemoryStore
from router.store.model import AUDIT_PREFIX, Store

Log = dict[str, str]


async def _written(old: int, new: int) -> tuple[Log, Head | None]:
    """A log of records from before the chain, and of links behind them."""
    store = MemoryStore()
    for number in range(old):
        record = audit_record("ann", "old", f"{number}", "why")
        await store.commit(expect={}, puts=audit_put(record))
    chained = ChainedStore(store)
    for number in range(new):
        record = audit_record("bob", "new", f"{number}", "why")
        await chained.commit(expect={}, puts=audit_put(record))
    return await _log(store)


async def _log(store: Store) -> tuple[Log, Head | None]:
    head = await store.get(AUDIT_HEAD_KEY)
    items = (await store.list(AUDIT_PREFIX)).items
    records = {key: item.value for key, item in items.items()}
    return records, Head.from_json(head.value) if head else None


def _log_of(old: int, new: int) -> tuple[Log, Head | None]:
    return asyncio.run(_written(old, new))


def _in_order(log: Log) -> list[str]:
    return sorted(log, key=lambda key: json.loads(log[key])["sequence"])


@given(old=st.integers(0, 4), new=st.integers(0, 6))
def test_a_log_that_nobody_touched_holds(old: int, new: int) -> None:
    log, head = _log_of(old, new)
    verdict = verify(log, head)
    assert verdict.broken is None
    assert (verdict.records, verdict.unchained) == (new, old)


@given(old=st.integers(0, 3), new=st.integers(1, 6), data=st.data())
def test_a_changed_record_is_found(old: int, new: int, data: st.DataObject) -> None:
    log, head = _log_of(old, new)
    key = data.draw(st.sampled_from(sorted(log)))
    name = data.draw(st.sampled_from(["actor", "action", "detail", "reason", "verdict", "time_ms"]))
    document = json.loads(log[key])
    document[name] = 0 if name == "time_ms" else document[name] + "x"
    broken = verify({**log, key: json.dumps(document)}, head).broken
    assert broken is not None
    if json.loads(log[key])["sequence"]:
        assert document["audit_id"] in f"{broken.audit_id} {broken.problem}"


@given(old=st.integers(0, 3), new=st.integers(1, 6), data=st.data())
def test_a_missing_record_is_found(old: int, new: int, data: st.DataObject) -> None:
    log, head = _log_of(old, new)
    gone = data.draw(st.sampled_from(sorted(log)))
    assert verify({key: value for key, value in log.items() if key != gone}, head).broken


@given(old=st.integers(0, 3), new=st.integers(2, 6), data=st.data())
def test_records_in_another_order_are_found(old: int, new: int, data: st.DataObject) -> None:
    """Two links change places, and each says that it stands where it was put."""
    log, head = _log_of(old, new)
    links = _in_order(log)[old:]
    one, two = data.draw(st.lists(st.sampled_from(links), min_size=2, max_size=2, unique=True))
    first, second = json.loads(log[one]), json.loads(log[two])
    for field in ("sequence", "previous"):
        first[field], second[field] = second[field], first[field]
    assert verify({**log, one: json.dumps(first), two: json.dumps(second)}, head).broken


@given(old=st.integers(0, 3), new=st.integers(1, 6), sequence=st.integers(0, 9))
def test_an_added_record_is_found(old: int, new: int, sequence: int) -> None:
    """Whatever place it claims: also that it is from before the chain, or its newest."""
    log, head = _log_of(old, new)
    assert head is not None
    record = audit_record("eve", "added", "", "")._replace(
        sequence=sequence, previous=head.sha256 if sequence > new else "0" * 64
    )
    assert verify({**log, **audit_put(record)}, head).broken


@given(new=st.integers(1, 6), kept=st.integers(0, 5))
def test_a_log_that_was_cut_off_is_found(new: int, kept: int) -> None:
    log, head = _log_of(1, new)
    rest = dict.fromkeys(_in_order(log)[: 1 + min(kept, new - 1)], "")
    assert verify({key: log[key] for key in rest}, head).broken
    assert verify(log, None).broken, "the head is gone"


def test_a_log_that_was_written_anew_whole_is_found_by_a_hash_noted_outside() -> None:
    log, head = _log_of(0, 3)
    other, other_head = _log_of(0, 5)
    assert head is not None
    assert verify(other, other_head).broken is None
    assert verify(other, other_head, head.sha256).broken
    assert verify(log, head, head.sha256).broken is None


@pytest.mark.parametrize("value", ["", "[]", "{}", '{"audit_id": 7}', "not json"])
def test_what_is_no_record_is_named(value: str) -> None:
    log, head = _log_of(0, 2)
    verdict = verify({**log, f"{AUDIT_PREFIX}audit-strange": value}, head)
    assert verdict.broken is not None
    assert verdict.broken.audit_id == "audit-strange"


async def test_writers_at_once_make_one_chain_and_see_no_conflict() -> None:
    store = MemoryStore()
    controllers = [ChainedStore(_Slow(store)) for _ in range(4)]

    async def write(number: int) -> int | None:
        record = audit_record("ann", "race", f"{number}", "why")
        puts = {f"/test/{number}": "done", **audit_put(record)}
        return await controllers[number % 4].commit(expect={f"/test/{number}": 0}, puts=puts)

    revisions = await asyncio.gather(*(write(number) for number in range(40)))
    assert None not in revisions
    verdict = await verify_audit_log(store)
    assert verdict.broken is None
    assert verdict.records == 40


async def test_a_condition_of_the_writer_still_fails_as_its_own() -> None:
    store = MemoryStore()
    chained = ChainedStore(store)
    assert await store.commit(expect={}, puts={"/test/taken": "x"})
    record = audit_record("ann", "race", "", "why")
    puts = {"/test/taken": "y", **audit_put(record)}
    assert await chained.commit(expect={"/test/taken": 0}, puts=puts) is None
    assert (await verify_audit_log(store)).records == 0


class _Slow:
    """Lets others in between a read and the commit that follows it."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def get(self, key: str) -> Any:
        item = await self._store.get(key)
        await asyncio.sleep(0)
        return item
