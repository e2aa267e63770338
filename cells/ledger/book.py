"""The book: the rows of one group of commands, in memory, while they are decided.

Keeps invariant 1 while a group runs: every posting sums to zero in one currency, no account falls
below its floor. A broken assertion here is our bug, never a client's: the lane stops (fail-stop).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NamedTuple, Protocol, TypeVar

from cells.ledger.model import (
    MAX_BALANCE_MINOR,
    NO_FLOOR_MINOR,
    Account,
    AccountKind,
    AccountState,
    Entry,
    Event,
    EventBatch,
)
from cells.ledger.records import RecordType
from cells.ledger.tables import ACCOUNTS, ENTRIES, OUTBOX
from router.ids import Purpose

Row = TypeVar("Row", bound=tuple[Any, ...])

# What a NamedTuple's own constructor ends in, without its keywords: a third of the time.
_tuple = tuple.__new__
# A message of JetStream holds 1 MiB at most; an event has some hundreds of bytes.
EVENTS_A_BATCH_MAX = 128


class MoneyBroken(AssertionError):
    """A money invariant would not hold: the process must stop, not one request."""


class Leg(NamedTuple):
    """One side of a posting: what happens to one account."""

    account: Account
    amount: int


class Traced(Protocol):
    """A place in a trace (router/tracing)."""

    @property
    def traceparent(self) -> str: ...


class Changes(NamedTuple):
    """What a table's rows became: rows that are `fresh`, or what was loaded and is another now."""

    record: RecordType[Any]
    rows: list[tuple[Any, ...]]
    fresh: bool


