"""What may happen to instruments and to the keys that seal them. Pure: commands over the book.

They never see a number: what is sealed was sealed before, under keys and for a row that a command
finds again under the fence, or refuses. A row is sealed only by a key that is primary in the same
transaction; so once a key is old no row comes to use it, and whoever then finds none may retire it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cells.ledger.book import Book
from cells.ledger.model import Accepted, Idempotency, Key, Outcome, PlainCommand, Reason, Refused
from cells.vault.model import (
    KEY_TRANSITIONS,
    InstrumentState,
    KeyEvent,
    KeyPurpose,
    KeyState,
    Lookup,
    SlotKey,
    StoredInstrument,
    key_id_of,
)
from cells.vault.tables import INSTRUMENTS, KEYS, LOOKUPS

# A card is good to the last day of its month, which ends last at UTC-12.
_LAST_ZONE = timedelta(hours=12)


def is_expired(expires: str, now: datetime) -> bool:
    """Whether the month YYYY-MM is over everywhere; never for what does not expire."""
    return bool(expires) and expires < (now - _LAST_ZONE).strftime("%Y-%m")


def is_due(key: SlotKey, now: datetime, period: timedelta, before: datetime | None) -> bool:
    """Whether a primary key is to be replaced: it is too old, or made before a moment that an
    operator named. A moment that has not come yet replaces nothing: it would for ever."""
    if key.created_at + period <= now:
        return True
    return before is not None and key.created_at < before <= now


def _changed(what: str) -> Refused:
    return Refused(Reason.INSTRUMENT_CHANGED, f"{what}; nothing was executed")


def _not_primary(book: Book, keys: Iterable[str]) -> Refused | None:
    for key_id in keys:
        key = book.get(KEYS, key_id)
        if key is None or key.state != KeyState.PRIMARY:
            return Refused(Reason.KEY_REPLACED, "the key was replaced; nothing was executed")
    return None


def _primary_keys(instrument: StoredInstrument) -> tuple[str, str]:
    return (
        key_id_of(instrument.slot, KeyPurpose.FIELD, instrument.field_key),
        key_id_of(instrument.slot, KeyPurpose.LOOKUP, instrument.lookup_key),
    )


@dataclass(frozen=True, slots=True)
class RegisterInstrument(PlainCommand):
    """A user says a card or account: a new row, or what is said now in place of what was."""

    # As it is to be; `version` is one more than that of the row for which it was sealed.
    instrument: StoredInstrument
    # The number's hashes under every key that may have made one; the instrument's own first.
    lookups: tuple[str, ...]
    idempotency: Idempotency | None
    resource_type = INSTRUMENTS

    @property
    def slot(self) -> int:
        return self.instrument.slot

    def reads(self) -> Iterable[Key]:
        for key_id in _primary_keys(self.instrument):
            yield Key(KEYS, self.slot, key_id)
        for lookup_id in self.lookups:
            yield Key(LOOKUPS, self.slot, lookup_id)

    def accounts(self, book: Book) -> Iterable[Key]:
        known = self._known(book)
        return (Key(INSTRUMENTS, self.slot, known or self.instrument.instrument_id),)

    def _known(self, book: Book) -> str:
        for lookup_id in self.lookups:
            lookup = book.get(LOOKUPS, lookup_id)
            if lookup is not None and lookup.instrument_id:
                return lookup.instrument_id
        return ""

    def decide(self, book: Book) -> Outcome:
        wanted = self.instrument
        if is_expired(wanted.expires, book.now):
            return Refused(Reason.INSTRUMENT_EXPIRED, "the card has expired")
        refused = _not_primary(book, _primary_keys(wanted))
        if refused:
            return refused
        known = book.get(INSTRUMENTS, self._known(book))
        if (known.instrument_id if known else "", known.version if known else 0) != (
            wanted.instrument_id if wanted.version > 1 else "",
            wanted.version - 1,
        ):
            return _changed("the instrument is not what it was")
        _point(book, wanted, known)
        row = wanted._replace(
            created_at=known.created_at if known else book.now, touched_at=book.now
        )
        return Accepted(book.put(INSTRUMENTS, row))


def _point(book: Book, wanted: StoredInstrument, known: StoredInstrument | None) -> None:
    """The hash under the primary key leads to the instrument, and no other hash does."""
    if known is not None and known.lookup_id != wanted.lookup_id:
        old = book.get(LOOKUPS, known.lookup_id)
        if old is not None:
            book.put(LOOKUPS, old._replace(instrument_id=""))
    new = book.get(LOOKUPS, wanted.lookup_id) or Lookup(wanted.slot, wanted.lookup_id, "", book.now)
    book.put(LOOKUPS, new._replace(instrument_id=wanted.instrument_id))


@dataclass(frozen=True, slots=True)
class RemoveInstrument(PlainCommand):
    """Forgets what was sealed; the ID stays. A removed one comes never back."""

    slot: int
    instrument_id: str
    idempotency: Idempotency
    resource_type = INSTRUMENTS

    def reads(self) -> Iterable[Key]:
        return (Key(INSTRUMENTS, self.slot, self.instrument_id),)

    def accounts(self, book: Book) -> Iterable[Key]:
        known = book.get(INSTRUMENTS, self.instrument_id)
        return (Key(LOOKUPS, self.slot, known.lookup_id),) if known else ()

    def decide(self, book: Book) -> Outcome:
        known = book.get(INSTRUMENTS, self.instrument_id)
        if known is None:
            return Refused(Reason.INSTRUMENT_NOT_FOUND, "there is no such instrument")
        if known.state == InstrumentState.REMOVED:
            return Accepted(known)
        lookup = book.get(LOOKUPS, known.lookup_id)
        if lookup is not None:
            book.put(LOOKUPS, lookup._replace(instrument_id=""))
        return Accepted(
            book.put(
                INSTRUMENTS,
                known._replace(
                    state=InstrumentState.REMOVED, bin="", number_sealed="", holder_sealed="",
                    phone_sealed="", identity_sealed="", field_key=0, lookup_key=0, lookup_id="",
                    version=known.version + 1, touched_at=book.now,
                ),
            )
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ResealInstrument(PlainCommand):
    """The same under other keys: a step of their rotation."""

    # As it is to be, sealed for the row whose `version` is one less.
    instrument: StoredInstrument
    # Under the key before.
    lookup_before: str
    idempotency = None
    resource_type = INSTRUMENTS

    @property
    def slot(self) -> int:
        return self.instrument.slot

    def reads(self) -> Iterable[Key]:
        for key_id in _primary_keys(self.instrument):
            yield Key(KEYS, self.slot, key_id)
        yield Key(INSTRUMENTS, self.slot, self.instrument.instrument_id)
        for lookup_id in {self.lookup_before, self.instrument.lookup_id}:
            yield Key(LOOKUPS, self.slot, lookup_id)

    def decide(self, book: Book) -> Outcome:
        wanted = self.instrument
        refused = _not_primary(book, _primary_keys(wanted))
        if refused:
            return refused
        known = book.get(INSTRUMENTS, wanted.instrument_id)
        if known is None or known.version != wanted.version - 1:
            return _changed("the instrument has changed since it was read")
        _point(book, wanted, known)
        return Accepted(book.put(INSTRUMENTS, wanted._replace(touched_at=book.now)))


@dataclass(frozen=True, slots=True)
class AddKey(PlainCommand):
    """A new primary key, in place of the one before. Whoever comes second finds the first's."""

    key: SlotKey
    idempotency = None
    resource_type = KEYS

    @property
    def slot(self) -> int:
        return self.key.slot

    def reads(self) -> Iterable[Key]:
        yield Key(KEYS, self.slot, self.key.key_id)
        if self.key.version > 1:
            yield Key(KEYS, self.slot, self._before)

    @property
    def _before(self) -> str:
        return key_id_of(self.slot, KeyPurpose(self.key.purpose), self.key.version - 1)

    def decide(self, book: Book) -> Outcome:
        known = book.get(KEYS, self.key.key_id)
        if known is not None:
            return Accepted(known, replayed=True)
        if self.key.version > 1:
            refused = _advance(book, self._before, KeyEvent.REPLACE)
            if refused:
                return refused
        row = self.key._replace(state=KeyState.PRIMARY, created_at=book.now, touched_at=book.now)
        return Accepted(book.put(KEYS, row))


