"""One transaction for a group of commands: fence, load, decide, write, commit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy.ext.asyncio import AsyncEngine

from cells.database import Driver, KeptConnection, commit, transaction
from cells.fencing.store import FencedSession, fence
from cells.ledger.book import Book, Changes
from cells.ledger.model import (
    Accepted,
    Command,
    IdempotencyRecord,
    Key,
    Outcome,
    Reason,
    Refused,
)
from cells.ledger.records import (
    RecordType,
    Write,
    joined,
    load_statement,
    write_arguments,
    write_statement,
)
from cells.ledger.tables import IDEMPOTENCY
from router.tracing.groups import Group
from router.tracing.model import Scope

# Rows of tables without changes, as committed, by database: what cannot change is read once.
_Remembered = dict[RecordType[Any], dict[str, tuple[Any, ...]]]
_remembered: WeakKeyDictionary[AsyncEngine, _Remembered] = WeakKeyDictionary()


async def commit_group(
    source: AsyncEngine | KeptConnection,
    cell: str,
    commands: Sequence[Command],
    scopes: Sequence[Scope | None] = (),
    watch: Group | None = None,
) -> list[Outcome]:
    """Decides the commands in order and commits what they changed, all or nothing.

    `scopes`: each command's place in its trace, which its events carry on. `watch` hears when each
    stage has passed.

    Raises what the database raises; running it again is safe, because every command is idempotent
    by its key or by the state of the row that it changes.
    """
    engine = source.engine if isinstance(source, KeptConnection) else source
    slots = {command.slot for command in commands}
    for command in commands:
        slots.update(command.other_slots())
    async with transaction(source) as driver:
        session, held = await fence(driver, cell, slots)
        passed = watch.passed if watch is not None else _unseen
        passed("fence")
        book = Book(held.epochs, held.now)
        known = _remembered.setdefault(engine, {})
        await _load(driver, book, _first_keys(commands), known)
        await _load(driver, book, _second_keys(commands, book), known)
        passed("load")
        if scopes:
            outcomes = []
            for command, scope in zip(commands, scopes, strict=True):
                book.scope = scope
                outcomes.append(decide(book, command))
        else:
            outcomes = [decide(book, command) for command in commands]
        passed("decide")
        if await _write(session, book):
            passed("write")
            await commit(driver)
        passed("commit")
    return outcomes


def _unseen(stage: str) -> None:
    """Nobody watches."""


def decide(book: Book, command: Command) -> Outcome:
    """One command against the book: its effect is whole, or there is none."""
    if not book.owns(command.slot):
        return Refused(Reason.NOT_OWNER, f"slot {command.slot} is not at home in this cell")
    idempotency = command.idempotency
    if idempotency is not None:
        known = book.get(IDEMPOTENCY, idempotency.idempotency_id)
        if known is not None:
            return _replay(book, command, known)
    book.begin()
    outcome = command.decide(book)
    if isinstance(outcome, Refused):
        if not outcome.kept:
            book.rollback()
    elif idempotency is not None:
        book.put(
            IDEMPOTENCY,
            IdempotencyRecord(
                command.slot, idempotency.idempotency_id, idempotency.method,
                idempotency.request_hash, outcome.resource[1], book.now,
            ),
        )  # fmt: skip
    return outcome


def _replay(book: Book, command: Command, known: IdempotencyRecord) -> Outcome:
    assert command.idempotency is not None
    same = (known.method, known.request_hash) == (
        command.idempotency.method,
        command.idempotency.request_hash,
    )
    if not same:
        return Refused(
            Reason.EXISTS_WITH_DIFFERENT_INPUT,
            "this idempotency key was used before, with other input",
            {"resource": known.resource_id},
        )
    return Accepted(book.get(command.resource_type, known.resource_id), replayed=True)


def _first_keys(commands: Iterable[Command]) -> Iterable[Key]:
    for command in commands:
        if command.idempotency is not None:
            yield Key(IDEMPOTENCY, command.slot, command.idempotency.idempotency_id)
        yield from command.reads()


def _second_keys(commands: Iterable[Command], book: Book) -> Iterable[Key]:
    for command in commands:
        known = (
            book.get(IDEMPOTENCY, command.idempotency.idempotency_id)
            if command.idempotency is not None
            else None
        )
        if known is not None:
            yield Key(command.resource_type, command.slot, known.resource_id)
        else:
            yield from command.accounts(book)


async def _load(driver: Driver, book: Book, keys: Iterable[Key], known: _Remembered) -> None:
    """Loads rows into the book, a statement a table, tables in the order they are first named."""
    wanted: dict[RecordType[Any], dict[str, int]] = {}
    for key in keys:
        wanted.setdefault(key.type, {})[key.id] = key.slot
    for record, ids in wanted.items():
        remembered = known.setdefault(record, {}) if record.cached_max else None
        if remembered:
            book.load(record, [remembered[key] for key in ids if key in remembered])
        new = {
            identifier: slot
            for identifier, slot in ids.items()
            if book.get(record, identifier) is None
        }
        if not new:
            continue
        rows = await driver.fetch(
            load_statement(record), joined(list(new.values())), joined(list(new), "TEXT")
        )
        loaded = [record.row._make(row) for row in rows]
        book.load(record, loaded)
        if remembered is not None:
            if len(remembered) + len(loaded) > record.cached_max:
                remembered.clear()
            remembered.update((row[1], row) for row in loaded)


async def _write(session: FencedSession, book: Book) -> bool:
    """Writes all changes, in one statement unless a table has both; False when there were none."""
    changes = sorted(book.changes(), key=lambda change: (change.record.name, change.fresh))
    # A statement may modify a table only once on CockroachDB: fresh rows of a table that has
    # changed ones too go into a second.
    updated = {change.record for change in changes if not change.fresh}
    second = [change for change in changes if change.fresh and change.record in updated]
    first = [change for change in changes if not (change.fresh and change.record in updated)]
    for part in (first, second):
        if part:
            await _write_part(session, book, part)
    return bool(changes)


async def _write_part(session: FencedSession, book: Book, changes: Sequence[Changes]) -> None:
    arguments: list[Any] = [book.now]
    writes = []
    for change in changes:
        write = Write(change.record, change.fresh)
        writes.append(write)
        arguments += write_arguments(write, change.rows)
    await session.driver.execute(write_statement(tuple(writes)), *arguments)
