"""A commit that many traces share: a lane's group.

Each member's trace shows the wait for the group and the commit itself, with links to the commits in
the other members' traces that are kept, so that one reads who shared a transaction with whom.
"""

from __future__ import annotations

import random
import time
from typing import NamedTuple

LINKS_MAX = 32


class Group:
    """One attempt to commit. It knows its members by numbers only: a reference would be a cycle."""

    __slots__ = ("began", "ended", "kept", "size", "span_id", "stages", "tries")

    def __init__(self, size: int) -> None:
        self.span_id = random.getrandbits(64)
        self.size = size
        self.tries = 0
        self.began = self.ended = 0.0
        # (what ended, when): a stage begins when the one before has ended.
        self.stages: list[tuple[str, float]] = []
        # (trace ID, span ID) of the commits of those members whose traces are kept.
        self.kept: list[tuple[str, int]] = []

    def begin(self) -> None:
        """Again, for another try."""
        self.tries += 1
        self.stages.clear()
        self.began = time.perf_counter()

    def passed(self, stage: str) -> None:
        self.stages.append((stage, time.perf_counter()))

    def end(self) -> None:
        self.ended = time.perf_counter()


class Waited(NamedTuple):
    """A member's part: two spans, if it comes to that."""

    parent_id: int
    queued: float
    group: Group

    @property
    def wait_id(self) -> int:
        return (self.parent_id ^ self.group.span_id ^ 1) or 2

    @property
    def commit_id(self) -> int:
        """Another one for each member, without a number of its own to be drawn."""
        return (self.parent_id ^ self.group.span_id) or 1