class Book:
    """Rows by table and ID. `epochs` are the slots that this cell owns, under the fence's lock."""

    def __init__(self, epochs: Mapping[int, int], now: datetime) -> None:
        self.epochs = epochs
        self.now = now
        self._time = now.astimezone(UTC).isoformat()
        self._rows: defaultdict[RecordType[Any], dict[str, tuple[Any, ...]]] = defaultdict(dict)
        self._loaded: dict[RecordType[Any], set[str]] = {}
        self._changed: dict[RecordType[Any], dict[str, None]] = {}
        self._undo: list[tuple[RecordType[Any], str, tuple[Any, ...] | None, bool]] = []
        self._entries: list[Entry] = []
        self._events: list[Event] = []
        self._marks = (0, 0)
        # Where the command that is decided now is in its trace: its events carry it on.
        self.scope: Traced | None = None

    def owns(self, slot: int) -> bool:
        return slot in self.epochs

    def load(self, record: RecordType[Any], rows: Iterable[tuple[Any, ...]]) -> None:
        """Takes rows as the database has them."""
        known = self._rows[record]
        loaded = self._loaded.setdefault(record, set())
        for row in rows:
            known[row[1]] = row
            loaded.add(row[1])

    def get(self, record: RecordType[Row], identifier: str) -> Row | None:
        return self._rows[record].get(identifier)  # type: ignore[return-value]

    def put(self, record: RecordType[Row], row: Row) -> Row:
        """Inserts or replaces a row. Its slot must be ours: the pair of the database's fence."""
        if row[0] not in self.epochs:
            raise MoneyBroken(f"{record.name}: slot {row[0]} is not fenced for this cell")
        rows = self._rows[record]
        changed = self._changed.setdefault(record, {})
        identifier = row[1]
        self._undo.append((record, identifier, rows.get(identifier), identifier in changed))
        rows[identifier] = row
        changed[identifier] = None
        return row

    def begin(self) -> None:
        """Starts a command: `rollback` returns to here."""
        self._undo.clear()
        self._marks = (len(self._entries), len(self._events))

    def rollback(self) -> None:
        for record, identifier, before, was_changed in reversed(self._undo):
            if before is None:
                del self._rows[record][identifier]
            else:
                self._rows[record][identifier] = before
            if not was_changed:
                del self._changed[record][identifier]
        self._undo.clear()
        del self._entries[self._marks[0] :]
        del self._events[self._marks[1] :]

    def account(self, account_id: str) -> Account | None:
        return self.get(ACCOUNTS, account_id)

    def system_account(
        self, slot: int, account_id: str, purpose: Purpose, currency: str
    ) -> Account:
        """A clearing or external account: made when first needed, may fall below zero."""
        return self.account(account_id) or self.new_account(
            slot, account_id, f"{purpose}:{slot}", currency, purpose, AccountKind.SYSTEM
        )

    def new_account(
        self,
        slot: int,
        account_id: str,
        user_id: str,
        currency: str,
        purpose: Purpose,
        kind: AccountKind,
    ) -> Account:
        floor = 0 if purpose in {Purpose.BALANCE, Purpose.COLLECTION} else NO_FLOOR_MINOR
        return self.put(
            ACCOUNTS,
            Account(
                slot, account_id, user_id, currency, purpose, kind, AccountState.OPEN,
                0, 0, 0, 0, floor, 0, self.now,
            ),
        )  # fmt: skip

    def change_account(self, account_id: str, **deltas: int) -> Account:
        """Adds to held, promised or reserved."""
        account = self.account(account_id)
        if account is None:
            raise MoneyBroken(f"account {account_id} is not in the book")
        changed = account._replace(
            **{name: getattr(account, name) + delta for name, delta in deltas.items()}
        )
        if min(changed.held, changed.promised, changed.reserved) < 0 or changed.available < 0:
            raise MoneyBroken(f"account {account_id}: promises would break: {deltas}")
        return self.put(ACCOUNTS, changed)

    def post(self, posting_id: str, kind: str, legs: Sequence[Leg]) -> None:
        """Moves money: entries that sum to zero, in one currency."""
        if sum(leg.amount for leg in legs) != 0:
            raise MoneyBroken(f"posting {posting_id} does not sum to zero")
        currency = legs[0].account.currency
        for leg in legs:
            if leg.account.currency != currency:
                raise MoneyBroken(f"posting {posting_id} mixes currencies")
            self._enter(posting_id, kind, leg)

    def _enter(self, posting_id: str, kind: str, leg: Leg) -> None:
        # The dearest lines of a payment's rules: no names, no keywords, no properties.
        amount = leg.amount
        account = self._rows[ACCOUNTS].get(leg.account.account_id)
        if account is None:
            raise MoneyBroken(f"account {leg.account.account_id} is not in the book")
        slot, account_id = account[:2]
        balance, held, promised, reserved, floor, sequence, created_at = account[7:]
        balance += amount
        sequence += 1
        if (amount < 0 and balance - held < floor) or abs(balance) > MAX_BALANCE_MINOR:
            raise MoneyBroken(f"account {account_id}: balance {balance} in {kind}")
        changed = (balance, held, promised, reserved, floor, sequence, created_at)
        self.put(ACCOUNTS, _tuple(Account, account[:7] + changed))
        entry = (
            slot, account_id, sequence, posting_id, kind, amount, balance, self.epochs[slot],
            self.now,
        )  # fmt: skip
        self._entries.append(_tuple(Entry, entry))

    def tell(self, slot: int, event_id: str, type_: str, merchant_id: str, payload: str) -> None:
        """Puts an event into the outbox, in the same transaction as what it tells of.

        `payload`: a JSON object on one line.
        """
        traced = "" if self.scope is None else f'"traceparent":"{self.scope.traceparent}",'
        # By hand, as json.dumps would write it: it is in the path of every payment.
        line = (
            f'{{"id":"{event_id}","type":"{type_}","slot":{slot},"merchant_id":'
            f'{quoted(merchant_id)},"time":"{self._time}",{traced}"data":{payload}}}'
        )
        self._events.append(Event(slot, event_id, type_, line))

    def changes(self) -> list[Changes]:
        """All that is to be written; a table may come twice, once with its fresh rows."""
        found = []
        for record, changed in self._changed.items():
            loaded = self._loaded.get(record, set())
            rows = self._rows[record]
            fresh = [rows[identifier] for identifier in changed if identifier not in loaded]
            stale = [rows[identifier] for identifier in changed if identifier in loaded]
            if stale:
                found.append(Changes(record, stale, fresh=False))
            if fresh:
                found.append(Changes(record, fresh, fresh=True))
        if self._entries:
            found.append(Changes(ENTRIES, list(self._entries), fresh=True))
        if self._events:
            found.append(Changes(OUTBOX, list(self._batches()), fresh=True))
        return found

    def _batches(self) -> Iterable[EventBatch]:
        by_type: dict[str, list[Event]] = {}
        for event in self._events:
            by_type.setdefault(event.type, []).append(event)
        for type_, events in by_type.items():
            for start in range(0, len(events), EVENTS_A_BATCH_MAX):
                piece = events[start : start + EVENTS_A_BATCH_MAX]
                lines = "\n".join([event.line for event in piece])
                first = piece[0]
                yield EventBatch(first.slot, first.event_id, type_, len(piece), lines, self.now)
