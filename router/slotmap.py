"""The slot map: who owns which slot at which epoch.

Truth is one JSON document in etcd (one key, so that a change of many slots is one compare-and-set)
and is fenced in the database. Pure: no I/O.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from router.slots import SLOT_COUNT


class Owned(NamedTuple):
    """Slots first..last belong to `cell` at `epoch`."""

    first: int
    last: int
    cell: str
    epoch: int


class Move(NamedTuple):
    """Slots first..last go from `source` to `target`, where they start at `epoch`."""

    first: int
    last: int
    source: str
    target: str
    epoch: int


class StaleMove(ValueError):
    """A move was planned from another map than this one."""


@dataclass(frozen=True)
class SlotMap:
    """All 1024 slots, in order, without gaps; adjacent ranges differ in owner or epoch."""

    ranges: tuple[Owned, ...]

    def __post_init__(self) -> None:
        expected = 0
        for entry in self.ranges:
            if entry.first != expected or entry.last < entry.first or entry.epoch < 1:
                raise ValueError(f"slot map is broken at {entry}")
            expected = entry.last + 1
        if expected != SLOT_COUNT:
            raise ValueError(f"slot map ends at {expected - 1}")

    @cached_property
    def _firsts(self) -> list[int]:
        return [entry.first for entry in self.ranges]

    def at(self, slot: int) -> Owned:
        if not 0 <= slot < SLOT_COUNT:
            raise ValueError(f"slot {slot} is outside 0..{SLOT_COUNT - 1}")
        return self.ranges[bisect_right(self._firsts, slot) - 1]

    def owned_by(self, cell: str) -> tuple[Owned, ...]:
        return tuple(entry for entry in self.ranges if entry.cell == cell)

    def slots_of(self, cell: str) -> frozenset[int]:
        return frozenset(
            slot for entry in self.owned_by(cell) for slot in range(entry.first, entry.last + 1)
        )

    def cells(self) -> frozenset[str]:
        return frozenset(entry.cell for entry in self.ranges)

    def apply(self, moves: Iterable[Move]) -> SlotMap:
        """The map after the moves. Raises StaleMove unless each source owns what it gives.

        Moves already applied (target owns at the move's epoch) are skipped: applying twice is
        applying once.
        """
        owners = [(entry.cell, entry.epoch) for entry in self.ranges for _ in _slots(entry)]
        for move in moves:
            for slot in range(move.first, move.last + 1):
                cell, epoch = owners[slot]
                if (cell, epoch) == (move.target, move.epoch):
                    continue
                if cell != move.source or epoch >= move.epoch:
                    raise StaleMove(f"slot {slot} is {cell}'s at epoch {epoch}; planned: {move}")
                owners[slot] = (move.target, move.epoch)
        return SlotMap(tuple(_merge(owners)))

    def to_json(self) -> str:
        return json.dumps({"ranges": [entry._asdict() for entry in self.ranges]})

    @staticmethod
    def from_json(text: str | bytes) -> SlotMap:
        document = json.loads(text)
        return SlotMap(tuple(Owned(**entry) for entry in document["ranges"]))

    @staticmethod
    def even(cells: Iterable[str]) -> SlotMap:
        """The first map: contiguous, near-equal shares in the given order, epoch 1."""
        names = list(cells)
        if not names:
            raise ValueError("a mesh needs at least one cell")
        owners = [(names[slot * len(names) // SLOT_COUNT], 1) for slot in range(SLOT_COUNT)]
        return SlotMap(tuple(_merge(owners)))


def _slots(entry: Owned) -> range:
    return range(entry.first, entry.last + 1)


def _merge(owners: list[tuple[str, int]]) -> Iterable[Owned]:
    first = 0
    for slot in range(1, SLOT_COUNT + 1):
        if slot == SLOT_COUNT or owners[slot] != owners[first]:
            yield Owned(first, slot - 1, *owners[first])
            first = slot
