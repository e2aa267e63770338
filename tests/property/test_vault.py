"""Seals hold, and no order of requests, rotations and crashes makes a row that cannot be opened.

The machine submits commands that were made earlier, for what was true then, as processes of two
cells and a worker that was killed do. The rules are the real ones, and so is the sealing.
"""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cells.ledger.model import Accepted, Idempotency, Outcome, Reason, Refused
from cells.vault.model import (
    Details,
    InstrumentKind,
    InstrumentState,
    KeyPurpose,
    KeyState,
    SealedField,
    SlotKey,
    StoredInstrument,
    key_id_of,
)
from cells.vault.rules import (
    AddKey,
    RegisterInstrument,
    RemoveInstrument,
    ResealInstrument,
    RetireKey,
    RewrapKey,
)
from cells.vault.sealing import (
    DataKey,
    SealBroken,
    lookup_id,
    new_material,
    open_material,
    resealed,
    sealed_as,
    unseal,
)
from cells.vault.tables import INSTRUMENTS, KEYS, LOOKUPS
from router.ids import Kind, mint
from tests.property.memory import MemoryStore, Owner

CELL, SLOT = "here", 7
NOW = datetime(2026, 1, 1, tzinfo=UTC)
_random = itertools.count(1)
KEY = open_material(KeyPurpose.FIELD, 1, new_material(KeyPurpose.FIELD))
FIELDS = [
    "slot", "user_id", "instrument_id", "kind", "scheme", "bank", "expires"
]  # fmt: skip


def new(user_id: str, **fields: Any) -> StoredInstrument:
    identifier = mint(Kind.INSTRUMENT, SLOT, unix_ms=0, random_80=next(_random))
    row = StoredInstrument(
        SLOT, identifier, user_id, "card", InstrumentState.ACTIVE, "visa", "", "", "411111",
        "1111", "2030-07", "", "", "", "", 0, 0, "", 0, NOW, NOW,
    )  # fmt: skip
    return row._replace(**fields)


def changed_in(row: StoredInstrument, field: str, value: Any) -> StoredInstrument:
    return row._replace(**{field: value})


TEXTS = st.text(max_size=64)
DETAILS = st.builds(
    Details,
    st.just(InstrumentKind.CARD),
    user_id=st.sampled_from(["ann", "bob"]),
    number=st.text(min_size=1, max_size=34),
    scheme=st.just("visa"),
    expires=st.just("2030-07"),
    holder=TEXTS,
    phone=TEXTS,
    identity=TEXTS,
)


@given(DETAILS)
def test_what_is_sealed_opens_as_it_was_and_shows_nothing(details: Details) -> None:
    row = sealed_as(KEY, new(details.user_id), details)
    for name in SealedField:
        assert unseal(KEY, row, name) == details.value(name)
        assert bool(row.sealed(name)) == bool(details.value(name))
    assert "number" not in repr(details)


@given(DETAILS, st.sampled_from(list(SealedField)), st.data())
def test_a_seal_with_any_character_changed_is_refused(
    details: Details, name: SealedField, data: st.DataObject
) -> None:
    row = sealed_as(KEY, new(details.user_id), details)
    text = row.sealed(name)
    if not text:
        return
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("ABCabc019+/=é ").filter(lambda new: new != text[place]))
    for changed in (text[:place] + other + text[place + 1 :], text[:place], text[place + 1 :]):
        if changed:
            with pytest.raises(SealBroken):
                unseal(KEY, changed_in(row, f"{name}_sealed", changed), name)


@given(DETAILS, st.sampled_from(FIELDS), st.sampled_from(list(SealedField)))
def test_a_seal_in_another_place_is_refused(
    details: Details, field: str, name: SealedField
) -> None:
    row = sealed_as(KEY, new(details.user_id), details)
    elsewhere = changed_in(row, field, 8 if field == "slot" else "other")
    if row.sealed(name):
        with pytest.raises(SealBroken):
            unseal(KEY, elsewhere, name)
    # Nor does one field open as another.
    other = SealedField.HOLDER if name != SealedField.HOLDER else SealedField.PHONE
    if row.sealed(name):
        with pytest.raises(SealBroken):
            unseal(KEY, changed_in(row, f"{other}_sealed", row.sealed(name)), other)


@given(DETAILS, DETAILS)
def test_the_keyed_hash_finds_the_same_number_of_the_same_user_alone(
    one: Details, other: Details
) -> None:
    key = open_material(KeyPurpose.LOOKUP, 1, new_material(KeyPurpose.LOOKUP))
    same = (one.user_id, one.number) == (other.user_id, other.number)
    assert (lookup_id(key, one) == lookup_id(key, other)) == same
    later = open_material(KeyPurpose.LOOKUP, 2, new_material(KeyPurpose.LOOKUP))
    assert lookup_id(key, one) != lookup_id(later, one)


