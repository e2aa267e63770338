"""The breakers of a process: pybreaker's state machine, tuned and forced by policies.

A breaker that is open spares its dependency and its caller: what would ask it does not, and goes
on as it does while the dependency is away. Payments ask none of these.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pybreaker
import structlog

from router.policies.model import Breakers, Dependency, Forced, checked_dependency

log = structlog.get_logger(__name__)

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half_open"
_NAMES = {
    pybreaker.STATE_CLOSED: CLOSED,
    pybreaker.STATE_OPEN: OPEN,
    pybreaker.STATE_HALF_OPEN: HALF_OPEN,
}


class BreakerOpen(Exception):
    """The dependency is left alone for now."""


class Breaker:
    """Around one dependency: `is_open` or `check` before a call, `note` after it.

    When an open breaker's time is up one call may try; the others wait for how it went. Time is
    monotonic and the trial is ours, for pybreaker goes by the wall clock and lets all of them try.
    """

    def __init__(self, dependency: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.dependency = dependency
        self._clock = clock
        self._settings = Breakers(dependency)
        self._forced: Forced | None = None
        # When an open breaker lets a call try, or a trial that was never noted is given up.
        self._try_at = 0.0
        self._breaker: Any = pybreaker.CircuitBreaker(
            fail_max=self._settings.failures_max,
            name=str(dependency),
            throw_new_error_on_trip=False,
        )

    @property
    def forced(self) -> bool:
        return self._forced is not None

    @property
    def reset_s(self) -> float:
        return self._settings.reset_s

    @property
    def state(self) -> str:
        if self._forced is not None:
            return OPEN if self._forced == Forced.OPEN else CLOSED
        return _NAMES[self._breaker.current_state]

    def tune(self, settings: Breakers) -> None:
        self._settings = settings
        self._breaker.fail_max = settings.failures_max
        if settings.force != self._forced:
            log.warning("a breaker is forced", dependency=self.dependency, to=settings.force)
            self._forced = settings.force
            # What it counted was of another time.
            self._breaker.close()

    def stops(self) -> bool:
        """Whether it leaves the dependency alone now; asking takes no trial."""
        if self._forced is not None:
            return self._forced == Forced.OPEN
        is_closed: bool = self._breaker.current_state == pybreaker.STATE_CLOSED
        return not is_closed and self._clock() < self._try_at

    def open(self) -> None:
        """Somebody else found the dependency away: as if we had."""
        if self._forced is None and self._breaker.current_state != pybreaker.STATE_OPEN:
            self._breaker.open()
            self._try_at = self._clock() + self._settings.reset_s

    def close(self) -> None:
        """Somebody else found it back."""
        if self._forced is None:
            self._breaker.close()

    def is_open(self) -> bool:
        """Whether to leave the dependency alone; False may be the leave to try."""
        if self._forced is not None:
            return self._forced == Forced.OPEN
        if self._breaker.current_state == pybreaker.STATE_CLOSED:
            return False
        now = self._clock()
        if now < self._try_at:
            return True
        self._try_at = now + self._settings.reset_s
        self._breaker.half_open()
        return False

    def check(self) -> None:
        """Raises BreakerOpen."""
        if self.is_open():
            raise BreakerOpen(self.dependency)

    def note(self, error: BaseException | None) -> None:
        """How a call went. That it was not made says nothing, nor does one from before."""
        before = self._breaker.current_state
        if self._forced or isinstance(error, BreakerOpen) or before == pybreaker.STATE_OPEN:
            return
        if error is None:
            self._breaker.call(_nothing)
        else:
            with contextlib.suppress(type(error)):
                self._breaker.call(_raise, error)
        now = self._breaker.current_state
        if now == pybreaker.STATE_OPEN:
            self._try_at = self._clock() + self._settings.reset_s
        if now != before:
            log.warning("a breaker", dependency=self.dependency, state=_NAMES[now])


def _nothing() -> None:
    pass


def _raise(error: BaseException) -> None:
    raise error


class Board:
    """Of every dependency one, and of every channel that is asked for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: Mapping[str, Breakers] = {}
        self._breakers = {str(item): Breaker(item, clock) for item in Dependency}

    def of(self, dependency: str) -> Breaker:
        found = self._breakers.get(dependency)
        if found is None:
            found = Breaker(checked_dependency(dependency), self._clock)
            found.tune(self._said.get(dependency, Breakers(dependency)))
            self._breakers[dependency] = found
        return found

    def apply(self, policies: Sequence[Breakers]) -> None:
        """The last policy of a dependency, by name, holds; without one the defaults do."""
        said = self._said = {item.dependency: item for item in policies}
        for dependency, breaker in self._breakers.items():
            breaker.tune(said.get(dependency, Breakers(dependency)))

    def report(self) -> Mapping[str, tuple[str, bool]]:
        return {str(item): (breaker.state, breaker.forced) for item, breaker in
                self._breakers.items()}  # fmt: skip