@dataclass(frozen=True, slots=True)
class RetireKey(PlainCommand):
    """Destroys what is left of an old key that no row uses."""

    slot: int
    key_id: str
    idempotency = None
    resource_type = KEYS

    def reads(self) -> Iterable[Key]:
        return (Key(KEYS, self.slot, self.key_id),)

    def decide(self, book: Book) -> Outcome:
        refused = _advance(book, self.key_id, KeyEvent.RETIRE)
        return refused or Accepted(book.get(KEYS, self.key_id))


def _advance(book: Book, key_id: str, event: KeyEvent) -> Refused | None:
    key = book.get(KEYS, key_id)
    state = KEY_TRANSITIONS[KeyState(key.state)].get(event) if key else None
    if key is None or state is None:
        return Refused(Reason.KEY_REPLACED, f"the key cannot be {event}d; nothing was executed")
    wrapped = "" if state == KeyState.RETIRED else key.wrapped
    book.put(KEYS, key._replace(state=state, wrapped=wrapped, touched_at=book.now))
    return None


@dataclass(frozen=True, slots=True)
class RewrapKey(PlainCommand):
    """The same key, wrapped by the KMS's key of today."""

    slot: int
    key_id: str
    # Wrapped as it was when it was unwrapped.
    before: str
    wrapped: str
    kms_version: str
    idempotency = None
    resource_type = KEYS

    def reads(self) -> Iterable[Key]:
        return (Key(KEYS, self.slot, self.key_id),)

    def decide(self, book: Book) -> Outcome:
        key = book.get(KEYS, self.key_id)
        if key is None or key.wrapped != self.before:
            return Refused(Reason.KEY_REPLACED, "the key has changed; nothing was executed")
        row = key._replace(wrapped=self.wrapped, kms_version=self.kms_version, touched_at=book.now)
        return Accepted(book.put(KEYS, row))
