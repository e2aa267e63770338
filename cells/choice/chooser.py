"""Chooses channels in one process: policies, statistics and breakers come together here.

`choose` a decision; for each channel in its order `take` it, ask the bank, `note` the answer; go on
to the next one only if the answer is Verdict.FAILED, or if it could not be taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cells.breakers.board import CLOSED, Board, Breaker
from cells.channels.model import Answer, Verdict
from cells.choice.model import Decision, Facts
from cells.choice.rules import decide, evidence_of, over_quota, works
from cells.choice.statistics import Statistics
from cells.choice.terms import Candidate, Terms, make_terms, terms_of
from router.policies.model import dependency_of_channel
from router.policies.rules import PolicySet

_FAULT = ConnectionError("the channel failed")


class Chooser:
    def __init__(self, board: Board, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds, only ever compared with itself."""
        self.board = board
        self.statistics = Statistics()
        self._clock = clock
        self.terms = make_terms([], {})
        self.statistics.apply(self.terms)
        # Channels whose breakers are not simply closed.
        self._doubtful: set[str] = set()

    def apply(self, policies: PolicySet, cell: str) -> None:
        """After the board has applied them."""
        terms = terms_of(policies, cell)
        if terms.revisions != self.terms.revisions:
            self.use(terms)
        for channel in self.terms.channels:
            self.look_at(channel)

    def use(self, terms: Terms) -> None:
        self.terms = terms
        self.statistics.apply(terms)
        self._doubtful &= terms.channels.keys()

    def breaker(self, channel: str) -> Breaker:
        return self.board.of(dependency_of_channel(channel))

    def look_at(self, channel: str) -> None:
        """Its breaker may have changed."""
        if self.breaker(channel).state == CLOSED:
            self._doubtful.discard(channel)
        else:
            self._doubtful.add(channel)

    def choose(self, facts: Facts) -> Decision:
        away = frozenset(name for name in self._doubtful if self.breaker(name).stops())
        return decide(facts, self.terms, self.statistics.snapshot(facts, self._clock(), away))

    def take(self, facts: Facts, channel: str) -> bool:
        """Counts a request to the channel; False: it may not be asked now after all."""
        candidate = self.terms.field_of(facts).candidates.get(channel)
        if candidate is None or self.breaker(channel).is_open():
            return False
        return self.take_quota(facts, candidate)

    def take_quota(self, facts: Facts, candidate: Candidate) -> bool:
        """Counts a request by this process's own figures; False: it would be one too many."""
        name = candidate.name
        usage = self.statistics.usage(name, facts.currency, facts.at_ms)
        if over_quota(candidate, facts.amount, usage) is not None:
            return False
        self.statistics.count(name, facts.currency, facts.amount, facts.at_ms)
        return True

    def note(self, facts: Facts, channel: str, answer: Answer, latency_ms: float) -> None:
        """How a request ended, as far as was known when its time was up."""
        now_s = self._clock()
        self.statistics.note(facts, channel, evidence_of(answer), latency_ms, now_s)
        if answer.verdict is Verdict.APPROVED:
            self.statistics.settle(channel, facts.currency, facts.amount, facts.at_ms)
        does = works(answer)
        if does is not None:
            self.breaker(channel).note(None if does else _FAULT)
            self.look_at(channel)

    def refresh(self) -> None:
        """To be called about once a second."""
        self.statistics.refresh(self._clock())
