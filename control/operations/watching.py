"""Watches what a wave of a gradual move does to payments, and says when it must be taken back.

Held against each other, over the same time: the slots that moved and the cells that they went to on
one side, the cells that they left on the other. Those may have nobody left to pay, so what they
looked like just before counts too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from control.operations.model import Operation
from control.operations.waves import Figures, Known, Verdict, judge


def _nothing(cell: str) -> Figures:
    return Figures()


@dataclass(frozen=True, slots=True)
class Traffic:
    """How payments fare, by cell; the first two ever growing."""

    whole: Callable[[str], Figures] = _nothing
    # Of the slots that the cell was given last.
    newcomers: Callable[[str], Figures] = _nothing
    # Of the last while.
    recent: Callable[[str], Figures] = _nothing


NO_TRAFFIC = Traffic()


@dataclass(frozen=True, slots=True)
class _Wave:
    """Where the figures stood when it was first looked at."""

    key: tuple[str, int]
    since: float
    whole: dict[str, Figures]
    newcomers: dict[str, Figures]
    # Of the sources, before.
    before: tuple[Figures, ...]


class WaveWatch:
    def __init__(self, traffic: Traffic, clock: Callable[[], float] = time.monotonic) -> None:
        self._traffic = traffic
        self._clock = clock
        self._wave: _Wave | None = None

    def verdict(self, operation: Operation, known: Known) -> Verdict:
        """Of the wave that the operation has just made. A controller that takes over begins it
        anew, by its own clock."""
        assert operation.gate is not None
        targets = sorted({move.target for move in operation.moves})
        sources = sorted({move.source for move in operation.moves})
        if any(target not in known.live for target in targets):
            return Verdict.TARGET_DIED
        key = (operation.operation_id, operation.wave)
        if self._wave is None or self._wave.key != key:
            self._wave = self._begin(key, targets, sources)
        wave = self._wave
        whole = {cell: self._traffic.whole(cell).minus(then) for cell, then in wave.whole.items()}
        usual = [*wave.before, *(whole[cell] for cell in sources)]
        seen = [whole[cell] for cell in targets]
        seen += [self._traffic.newcomers(cell).minus(wave.newcomers[cell]) for cell in targets]
        soaked = (self._clock() - wave.since) * 1000 >= operation.gate.soak_ms
        return max(
            (judge(operation.gate, figures, usual, soaked=soaked) for figures in seen),
            key=list(Verdict).index,
        )

    def _begin(self, key: tuple[str, int], targets: list[str], sources: list[str]) -> _Wave:
        traffic = self._traffic
        return _Wave(
            key,
            self._clock(),
            {cell: traffic.whole(cell) for cell in {*targets, *sources}},
            {cell: traffic.newcomers(cell) for cell in targets},
            tuple(traffic.recent(cell) for cell in sources),
        )
