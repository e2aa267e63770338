"""The ledger's transaction over rows in memory: what the database does for it, and no more.

It loads only what the commands ask for and checks what the database would refuse (a key that is
there already) or, worse, would not notice (a row written over that nobody had read).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cells.accounts.tables import MOVEMENTS
from cells.charges.tables import CHARGE_REFUNDS, CHARGES
from cells.ledger.book import Book
from cells.ledger.model import Account, Command, Entry, EventBatch, Key, Outcome
from cells.ledger.records import RecordType
from cells.ledger.store import _first_keys, _second_keys, decide
from cells.ledger.tables import ACCOUNTS, ENTRIES, IDEMPOTENCY, OUTBOX
from cells.payments.tables import PAYMENTS, REFUNDS
from cells.payouts.tables import PAYOUTS
from cells.transfers.tables import BRANCHES, TRANSFERS

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Owner(NamedTuple):
    cell: str
    epoch: int


class MemoryStore:
    """Rows by table and (slot, ID). Slots without an owner in `owners` belong to nobody."""

    def __init__(self, owners: dict[int, Owner]) -> None:
        self.owners = owners
        self.now = NOW
        self.rows: dict[RecordType[Any], dict[tuple[int, str], tuple[Any, ...]]] = {}
        self.entries: dict[tuple[int, str, int], Entry] = {}
        self.events: dict[str, dict[str, Any]] = {}

    def commit(self, cell: str, commands: Sequence[Command]) -> list[Outcome]:
        slots = {command.slot for command in commands}
        for command in commands:
            slots.update(command.other_slots())
        owned = {slot: self.owners[slot] for slot in slots if slot in self.owners}
        book = Book({slot: it.epoch for slot, it in owned.items() if it.cell == cell}, self.now)
        read: set[tuple[RecordType[Any], int, str]] = set()
        self._load(book, read, _first_keys(commands))
        self._load(book, read, _second_keys(commands, book))
        outcomes = [decide(book, command) for command in commands]
        self._apply(book, read)
        return outcomes

    def _load(
        self, book: Book, read: set[tuple[RecordType[Any], int, str]], keys: Iterable[Key]
    ) -> None:
        for record, slot, identifier in list(keys):
            read.add((record, slot, identifier))
            row = self.rows.get(record, {}).get((slot, identifier))
            if row is not None and book.get(record, identifier) is None:
                book.load(record, [row])

    def _apply(self, book: Book, read: set[tuple[RecordType[Any], int, str]]) -> None:
        for record, rows, _ in book.changes():
            assert len({row[1] for row in rows}) == len(rows) or record in {ENTRIES, OUTBOX}
            for row in rows:
                assert row[0] in book.epochs, f"{record}: slot {row[0]} was not fenced"
                if record is ENTRIES:
                    entry = Entry(*row)
                    assert entry[:3] not in self.entries, "an entry's key exists"
                    self.entries[entry[:3]] = entry
                elif record is OUTBOX:
                    self._tell(EventBatch(*row))
                else:
                    self._put(record, row, read)

    def _tell(self, batch: EventBatch) -> None:
        lines = [json.loads(line) for line in batch.lines.split("\n")]
        assert batch.events == len(lines) > 0
        assert batch.batch_id == lines[0]["id"]
        for line in lines:
            assert line["id"] not in self.events, "an event is told twice"
            assert line["type"] == batch.type
            self.events[line["id"]] = line

    def _put(
        self,
        record: RecordType[Any],
        row: tuple[Any, ...],
        read: set[tuple[RecordType[Any], int, str]],
    ) -> None:
        table = self.rows.setdefault(record, {})
        known = row[:2] in table
        assert not (known and record is IDEMPOTENCY), "an idempotency record changed"
        assert not known or (record, *row[:2]) in read, f"{record} {row[1]}: written unread"
        if known:
            # What an UPDATE does not send may not change.
            before = table[row[0], row[1]]
            for number, name in enumerate(record.fields):
                assert name in record.changes or row[number] == before[number], (record, name)
        table[row[0], row[1]] = row

    def all(self, record: RecordType[Any]) -> list[Any]:
        return list(self.rows.get(record, {}).values())

    def get(self, record: RecordType[Any], slot: int, identifier: str) -> Any:
        return self.rows.get(record, {}).get((slot, identifier))

    def snapshot(self) -> Any:
        tables = {record.name: dict(rows) for record, rows in self.rows.items() if rows}
        return tables, dict(self.entries), dict(self.events)

    def get_account(self, user_id: str) -> Account:
        """A user's only account."""
        (account,) = (it for it in self.by_purpose("balance") if it.user_id == user_id)
        return account

    def by_purpose(self, purpose: str) -> list[Account]:
        return [account for account in self.all(ACCOUNTS) if account.purpose == purpose]


