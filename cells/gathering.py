"""Groups grow for a moment before they are taken: lanes commit them, risk judges them."""

from __future__ import annotations

import asyncio
from collections.abc import Sized
from typing import Protocol


class Pace(Protocol):
    """How large a group may be, and how patient whoever takes it is."""

    @property
    def batch_size_max(self) -> int: ...
    @property
    def gather_max_s(self) -> float: ...
    @property
    def gather_step_s(self) -> float: ...


async def gathered(queue: Sized, pace: Pace, *, lone_waits: bool = False) -> None:
    """Lets a group grow while more keeps coming, a few ms at the most.

    Without this, small groups take the processor from the intake that would make them larger, and
    stay small. A lone one waits for nobody, or else for one step.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + pace.gather_max_s
    seen = 0 if lone_waits else 1
    while seen < (waiting := len(queue)) < pace.batch_size_max:
        if loop.time() >= until:
            return
        seen = waiting
        await asyncio.sleep(pace.gather_step_s)
