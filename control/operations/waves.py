"""Who takes which slots in the next wave: head-room, spread, percentages. Pure.

Anti-storm: no cell is given more than its declared head-room, nor more in one wave than its
declared surge; what does not fit is left for a later wave.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from control.operations.model import Gate, Operation, Piece, Step, slot_count
from router.slotmap import Move, SlotMap
from router.slots import SLOT_COUNT


@dataclass(frozen=True, slots=True)
class Figures:
    """Payments that a cell answered, by what its clients saw; they add up and subtract."""

    ok: int = 0
    failed: int = 0
    # By duration: bucket n holds what took less than 2^n ms.
    buckets: tuple[int, ...] = ()

    @property
    def samples(self) -> int:
        return self.ok + self.failed

    @property
    def failure_percent(self) -> float:
        return 100 * self.failed / self.samples if self.samples else 0.0

    @property
    def p99_ms(self) -> int:
        """No more than this for 99 of 100, as far as buckets tell."""
        total = sum(self.buckets)
        left = total * 99 / 100
        for number, count in enumerate(self.buckets):
            left -= count
            if left <= 0 < total:
                return 1 << number
        return 0

    def slower_than(self, ms: int) -> int:
        """How many there are in buckets that reach beyond this."""
        return sum(count for n, count in enumerate(self.buckets) if 1 << n > ms)

    def plus(self, other: Figures) -> Figures:
        return self._with(other, 1)

    def minus(self, other: Figures) -> Figures:
        """Never below zero: a process that began anew counts from nothing."""
        return self._with(other, -1)

    def _with(self, other: Figures, sign: int) -> Figures:
        size = max(len(self.buckets), len(other.buckets))
        mine = (*self.buckets, *(0,) * (size - len(self.buckets)))
        theirs = (*other.buckets, *(0,) * (size - len(other.buckets)))
        return Figures(
            max(0, self.ok + sign * other.ok),
            max(0, self.failed + sign * other.failed),
            tuple(max(0, a + sign * b) for a, b in zip(mine, theirs, strict=True)),
        )


@dataclass(frozen=True, slots=True)
class Known:
    """What a plan is made from."""

    slot_map: SlotMap
    preferred: SlotMap
    declared: Collection[str]
    live: Collection[str]
    # Cell → region.
    regions: Mapping[str, str] = field(default_factory=dict)
    # Cell → slots that it can serve; a cell that is not named has no limit.
    capacity: Mapping[str, int] = field(default_factory=dict)
    # Cell → slots that it can take at once.
    surge: Mapping[str, int] = field(default_factory=dict)
    # Cells that are held out: they are given nothing while there are others.
    held: Collection[str] = ()
    # Cell → why it may not be given anything yet, unless somebody insists.
    barred: Mapping[str, str] = field(default_factory=dict)
    # Cells of failovers that wait or are paused: theirs is no new one.
    waiting: Collection[str] = ()

    def room(self, cell: str, *, at_once: bool = True) -> int:
        """Slots that the cell may still be given, in one wave or in all."""
        free = self.capacity.get(cell, SLOT_COUNT) - len(self.slot_map.slots_of(cell))
        surge = self.surge.get(cell, SLOT_COUNT) if at_once else SLOT_COUNT
        return max(0, min(free, surge))


def assign(
    pieces: Iterable[Piece],
    known: Known,
    *,
    force: bool = False,
    slots_max: int = SLOT_COUNT,
    at_once: bool = True,
    emptied: Collection[str] = (),
) -> tuple[Move, ...]:
    """The moves of one wave: as much as fits, in the pieces' order, at most `slots_max` slots.

    `emptied`: cells that earlier waves took slots from; nothing is spread over these either.
    """
    wanted = list(_still_there(pieces, known.slot_map))
    sources = {source for _, source, _ in wanted} | set(emptied)
    room = {cell: known.room(cell, at_once=at_once) for cell in known.live}
    fixed: dict[int, str] = {}
    free: list[int] = []
    for slot, source, target in wanted:
        if len(fixed) + len(free) == slots_max:
            break
        if not target:
            free.append(slot)
        elif room.get(target, 0) > 0 and target != source and (force or target not in known.barred):
            room[target] -= 1
            fixed[slot] = target
    takers = _takers(known, sources)
    shares = _shares(len(free), {cell: room[cell] for cell in takers}, known.slot_map)
    choice = [cell for cell, share in shares.items() for _ in range(share)]
    return _moves({**fixed, **dict(zip(free, choice, strict=False))}, known.slot_map)


def still_to_move(pieces: Iterable[Piece], slot_map: SlotMap) -> int:
    """Slots that are still with the source that they shall leave."""
    return sum(1 for _ in _still_there(pieces, slot_map))


def _still_there(pieces: Iterable[Piece], slot_map: SlotMap) -> Iterable[tuple[int, str, str]]:
    for piece in pieces:
        for slot in range(piece.first, piece.last + 1):
            if slot_map.at(slot).cell == piece.source:
                yield slot, piece.source, piece.target


def _takers(known: Known, sources: Collection[str]) -> list[str]:
    """Cells to spread over; those that are held out only when there is nobody else."""
    living = sorted(set(known.live) & set(known.declared) - set(sources))
    return [cell for cell in living if cell not in known.held] or living


def _shares(count: int, room: Mapping[str, int], slot_map: SlotMap) -> dict[str, int]:
    """Each next slot counts for the least loaded; a receiver's slots lie together."""
    heap = sorted((len(slot_map.slots_of(cell)), cell) for cell in room if room[cell] > 0)
    shares = dict.fromkeys(sorted(room), 0)
    while count > 0 and heap:
        load, cell = heapq.heappop(heap)
        shares[cell] += 1
        count -= 1
        if shares[cell] < room[cell]:
            heapq.heappush(heap, (load + 1, cell))
    return shares