def check_books(store: MemoryStore) -> None:
    """Invariant 1, and what holds and promises must be, from the rows alone."""
    entered: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    postings: Counter[str] = Counter()
    for entry in sorted(store.entries.values(), key=lambda entry: entry[:3]):
        entered[entry.account_id] += entry.amount
        counted[entry.account_id] += 1
        postings[entry.posting_id] += entry.amount
        assert entry.sequence == counted[entry.account_id]
        assert entry.balance_after == entered[entry.account_id]
    assert not any(postings.values())

    held: Counter[str] = Counter()
    promised: Counter[str] = Counter()
    reserved: Counter[tuple[int, str, str]] = Counter()
    for transfer in store.all(TRANSFERS):
        held[transfer.payer_account_id] += transfer.amount if transfer.state == "trying" else 0
    for branch in store.all(BRANCHES):
        promised[branch.payee_account_id] += branch.amount if branch.state == "tried" else 0
    people = {
        (account.user_id, account.currency): account.account_id
        for account in store.by_purpose("balance")
    }
    for refund in store.all(REFUNDS):
        if refund.state == "pending":
            promised[people[refund.payer_id, refund.currency]] += refund.amount
            reserved[refund.slot, refund.merchant_id, refund.currency] += refund.amount
    _promise_with_banks(store, people, held, promised)
    for account in store.all(ACCOUNTS):
        assert account.balance == entered[account.account_id]
        assert account.sequence == counted[account.account_id]
        assert account.held == held[account.account_id]
        assert account.promised == promised[account.account_id]
        collects = account.purpose == "collection"
        due = reserved[account.slot, account.user_id, account.currency] if collects else 0
        assert account.reserved == due
        if collects or account.purpose == "balance":
            assert account.balance - account.held >= 0
    assert sum(entered.values()) == 0
    moved = sum(
        move.amount if move.direction == "in" else -move.amount for move in store.all(MOVEMENTS)
    )
    assert sum(account.balance for account in store.by_purpose("external")) == -moved
    for payment in store.all(PAYMENTS):
        refunds = [item for item in store.all(REFUNDS) if item.payment_id == payment.payment_id]
        taken = sum(refund.amount for refund in refunds if refund.state != "failed")
        assert payment.refunded == taken <= payment.amount


def _promise_with_banks(
    store: MemoryStore,
    people: dict[tuple[str, str], str],
    held: Counter[str],
    promised: Counter[str],
) -> None:
    for charge in store.all(CHARGES):
        if charge.state in {"processing", "reversing"}:
            promised[people[charge.user_id, charge.currency]] += charge.amount
        refunds = [it for it in store.all(CHARGE_REFUNDS) if it.charge_id == charge.charge_id]
        taken = sum(refund.amount for refund in refunds if refund.state != "failed")
        assert charge.refunded == taken <= charge.amount
    for going in (*store.all(CHARGE_REFUNDS), *store.all(PAYOUTS)):
        if going.state in {"held", "sending"}:
            held[people[going.user_id, going.currency]] += going.amount
