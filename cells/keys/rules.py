"""What may happen to merchants' keys. Pure: commands over the book."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cells.keys.model import TRANSITIONS, KeyEvent, KeyState, MerchantKey
from cells.keys.tables import MERCHANT_KEYS
from cells.ledger.book import Book
from cells.ledger.model import Accepted, Idempotency, Key, Outcome, PlainCommand, Reason, Refused
from router.ids import Kind, derive
from router.signing.model import Algorithm
from router.signing.model import Key as PublicKey

# Of a merchant at once, and with those that have ended, which stay known as ended: so that no one
# fills what every cell and etcd hold.
KEYS_MAX = 16
KEYS_EVER_MAX = 256


def key_id_of(slot: int, merchant_id: str, algorithm: str, public: str) -> str:
    """The same key of the same merchant has one ID. `public`: base 64."""
    return derive(Kind.KEY, slot, merchant_id, algorithm, public)


def public_key_of(row: MerchantKey, public: bytes) -> PublicKey:
    """As verifiers know it. `public`: the row's, decoded."""
    return PublicKey(
        row.key_id, row.merchant_id, Algorithm(row.algorithm), public, row.not_before,
        row.not_after, row.state == KeyState.REVOKED,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RegisterKey(PlainCommand):
    """Whoever registers one that is there finds it, as it is."""

    row: MerchantKey
    idempotency: Idempotency
    resource_type = MERCHANT_KEYS

    @property
    def slot(self) -> int:
        return self.row.slot

    def reads(self) -> Iterable[Key]:
        return (Key(MERCHANT_KEYS, self.slot, self.row.key_id),)

    def decide(self, book: Book) -> Outcome:
        known = book.get(MERCHANT_KEYS, self.row.key_id)
        if known is None:
            row = self.row._replace(
                not_before=self.row.not_before or int(book.now.timestamp()),
                created_at=book.now, touched_at=book.now,
            )  # fmt: skip
            return Accepted(book.put(MERCHANT_KEYS, row))
        if known.state == KeyState.REVOKED:
            return Refused(Reason.MERCHANT_KEY_REVOKED, "this key was revoked: make another")
        return Accepted(known)


@dataclass(frozen=True, slots=True)
class EndKey(PlainCommand):
    """Revokes a key, or says until when it is valid."""

    slot: int
    key_id: str
    event: KeyEvent
    # The merchant who signed the request; empty: it came from inside the mesh.
    signer: str
    reason: str
    not_after: int
    idempotency: Idempotency
    resource_type = MERCHANT_KEYS

    def reads(self) -> Iterable[Key]:
        return (Key(MERCHANT_KEYS, self.slot, self.key_id),)

    def decide(self, book: Book) -> Outcome:
        known = book.get(MERCHANT_KEYS, self.key_id)
        if known is None or (self.signer and self.signer != known.merchant_id):
            return Refused(Reason.MERCHANT_KEY_NOT_FOUND, "there is no such key")
        state = TRANSITIONS[KeyState(known.state)].get(self.event)
        if state is None:
            return Refused(Reason.MERCHANT_KEY_REVOKED, "the key was revoked")
        if known.state == KeyState.REVOKED:
            return Accepted(known)
        changed = known._replace(state=state, version=known.version + 1, touched_at=book.now)
        if self.event == KeyEvent.EXPIRE:
            changed = changed._replace(not_after=self.not_after)
        else:
            changed = changed._replace(reason=self.reason)
        return Accepted(book.put(MERCHANT_KEYS, changed))