def _moves(targets: Mapping[int, str], slot_map: SlotMap) -> tuple[Move, ...]:
    moves: list[Move] = []
    for slot in sorted(targets):
        owned = slot_map.at(slot)
        move = Move(slot, slot, owned.cell, targets[slot], owned.epoch + 1)
        last = moves[-1] if moves else None
        if last and last.last == slot - 1 and last[2:] == move[2:]:
            moves[-1] = last._replace(last=slot)
        else:
            moves.append(move)
    return tuple(moves)


def by_weights(
    known: Known, weights: Mapping[str, int], *, force: bool = False
) -> tuple[Piece, ...]:
    """The fewest slots to move so that living cells own shares like their weights.

    A cell that is not named weighs 1; one that may not be given anything is left alone. Remainders
    go to the largest fractions, then by name.
    """
    out = set() if force else set(known.barred)
    names = sorted(set(known.live) & set(known.declared) - out)
    weight = {name: weights.get(name, 1) for name in names}
    total = sum(weight.values())
    mine = {name: sorted(known.slot_map.slots_of(name)) for name in names}
    count = sum(len(slots) for slots in mine.values())
    if not total:
        return ()
    quota = {name: count * weight[name] // total for name in names}
    by_fraction = sorted(names, key=lambda name: (-(count * weight[name] % total), name))
    for name in by_fraction[: count - sum(quota.values())]:
        quota[name] += 1
    spare = [(slot, name) for name in names for slot in mine[name][quota[name] :]]
    wanting = [name for name in names for _ in range(quota[name] - len(mine[name]))]
    pieces: list[Piece] = []
    for (slot, source), target in zip(spare, wanting, strict=True):
        last = pieces[-1] if pieces else None
        if last and last.last == slot - 1 and last[2:] == (source, target):
            pieces[-1] = last._replace(last=slot)
        else:
            pieces.append(Piece(slot, slot, source, target))
    return tuple(pieces)


def wave_limit(total: int, moved: int, percents: Iterable[int]) -> int:
    """Slots that the next wave may bring, so that it reaches the next percentage; 0 at the end."""
    reached = (-(-total * percent // 100) for percent in percents)
    return next((wanted - moved for wanted in reached if wanted > moved), 0)


class Verdict(StrEnum):
    """What the gate of a gradual move says, the worst last."""

    PASS = "pass"
    LOOK = "look"
    FAILED_PAYMENTS = "failed payments"
    SLOW_PAYMENTS = "slow payments"
    TARGET_DIED = "the target lost its lease"


# Durations are known by powers of two: the next bucket may be the same by a hair.
_SLOWER_TIMES = 2
# Of twenty payments the slowest is the p99: one or two prove nothing.
_SLOW_MIN = 3


def judge(gate: Gate, seen: Figures, usual: Iterable[Figures], *, soaked: bool) -> Verdict:
    """`seen`: since the wave was published, of the moved slots or of a cell that they went to.
    `usual`: what it is held against; the worst counts, and what has too few payments says nothing.

    A bad wave is stopped at once, a good one passes when its time is over.
    """
    if seen.samples >= gate.samples_min:
        known = [figures for figures in usual if figures.samples >= gate.samples_min]
        failed = max((figures.failure_percent for figures in known), default=0.0)
        p99_ms = max((figures.p99_ms for figures in known), default=0)
        if seen.failure_percent > failed + gate.failure_percent_max:
            return Verdict.FAILED_PAYMENTS
        bound_ms = max(gate.p99_ms_max, _SLOWER_TIMES * p99_ms)
        if seen.p99_ms > bound_ms and seen.slower_than(bound_ms) >= _SLOW_MIN:
            return Verdict.SLOW_PAYMENTS
    return Verdict.PASS if soaked else Verdict.LOOK


@dataclass(frozen=True, slots=True)
class Onward:
    """What follows a wave: the next one's moves, a wait, or the end."""

    step: Step
    moves: tuple[Move, ...]
    note: str


def onward(operation: Operation, known: Known) -> Onward:
    """Of an operation whose wave has been recovered, or that waits."""
    left = still_to_move(operation.rest, known.slot_map)
    done = slot_count(operation.moved)
    if operation.step == Step.RECOVERED:
        done += slot_count(operation.moves)
    limit = SLOT_COUNT
    if operation.percents:
        limit = wave_limit(done + slot_count(operation.rest), done, operation.percents)
    if left == 0 or limit == 0:
        staying = f", {left} slots stay" if left else ""
        return Onward(Step.DONE, (), f"{done} slots moved{staying}")
    emptied = {move.source for move in (*operation.moved, *operation.moves)}
    moves = assign(operation.rest, known, force=operation.force, slots_max=limit, emptied=emptied)
    if not moves:
        return Onward(Step.WAITING, (), f"{left} slots wait for head-room")
    fits = slot_count(moves)
    behind = f", {left - fits} behind them" if left > fits else ""
    return Onward(Step.PLANNED, moves, f"{fits} slots{behind}")
