"""What a decision asks beside its rules: features of the past, and a model. Each may be away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from router.risk.facts import Value
from router.risk.features import FeatureSet, Observation


class FeaturesAway(Exception):
    """The store of features did not answer in time: conservative rules decide."""


class Features(Protocol):
    """Sums of what happened before; in Redis, or in memory.

    Reading changes nothing. What one process has observed is seen by all within a second.
    """

    async def read(
        self, document: FeatureSet, asked: Sequence[Observation]
    ) -> Sequence[Mapping[str, int]]:
        """For each observation the value of every feature before it, by the feature's name.

        One round trip for all of them. Raises FeaturesAway, in bounded time.
        """


class Score(NamedTuple):
    """From 0 (honest) to 1 (fraud), and what moved it most: (fact, how far), largest first."""

    value: float
    factors: tuple[tuple[str, float], ...] = ()


class Scorer(Protocol):
    """A model in force. Pure and fast: tens of microseconds a request."""

    version: str

    def score(self, facts: Sequence[Mapping[str, Value]]) -> Sequence[Score]:
        """Of requests whose facts are complete (`router.risk.ruleset.complete`)."""
