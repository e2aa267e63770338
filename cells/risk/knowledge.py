"""What a process knows of risk: every document in force, compiled, as one immutable value.

    policies ──▶ Knowing.apply ──▶ a thread ──▶ Knowledge ──▶ now, followers
                                     ▲ again when a rule begins or ends

Whoever screens takes `now` once and uses that for all of a request. A set of two thousand rules is
seconds of work: it is done in a thread that lets the event loop go first, and what was compiled
before is not compiled again, so that an edit is in force at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from prometheus_client.metrics_core import Metric

from cells.risk.hits import Hits
from router.metrics import gauge
from router.policies.risk import Rulebook, rulebook_of
from router.policies.rules import PolicySet
from router.risk.artefact import RiskModel
from router.risk.compiling import Compiling
from router.risk.facts import Type
from router.risk.features import FeatureSet
from router.risk.lists import Lists
from router.risk.ruleset import Rules
from router.waiting import heard

log = structlog.get_logger(__name__)

# Between two looks at the clock: a rule's beginning may be weeks ahead, and clocks are set.
_LOOK_INTERVAL_S = 60.0
# After each expression, which takes 1 to 2 ms: whoever waits for the interpreter gets it.
_BREATH_S = 0.0005


def _clock_ms() -> float:
    return time.time() * 1000


@dataclass(frozen=True, slots=True)
class Knowledge:
    rules: Rules
    # Names and types of all facts: `complete(facts, types)` before `rules.decide`.
    types: Mapping[str, Type]
    lists: Lists
    features: FeatureSet
    # By name of their policies; at most one is live.
    models: tuple[RiskModel, ...]
    # The etcd revision of the last change of any risk document; the rules' version too.
    version: int
    # There is no risk document at all: nothing is screened, nothing recorded.
    is_empty: bool = False


def knowledge_of(
    book: Rulebook, now: datetime, compiling: Compiling, clock_ms: Callable[[], float] = _clock_ms
) -> Knowledge:
    """Takes long the first time. Raises BadExpression for what no service of ours let pass."""
    types = book.types()
    rules = Rules(
        book.all_rules(),
        types,
        book.list_names(),
        version=book.version,
        now=now,
        compiling=compiling,
    )
    compiling.forget_unasked()
    return Knowledge(
        rules,
        types,
        Lists(book.lists, clock_ms),
        book.all_features(),
        tuple(model for _, model in sorted(book.models.items())),
        book.version,
        book.is_empty,
    )


class Knowing:
    """Follows the policies (`Policing.followers`) and keeps what they mean for risk."""

    def __init__(self, clock_ms: Callable[[], float] = _clock_ms) -> None:
        self._clock_ms = clock_ms
        self._compiling = Compiling(self._breathe)
        self._book: Rulebook | None = None
        self._heard = asyncio.Event()
        # None until etcd was heard of and what it holds is compiled: nobody knows yet whether there
        # are rules.
        self.now: Knowledge | None = None
        # Why the last documents are not in force; empty while they are.
        self.alarm = ""
        self.hits = Hits()
        # Each hears of every new knowledge, in the event loop.
        self.followers: list[Callable[[Knowledge], None]] = []
        # Set at the next change, and then replaced.
        self.changed = asyncio.Event()

    def apply(self, policies: PolicySet) -> None:
        """At once: what there is to do is done in `run`."""
        book = rulebook_of(policies)
        if book == self._book:
            return
        self._book = book
        self._heard.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            if not await heard(self._heard, self._patience_s()) and not self._is_due():
                continue
            self._heard.clear()
            if self._book is not None:
                await self._make(self._book)

    async def _make(self, book: Rulebook) -> None:
        began = time.monotonic()
        moment = datetime.fromtimestamp(self._clock_ms() / 1000, UTC)
        try:
            if book.is_empty:
                made = knowledge_of(book, moment, Compiling(), self._clock_ms)
            else:
                made = await asyncio.to_thread(
                    knowledge_of, book, moment, self._compiling, self._clock_ms
                )
        except Exception as error:
            # Written past the service. What was in force stays, and payments go on.
            self.alarm = str(error) or type(error).__name__
            log.error("risk documents are not valid and are ignored", why=self.alarm)
            return
        self.alarm = ""
        self.now = made
        self.hits.keep(made.rules.names)
        for follower in self.followers:
            try:
                follower(made)
            except Exception:
                # Whatever an operator wrote must not end a process that carries payments.
                log.exception("knowledge of risk could not be applied")
        log.info(
            "risk", version=made.version, rules=len(made.rules), lists=len(made.lists.names),
            features=len(made.features.features), models=[model.version for model in made.models],
            took_ms=round((time.monotonic() - began) * 1000),
        )  # fmt: skip
        self.changed.set()
        self.changed = asyncio.Event()

    def __call__(self) -> Iterator[Metric]:
        """For whoever scrapes."""
        yield from self.hits()
        version = self.now.version if self.now else 0
        yield gauge("cellpay_risk_version", "Revision of the risk documents.", [((), version)])
        rules = len(self.now.rules) if self.now else 0
        yield gauge("cellpay_risk_rules", "Rules that are evaluated.", [((), rules)])
        alarm = bool(self.alarm)
        yield gauge("cellpay_risk_alarm", "1: risk documents are not valid.", [((), alarm)])

    def _patience_s(self) -> float:
        """Until a rule begins or ends, or until the next look."""
        changes_at = self.now.rules.changes_at if self.now else None
        if changes_at is None:
            return _LOOK_INTERVAL_S
        left = changes_at.timestamp() - self._clock_ms() / 1000
        return min(max(left, 0.0) + 0.001, _LOOK_INTERVAL_S)

    def _is_due(self) -> bool:
        changes_at = self.now.rules.changes_at if self.now else None
        return changes_at is not None and changes_at.timestamp() * 1000 <= self._clock_ms()

    def _breathe(self) -> None:
        """In the thread, after some milliseconds of work: the event loop goes first. Before the
        first knowledge nobody is served, and nothing is to be waited for."""
        if self.now is not None:
            time.sleep(_BREATH_S)
