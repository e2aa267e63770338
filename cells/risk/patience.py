"""Small groups while there is time, large ones while there is none.

What a group costs whatever it holds (calls of PostgreSQL and Redis) is ten times what a
request in it costs. A process that has time judges each request at once; one that is busy must not:
it gets most done when a group waits until none is under way and then grows, as a lane's does.

Busy is who lets requests wait before they are taken, though something is there to take them. Large
groups wait by themselves, so small ones are tried again after a while. Pure; time is an argument,
of any clock in seconds.
"""

from __future__ import annotations

# On an idle process a request waits for some 50 µs, on a busy one for some ms.
_BUSY_S = 0.0007
# Of a moving mean: the weight of what is new.
_WEIGHT = 1 / 16
_STAYS_S = 2.0


class Patience:
    def __init__(self) -> None:
        self._mean_s = 0.0
        self._until_s = float("-inf")

    def is_wanted(self, now_s: float) -> bool:
        """Whether the next group is to be a large one."""
        return now_s < self._until_s

    def note(self, waited_s: float, now_s: float) -> None:
        """How long the oldest request of a small group has waited to be taken."""
        self._mean_s += _WEIGHT * (waited_s - self._mean_s)
        if self._mean_s > _BUSY_S:
            self._until_s = now_s + _STAYS_S
            # The next late one shows that nothing has changed, some prompt ones that it has.
            self._mean_s = _BUSY_S
