"""Slots, IDs and the slot map: what every language must compute alike, and what a move may do."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from router.ids import (
    ALPHABET,
    Kind,
    account_id,
    clearing_account_id,
    collection_account_id,
    derive,
    encode_slot,
    external_account_id,
    kind_of_id,
    mint,
    slot_of_id,
)
from router.minting import mint_now
from router.slotmap import Move, SlotMap, StaleMove
from router.slots import SLOT_COUNT, SlotRange, parse_range, ranges_of, slot_of_user
from tests.make_vectors import PATH, render

SLOTS = st.integers(0, SLOT_COUNT - 1)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x1f"), min_size=1)
CELLS = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=5, unique=True)


def crc32_by_hand(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def number_of(digits: str) -> int:
    number = 0
    for digit in digits:
        number = number * 32 + ALPHABET.index(digit)
    return number


# --- slots and IDs ------------------------------------------------------------------------------


@given(NAMES)
@example("123456789")
@example("🙂")
def test_a_users_slot_is_the_crc_of_its_bytes(user: str) -> None:
    assert slot_of_user(user) == crc32_by_hand(user.encode()) % 1024


def test_the_crc_is_the_ieee_one() -> None:
    assert crc32_by_hand(b"123456789") == 0xCBF43926
    assert slot_of_user("123456789") == 0xCBF43926 % 1024


def test_users_spread_over_the_slots() -> None:
    counts = Counter(slot_of_user(f"user-{number}") for number in range(20 * SLOT_COUNT))
    assert len(counts) == SLOT_COUNT
    assert max(counts.values()) < 3 * 20


@given(st.sampled_from(Kind), SLOTS, st.integers(0, 2**48 - 1), st.integers(0, 2**80 - 1))
def test_a_minted_id_gives_back_all_that_it_was_made_of(
    kind: Kind, slot: int, unix_ms: int, random_80: int
) -> None:
    identifier = mint(kind, slot, unix_ms=unix_ms, random_80=random_80)
    assert len(identifier) == 32
    assert (kind_of_id(identifier), slot_of_id(identifier)) == (kind, slot)
    assert number_of(identifier[6:]) == (unix_ms << 80) | random_80


@given(
    SLOTS, st.tuples(*[st.integers(0, 2**48 - 1)] * 2), st.tuples(*[st.integers(0, 2**80 - 1)] * 2)
)
def test_minted_ids_of_a_slot_sort_by_time(
    slot: int, times: tuple[int, int], randoms: tuple[int, int]
) -> None:
    assume(times[0] != times[1])
    first, second = (
        mint(Kind.PAYMENT, slot, unix_ms=ms, random_80=bits)
        for ms, bits in zip(times, randoms, strict=True)
    )
    assert (first < second) == (times[0] < times[1])


@given(st.sampled_from(Kind), SLOTS, st.lists(NAMES, min_size=1, max_size=3))
def test_a_computed_id_is_the_hash_of_its_parts(kind: Kind, slot: int, parts: list[str]) -> None:
    identifier = derive(kind, slot, *parts)
    assert (kind_of_id(identifier), slot_of_id(identifier)) == (kind, slot)
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    assert number_of(identifier[6:]) == int.from_bytes(digest[:16], "big")


@given(NAMES, NAMES)
def test_parts_are_not_mistaken_for_each_other(one: str, two: str) -> None:
    assert derive(Kind.ACCOUNT, 0, one, two) != derive(Kind.ACCOUNT, 0, one + two)
    with pytest.raises(ValueError, match="separator"):
        derive(Kind.ACCOUNT, 0, f"{one}\x1f{two}")


@given(NAMES, SLOTS)
def test_accounts_lie_where_their_money_is(user: str, slot: int) -> None:
    assert slot_of_id(account_id(user, "USD")) == slot_of_user(user)
    of_slot = [make(slot, "USD") for make in (clearing_account_id, external_account_id)]
    found = [*of_slot, collection_account_id(slot, user, "USD")]
    assert {slot_of_id(identifier) for identifier in found} == {slot}
    assert len({*found, account_id(user, "USD")}) == 4


@given(st.text(max_size=40))
@example("pay_7Z01JDQ6T5R8V3K4M9XWEB2CHN5")
@example("pay_7Z01JDQ6T5R8V3K4M9XWEB2CHN5U")
@example("pay_7z01JDQ6T5R8V3K4M9XWEB2CHN5G")
@example("xxx_7Z01JDQ6T5R8V3K4M9XWEB2CHN5G")
@example("pay_" + "٣" * 28)
def test_what_is_no_id_is_refused(text: str) -> None:
    kind, _, rest = text.partition("_")
    valid = kind in set(Kind) and len(rest) == 28 and all(digit in ALPHABET for digit in rest)
    if valid:
        assert 0 <= slot_of_id(text) < SLOT_COUNT
    else:
        with pytest.raises(ValueError, match=r"ID|digit"):
            slot_of_id(text)


@given(st.integers().filter(lambda slot: not 0 <= slot < SLOT_COUNT))
def test_a_slot_outside_has_no_digits(slot: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        encode_slot(slot)


# --- ranges -------------------------------------------------------------------------------------


@given(st.lists(SLOTS))
def test_ranges_hold_exactly_their_slots_and_are_the_fewest(slots: list[int]) -> None:
    ranges = list(ranges_of(slots))
    assert [slot for piece in ranges for slot in piece.slots()] == sorted(set(slots))
    # Neighbours would have been one range.
    assert all(one.last + 1 < two.first for one, two in itertools.pairwise(ranges))


@given(SLOTS, SLOTS)
def test_a_range_is_read_as_it_is_written(one: int, two: int) -> None:
    piece = SlotRange(min(one, two), max(one, two))
    assert parse_range(str(piece)) == piece
    assert all((slot in piece) == (piece.first <= slot <= piece.last) for slot in (one, two, 0))


@given(st.text(max_size=12))
@example("5-3")
@example("0-1024")
@example("-1")
@example("1-2-3")
@example("²")
def test_a_range_that_is_none_is_refused_in_a_sentence(text: str) -> None:
    first, dash, last = text.partition("-")
    try:
        valid = 0 <= int(first) <= int(last if dash else first) < SLOT_COUNT
    except ValueError:
        valid = False
    if valid:
        assert parse_range(text).slots()
    else:
        with pytest.raises(ValueError, match=re.escape(repr(text))):
            parse_range(text)


# --- the slot map -------------------------------------------------------------------------------


def check(slot_map: SlotMap) -> None:
    """Exact cover: each slot once, in order; neighbours differ."""
    covered = [slot for it in slot_map.ranges for slot in range(it.first, it.last + 1)]
    assert covered == list(range(SLOT_COUNT))
    for one, two in itertools.pairwise(slot_map.ranges):
        assert one[2:] != two[2:]
    assert frozenset().union(*map(slot_map.slots_of, slot_map.cells())) == frozenset(covered)
    assert SlotMap.from_json(slot_map.to_json()) == slot_map


def moves_of(found: SlotMap, give: list[SlotRange], targets: list[str]) -> list[Move]:
    """Of each slot that is given away and is none of a target's already."""
    moves = []
    for slot in (slot for piece in give for slot in piece.slots()):
        owner = found.at(slot)
        if owner.cell not in targets:
            target = targets[slot // 100 % len(targets)]
            moves.append(Move(slot, slot, owner.cell, target, owner.epoch + 1))
    return moves


@st.composite
def slot_maps(draw: st.DrawFn) -> SlotMap:
    """Maps as a few moves leave them behind."""
    found = SlotMap.even(draw(CELLS))
    for _ in range(draw(st.integers(0, 3))):
        give, targets = draw(gifts())
        found = found.apply(moves_of(found, give, targets))
    return found


@st.composite
def gifts(draw: st.DrawFn) -> tuple[list[SlotRange], list[str]]:
    points = sorted(draw(st.lists(SLOTS, min_size=2, max_size=6, unique=True)))
    pairs = zip(points[::2], points[1::2], strict=False)
    return [SlotRange(first, last) for first, last in pairs], draw(CELLS)


@given(CELLS)
def test_the_first_map_is_even(cells: list[str]) -> None:
    slot_map = SlotMap.even(cells)
    check(slot_map)
    sizes = [len(slot_map.slots_of(cell)) for cell in cells]
    assert max(sizes) - min(sizes) <= 1
    assert {it.epoch for it in slot_map.ranges} == {1}
    assert len(slot_map.ranges) == len(cells)


@given(slot_maps(), gifts())
def test_moves_change_exactly_what_they_name_one_epoch_on(
    before: SlotMap, gift: tuple[list[SlotRange], list[str]]
) -> None:
    give, targets = gift
    moves = moves_of(before, give, targets)
    given_away = {slot for piece in give for slot in piece.slots()}
    for target in targets:
        given_away -= before.slots_of(target)
    after = before.apply(moves)
    check(after)
    for slot in range(SLOT_COUNT):
        was, now = before.at(slot), after.at(slot)
        if slot in given_away:
            assert now.cell in targets
            assert now.epoch == was.epoch + 1
        else:
            assert now[2:] == was[2:]


@given(slot_maps(), gifts())
def test_moves_applied_twice_are_applied_once_and_stale_ones_are_refused(
    before: SlotMap, gift: tuple[list[SlotRange], list[str]]
) -> None:
    give, targets = gift
    moves = moves_of(before, give, targets)
    assume(moves)
    after = before.apply(moves)
    assert after.apply(moves) == after
    # Another controller was faster: it gave the same slots to another cell.
    rival = before.apply([move._replace(target="rival") for move in moves])
    with pytest.raises(StaleMove):
        rival.apply(moves)
    # The same from a map that has gone on since.
    later = after.apply(moves_of(after, give, ["rival"]))
    with pytest.raises(StaleMove):
        later.apply(moves)


@given(slot_maps(), SLOTS)
def test_a_move_from_a_cell_that_does_not_own_the_slot_is_refused(
    slot_map: SlotMap, slot: int
) -> None:
    owner = slot_map.at(slot)
    for move in (
        Move(slot, slot, "nobody", "x", owner.epoch + 1),
        Move(slot, slot, owner.cell, "x", owner.epoch),
    ):
        with pytest.raises(StaleMove):
            slot_map.apply([move])


@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 1022)], [(1, 1023)], [(0, 500), (502, 1023)], [(0, 500), (500, 1023)],
        [(0, 1024)], [(500, 1023), (0, 499)], [],
    ],
)  # fmt: skip
def test_a_map_with_a_gap_or_an_overlap_cannot_be(ranges: list[tuple[int, int]]) -> None:
    text = json.dumps(
        {"ranges": [{"first": a, "last": b, "cell": "a", "epoch": 1} for a, b in ranges]}
    )
    with pytest.raises(ValueError, match="slot map"):
        SlotMap.from_json(text)