CARDS = [("ann", "4111111111111111"), ("ann", "378282246310005"), ("bob", "4111111111111111")]


class VaultMachine(RuleBasedStateMachine):
    """A slot's instruments under two users, a worker that rotates, and commands that come late."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore({SLOT: Owner(CELL, 1)})
        self.material: dict[str, bytes] = {}
        # Made of what was true then, and not submitted yet.
        self.late: list[Any] = []
        # (user, number) → the ID that was answered.
        self.answered: dict[tuple[str, str], str] = {}
        # The holder that was said last.
        self.holders: dict[tuple[str, str], str] = {}

    def submit(self, *commands: Any) -> list[Outcome]:
        return self.store.commit(CELL, commands)

    def add(self, purpose: KeyPurpose, version: int) -> AddKey:
        key_id = key_id_of(SLOT, purpose, version)
        # Whoever comes second finds the first's: the material is that of whoever was first.
        material = new_material(purpose)
        wrapped = material.hex()
        return AddKey(
            SlotKey(SLOT, key_id, purpose, version, KeyState.PRIMARY, wrapped, "1", NOW, NOW)
        )

    @initialize()
    def first_keys(self) -> None:
        for purpose in KeyPurpose:
            self.submit(self.add(purpose, 1), self.add(purpose, 1))

    def rows(self, purpose: KeyPurpose, *states: KeyState) -> list[SlotKey]:
        found = [
            row for row in self.store.all(KEYS) if row.purpose == purpose and row.state in states
        ]
        return sorted(found, key=lambda row: -row.version)

    def key(self, purpose: KeyPurpose, version: int) -> DataKey:
        row: SlotKey = self.store.get(KEYS, SLOT, key_id_of(SLOT, purpose, version))
        assert row.state != KeyState.RETIRED, "a row uses a key that is destroyed"
        assert row.wrapped
        return open_material(purpose, version, bytes.fromhex(row.wrapped))

    def primary(self, purpose: KeyPurpose) -> DataKey:
        (row,) = self.rows(purpose, KeyState.PRIMARY)
        return self.key(purpose, row.version)

    def active(self) -> list[StoredInstrument]:
        rows: list[StoredInstrument] = self.store.all(INSTRUMENTS)
        return [row for row in rows if row.state == InstrumentState.ACTIVE]

    def registration(self, user_id: str, number: str, holder: str, key: str) -> RegisterInstrument:
        details = Details(
            InstrumentKind.CARD, user_id, number, "visa", "", "", "2030-07", holder
        )  # fmt: skip
        live = self.rows(KeyPurpose.LOOKUP, KeyState.PRIMARY, KeyState.OLD)
        hashes = [lookup_id(self.key(KeyPurpose.LOOKUP, row.version), details) for row in live]
        known = None
        for digest in hashes:
            lookup = self.store.get(LOOKUPS, SLOT, digest)
            if lookup and lookup.instrument_id:
                known = self.store.get(INSTRUMENTS, SLOT, lookup.instrument_id)
        base = known or new(user_id)
        row = base._replace(
            lookup_key=live[0].version, lookup_id=hashes[0], version=base.version + 1
        )
        sealed = sealed_as(self.primary(KeyPurpose.FIELD), row, details)
        return RegisterInstrument(
            sealed, tuple(hashes), Idempotency(user_id, key, "RegisterCard", b"x") if key else None
        )

    @rule(card=st.sampled_from(CARDS), holder=st.sampled_from(["", "ANN"]), late=st.booleans())
    def register(self, card: tuple[str, str], holder: str, late: bool) -> None:
        command = self.registration(*card, holder, "")
        if late:
            self.late.append((card, holder, command))
            return
        self.check_registered(card, holder, self.submit(command)[0])

    @rule(card=st.sampled_from(CARDS))
    def register_twice_in_a_group(self, card: tuple[str, str]) -> None:
        pair = self.submit(self.registration(*card, "A", ""), self.registration(*card, "B", ""))
        self.check_registered(card, "A", pair[0])
        # The second was made for what the first changed.
        assert isinstance(pair[1], Refused)
        assert pair[1].reason == Reason.INSTRUMENT_CHANGED

    def check_registered(self, card: tuple[str, str], holder: str, outcome: Outcome) -> None:
        assert isinstance(outcome, Accepted), outcome
        identifier = outcome.resource.instrument_id
        assert self.answered.setdefault(card, identifier) == identifier
        self.holders[card] = holder

    @rule(card=st.sampled_from(CARDS))
    def remove(self, card: tuple[str, str]) -> None:
        identifier = self.answered.pop(card, "")
        if identifier:
            command = RemoveInstrument(
                SLOT, identifier, Idempotency(identifier, f"k{next(_random)}", "Remove", b"x")
            )
            (outcome,) = self.submit(command)
            assert isinstance(outcome, Accepted)

    @rule(purpose=st.sampled_from(list(KeyPurpose)), late=st.booleans())
    def replace(self, purpose: KeyPurpose, late: bool) -> None:
        (row,) = self.rows(purpose, KeyState.PRIMARY)
        if len(self.rows(purpose, KeyState.OLD)) < 3:
            self.later(self.add(purpose, row.version + 1), late)

    @rule(late=st.booleans(), data=st.data())
    def reseal_one(self, late: bool, data: st.DataObject) -> None:
        rows = self.active()
        if not rows:
            return
        row = data.draw(st.sampled_from(sorted(rows)))
        before = self.key(KeyPurpose.FIELD, row.field_key)
        lookup = self.primary(KeyPurpose.LOOKUP)
        number = unseal(before, row, SealedField.NUMBER)
        details = Details(InstrumentKind.CARD, row.user_id, number, row.scheme)
        after = resealed(before, self.primary(KeyPurpose.FIELD), row)._replace(
            lookup_key=lookup.version,
            lookup_id=lookup_id(lookup, details),
            version=row.version + 1,
        )
        self.later(ResealInstrument(after, row.lookup_id), late)

    @rule(purpose=st.sampled_from(list(KeyPurpose)), late=st.booleans())
    def retire(self, purpose: KeyPurpose, late: bool) -> None:
        for key in self.rows(purpose, KeyState.OLD):
            used = {row.field_key if purpose == KeyPurpose.FIELD else row.lookup_key
                    for row in self.store.all(INSTRUMENTS)}  # fmt: skip
            if key.version not in used:
                self.later(RetireKey(SLOT, key.key_id), late)

    @rule(purpose=st.sampled_from(list(KeyPurpose)))
    def rewrap(self, purpose: KeyPurpose) -> None:
        (row,) = self.rows(purpose, KeyState.PRIMARY)
        self.submit(RewrapKey(SLOT, row.key_id, row.wrapped, row.wrapped, "2"))

    def later(self, command: Any, late: bool) -> None:
        if late:
            self.late.append((None, "", command))
        else:
            self.submit(command)

    @rule(data=st.data())
    def one_comes_late(self, data: st.DataObject) -> None:
        if not self.late:
            return
        place = data.draw(st.integers(0, len(self.late) - 1))
        card, holder, command = self.late.pop(place)
        (outcome,) = self.submit(command)
        if isinstance(outcome, Refused):
            return
        if card is not None:
            self.check_registered(card, holder, outcome)
        if isinstance(command, RegisterInstrument | ResealInstrument):
            # Else whoever looks whether an old key is used, and retires it, may be too early.
            row = outcome.resource
            assert row.field_key == self.primary(KeyPurpose.FIELD).version
            assert row.lookup_key == self.primary(KeyPurpose.LOOKUP).version

    @invariant()
    def every_active_row_opens_as_it_was_said(self) -> None:
        expected = {
            identifier: (*card, self.holders[card]) for card, identifier in self.answered.items()
        }
        found = {}
        for row in self.active():
            key = self.key(KeyPurpose.FIELD, row.field_key)
            number = unseal(key, row, SealedField.NUMBER)
            holder = unseal(key, row, SealedField.HOLDER)
            found[row.instrument_id] = (row.user_id, number, holder)
        assert found == expected

    @invariant()
    def every_active_row_is_found_by_one_hash_and_no_removed_one_holds_anything(self) -> None:
        leading = {
            row.lookup_id: row.instrument_id for row in self.store.all(LOOKUPS) if row.instrument_id
        }
        assert leading == {row.lookup_id: row.instrument_id for row in self.active()}
        for row in self.store.all(INSTRUMENTS):
            if row.state == InstrumentState.REMOVED:
                assert not any(row.sealed(name) for name in SealedField)
                assert not row.lookup_id
                assert not row.bin

    @invariant()
    def each_purpose_has_one_primary_and_destroyed_keys_hold_nothing(self) -> None:
        for purpose in KeyPurpose:
            if self.store.all(KEYS):
                assert len(self.rows(purpose, KeyState.PRIMARY)) == 1
            assert not any(row.wrapped for row in self.rows(purpose, KeyState.RETIRED))


TestVaultMachine = VaultMachine.TestCase
TestVaultMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
