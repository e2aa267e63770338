"""What a cell's processes feel of their load, and how many of them there shall be."""

from __future__ import annotations

import json
from typing import NamedTuple


class Felt(NamedTuple):
    """One process's load since the look before."""

    # Of one processor.
    cpu_percent: float = 0.0
    # How long a command waits for its group.
    queue_delay_ms: float = 0.0
    # Calls that the gate, or a full lane, refused for load.
    shed_per_s: float = 0.0

    def to_line(self) -> str:
        return json.dumps(self._asdict())

    @staticmethod
    def from_line(line: str) -> Felt:
        """Raises ValueError, TypeError."""
        return Felt(**json.loads(line))


class Size(NamedTuple):
    """Processes that the cell shall have, its first included."""

    workers: int
    # Since when the load has asked for more, or would allow one less (monotonic).
    more_since: float | None = None
    less_since: float | None = None