# --- vectors ------------------------------------------------------------------------------------


def test_the_file_of_vectors_is_what_the_generator_writes() -> None:
    assert PATH.read_text(encoding="utf-8") == render(), "run: python tests/make_vectors.py"


def test_the_vectors_follow_from_the_page_alone() -> None:
    """Recomputed as docs/routing.md says it, without router's functions."""
    vectors = json.loads(PATH.read_text(encoding="utf-8"))
    for user in vectors["users"]:
        data = bytes.fromhex(user["utf8_hex"])
        assert data.decode() == user["user_id"]
        assert user["crc32"] == crc32_by_hand(data)
        assert user["slot"] == user["crc32"] % 1024
    for minted in vectors["minted"]:
        assert minted["id"][:4] == minted["kind"] + "_"
        assert number_of(minted["id"][4:6]) == minted["slot"]
        body = (minted["unix_ms"] << 80) | int(minted["random_80_hex"], 16)
        assert number_of(minted["id"][6:]) == body
    for account in vectors["derived_accounts"]:
        assert number_of(account["id"][4:6]) == account["slot"]
        digest = hashlib.sha256("\x1f".join(account["parts"]).encode()).digest()
        assert number_of(account["id"][6:]) == int.from_bytes(digest[:16], "big")


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_example_in_the_documentation_agrees_with_the_vectors() -> None:
    page = Path(__file__).parents[2] / "docs" / "routing.md"
    code = page.read_text(encoding="utf-8").split("```javascript\n")[1].split("```")[0]
    code += """
const fs = require("fs");
const vectors = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const found = vectors.users.map((user) => slotOfUser(user.user_id) === user.slot);
for (const list of [vectors.minted, vectors.derived_accounts])
  found.push(...list.map((item) => slotOfId(item.id) === item.slot));
console.log(found.length, found.every(Boolean));
"""
    done = subprocess.run(
        ["node", "-", str(PATH)], input=code, capture_output=True, text=True, check=True
    )
    vectors = json.loads(PATH.read_text(encoding="utf-8"))
    assert done.stdout.split() == [str(sum(len(part) for part in vectors.values())), "true"]


@given(st.sampled_from(list(Kind)), st.integers(0, SLOT_COUNT - 1))
def test_an_id_of_now_is_one_that_mint_could_have_made(kind: Kind, slot: int) -> None:
    before = time.time_ns() // 1_000_000
    made = [mint_now(kind, slot) for _ in range(20)]
    after = time.time_ns() // 1_000_000
    assert len(set(made)) == 20
    for identifier in made:
        assert kind_of_id(identifier) == kind
        assert slot_of_id(identifier) == slot
        assert mint(kind, slot, unix_ms=before, random_80=0) <= identifier
        assert identifier <= mint(kind, slot, unix_ms=after, random_80=2**80 - 1)
