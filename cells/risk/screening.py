"""The risk engine in the path of a request (step 4 of a payment's walk), between service and lane.

    asked ─▶ group ─▶ orders, accounts, cases ─▶ features ─▶ model ─▶ rules ─▶ verdict ─▶ lane
                                                                         └▶ record

Requests that come together are judged together, like the lanes' groups: one read for all of them.
Nothing waits without a bound. Features that are away are done without, by conservative rules; an
engine that is too slow leaves it to policy what goes on (`fail_open`). Where there is no risk
document at all, a request goes straight to its lane.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import grpc
import structlog

from cells.gathering import gathered
from cells.ledger.model import Accepted, Command, Outcome, Reason
from cells.ledger.worker import Lanes
from cells.requests import timeout_of
from cells.risk.asking import Asked, Whence, seen_by_edge
from cells.risk.cases.model import Bound, CaseKind, CaseState, Conclusion, Factor, Verdict
from cells.risk.cases.rules import Screened, case_id, factor_id
from cells.risk.counts import Figures
from cells.risk.hits import Hits
from cells.risk.interface import Features, FeaturesAway, Scorer
from cells.risk.judging import Judged, facts_of, judged_of, record_of, verdict_of
from cells.risk.knowledge import Knowledge
from cells.risk.lookups import RiskReader
from cells.risk.patience import Patience
from cells.settings import RiskSettings
from router.errors import Refusal
from router.identity import caller_of
from router.risk.artefact import ModelMode
from router.risk.facts import FEATURE_PREFIX, SCORE
from router.risk.model import Action, Decision, Source
from router.risk.record import Record
from router.tracing.current import span

log = structlog.get_logger(__name__)

# After so many decisions the event loop sees to others.
_BREATH = 8
_NO_MODEL = frozenset({str(Source.MODEL)})
_NO_FEATURES = frozenset({str(Source.FEATURES)})


class Records(Protocol):
    """Where decisions are told; never waits."""

    def put(self, record: Record) -> None: ...


class Scoring(Protocol):
    """The models in force."""

    @property
    def live(self) -> Scorer | None: ...

    @property
    def shadows(self) -> Sequence[Scorer]: ...


class Sources(NamedTuple):
    """What a decision is made of."""

    knowledge: Callable[[], Knowledge | None]
    features: Features
    scoring: Scoring
    # Whether policy lets the model be asked now.
    model_is_on: Callable[[], bool]
    hits: Hits


class Opinion(NamedTuple):
    """What came of one request. `record` is told once the request has had its effect, or none."""

    verdict: Verdict
    record: Record | None = None


# Nothing to say: no documents, or a request that the books answer by themselves.
PLAIN = Opinion(Verdict(Conclusion.ALLOW))


@dataclass(slots=True)
class _Pending:
    asked: Asked
    whence: Whence
    knowledge: Knowledge
    future: asyncio.Future[Opinion]
    began: float

    def answer(self, opinion: Opinion) -> None:
        if not self.future.done():
            self.future.set_result(opinion)

    def fail(self) -> None:
        """Judged by nobody: as if it had taken too long."""
        if not self.future.done():
            self.future.set_exception(TimeoutError())

    def give_up(self) -> None:
        """Its caller's deadline has passed. That is no failure of ours, which policy might let
        pass: else whoever wants no judgement would have it by a short deadline."""
        if not self.future.done():
            self.future.set_exception(_too_late())


class Screening:
    def __init__(
        self,
        lanes: Lanes,
        readers: Sequence[RiskReader],
        sources: Sources,
        records: Records,
        settings: RiskSettings,
    ) -> None:
        """`readers`: one for each group that may be under way at once."""
        self._lanes = lanes
        self._readers = readers
        self._sources = sources
        self._records = records
        self._settings = settings
        self._timeout_s = settings.screening_timeout_ms / 1000
        self._queue: deque[_Pending] = deque()
        self._filled = asyncio.Event()
        # One group gathers at a time: two would share what makes one of them large.
        self._gathering = asyncio.Lock()
        self._patience = Patience()
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.figures = Figures()

    async def submit(self, command: Command, asked: Asked, context: Any) -> Outcome:
        """Its outcome, after risk and its lane's commit. Raises Refusal as lanes do."""
        return await self.screened(asked, context).submit(command, timeout_of(context))

    def screened(self, asked: Asked, context: Any) -> ScreenedLanes:
        """Lanes for the one command that is asked for."""
        return ScreenedLanes(self, self._lanes, asked, context)

    async def submit_many(
        self,
        commands: Sequence[Command],
        asked: Sequence[Asked],
        context: Any,
        timeout_s: float | None,
    ) -> Sequence[Outcome | Refusal]:
        """As `Lanes.submit_many`; in bulk, unless settings leave its caller out."""
        if not self.is_on() or self._is_left_out(context):
            return await self._lanes.submit_many(commands, timeout_s)
        opinions: list[Opinion] = []
        # As wide as the groups: more would only wait, and run out of time together.
        width = self._settings.batch_size_max * len(self._readers)
        for start in range(0, len(asked), width):
            piece = asked[start : start + width]
            opinions += await asyncio.gather(*(self.opinion(item, context) for item in piece))
        wrapped = [
            screened_command(command, opinion)
            for command, opinion in zip(commands, opinions, strict=True)
        ]
        outcomes = await self._lanes.submit_many(wrapped, _shorter(timeout_s, context))
        for opinion, outcome in zip(opinions, outcomes, strict=True):
            if not isinstance(outcome, Refusal):
                self.conclude(opinion, outcome)
        return outcomes

    def is_on(self) -> bool:
        """False where there is no risk document. Before anything is known it is on: nobody can
        say that there are no rules."""
        knowledge = self._sources.knowledge()
        return knowledge is None or not knowledge.is_empty

    def _is_left_out(self, context: Any) -> bool:
        callers = self._settings.unscreened_bulk_callers
        if not callers:
            return False
        caller = caller_of(context)
        return caller is not None and caller.spiffe_id in callers

    async def opinion(self, asked: Asked, context: Any) -> Opinion:
        """In bounded time. Raises Refusal when the caller's is over before."""
        knowledge = self._sources.knowledge()
        if knowledge is None:
            return self._overrun(asked, None)
        if knowledge.is_empty:
            return PLAIN
        if len(self._queue) >= self._settings.queue_max:
            return self._overrun(asked, knowledge)
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        future: asyncio.Future[Opinion] = loop.create_future()
        whence = seen_by_edge(asked.whence, context)
        pending = _Pending(asked, whence, knowledge, future, began)
        self._queue.append(pending)
        self._filled.set()
        # Not asyncio.timeout: this is in the path of every payment, and costs a tenth of it.
        left = timeout_of(context)
        if left is not None and left < self._timeout_s:
            late = loop.call_later(left, pending.give_up)
        else:
            late = loop.call_later(self._timeout_s, pending.fail)
        try:
            with span("screening"):
                opinion = await future
        except TimeoutError:
            return self._overrun(asked, knowledge)
        finally:
            late.cancel()
        self.figures.note(asked.operation, opinion.verdict.conclusion, time.monotonic() - began)
        return opinion

    def _overrun(self, asked: Asked, knowledge: Knowledge | None) -> Opinion:
        self.figures.note(asked.operation, Conclusion.UNAVAILABLE, self._timeout_s)
        limits: Mapping[str, int] = {}
        if knowledge is not None:
            limits = knowledge.rules.fail_open.get(asked.operation, {})
        cases = tuple(
            case_id(kind, asked.slot, asked.operation, asked.scope, asked.key) for kind in CaseKind
        )
        bound = Bound(limits, asked.amount, asked.currency, asked.order_id, cases)
        return Opinion(Verdict(Conclusion.UNAVAILABLE, bound=bound))

    def conclude(self, opinion: Opinion, outcome: Outcome) -> None:
        """Tells the decision, once it is known what came of it: what was executed before, or came
        to nothing for the books' reasons, was no event."""
        if opinion.record is None:
            return
        had_effect = isinstance(outcome, Accepted) and not outcome.replayed
        if had_effect or (not isinstance(outcome, Accepted) and outcome.reason in _TOLD):
            self._records.put(opinion.record)

    def runners(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """Each judges one group after the other, for ever."""
        return [_Runner(self, reader).run for reader in self._readers]

    async def run_one(self, reader: RiskReader) -> None:
        """Takes and judges the next group."""
        group = await self._next_group()
        if not group:
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._judge(reader, group)
        except TimeoutError:
            log.warning("risk takes too long", requests=len(group))
        except Exception as error:
            log.warning("risk cannot judge", error=type(error).__name__, requests=len(group))
        finally:
            self._end()
        for pending in group:
            pending.fail()

    async def _next_group(self) -> list[_Pending]:
        """Under way from now on, unless it is empty."""
        async with self._gathering:
            await self._filled.wait()
            now = time.monotonic()
            if self._patience.is_wanted(now):
                await self._idle.wait()
                await gathered(self._queue, self._settings)
                group = self._take()
            else:
                group = self._take()
                if group:
                    self._patience.note(now - group[0].began, now)
            if group:
                self._begin()
            return group

    def _begin(self) -> None:
        self._under_way += 1
        self._idle.clear()

    def _end(self) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._idle.set()

    def _take(self) -> list[_Pending]:
        group: list[_Pending] = []
        while self._queue and len(group) < self._settings.batch_size_max:
            pending = self._queue.popleft()
            # Done: its caller has gone, or waited long enough.
            if not pending.future.done():
                group.append(pending)
        if not self._queue:
            self._filled.clear()
        return group

    async def _judge(self, reader: RiskReader, group: Sequence[_Pending]) -> None:
        # One for the whole group: whoever came in last knows most.
        knowledge = group[-1].knowledge
        found = await reader.requests([pending.asked for pending in group])
        judged: list[tuple[_Pending, Judged]] = []
        for pending, there in zip(group, found, strict=True):
            if there.is_over:
                pending.answer(PLAIN)
            else:
                judged.append((pending, judged_of(pending.asked, pending.whence, there)))
        if not judged:
            return
        items = [item for _, item in judged]
        features, away = await self._features(knowledge, items)
        self._fill(knowledge, items, features)
        without = away | self._score(knowledge, items, away)
        for number, (pending, item) in enumerate(judged, 1):
            try:
                pending.answer(await self._opinion_of(reader, knowledge, item, without))
            except (TimeoutError, asyncio.CancelledError):
                raise
            except Exception:
                # Ours, and this request's alone.
                log.exception("a request could not be judged", operation=item.asked.operation)
                pending.fail()
            if number % _BREATH == 0:
                await asyncio.sleep(0)

    async def _features(
        self, knowledge: Knowledge, items: Sequence[Judged]
    ) -> tuple[Sequence[Mapping[str, int]], frozenset[str]]:
        """Of each, and what there is to be done without."""
        empty: Sequence[Mapping[str, int]] = [{}] * len(items)
        if not knowledge.features.features:
            return empty, frozenset()
        asked = [item.observation for item in items]
        try:
            return await self._sources.features.read(knowledge.features, asked), frozenset()
        except FeaturesAway as error:
            self.figures.features_away += len(items)
            log.info("features are away", why=str(error))
            return empty, _NO_FEATURES

    def _fill(
        self,
        knowledge: Knowledge,
        items: Sequence[Judged],
        features: Sequence[Mapping[str, int]],
    ) -> None:
        names = [(item.name, FEATURE_PREFIX + item.name) for item in knowledge.features.features]
        for item, values in zip(items, features, strict=True):
            item.facts = facts_of(item, {fact: values.get(name, 0) for name, fact in names})

    def _score(
        self, knowledge: Knowledge, items: Sequence[Judged], away: frozenset[str]
    ) -> frozenset[str]:
        """Scores by the model in force and those in shadow; what there is to be done without."""
        scoring = self._sources.scoring
        expected = scoring.live is not None or any(
            model.mode == ModelMode.LIVE for model in knowledge.models
        )
        missing = _NO_MODEL if expected else frozenset[str]()
        if away or not self._sources.model_is_on():
            return missing
        facts = [item.facts for item in items]
        try:
            for shadow in scoring.shadows:
                for item, score in zip(items, shadow.score(facts), strict=True):
                    item.shadows.append((shadow.version, score.value))
            if scoring.live is None:
                return missing
            for item, score in zip(items, scoring.live.score(facts), strict=True):
                item.score = score
                item.facts[SCORE] = score.value
        except Exception:
            log.exception("the model fell over")
            return missing
        return frozenset()

    async def _opinion_of(
        self, reader: RiskReader, knowledge: Knowledge, item: Judged, without: frozenset[str]
    ) -> Opinion:
        decision = knowledge.rules.decide(item.facts, knowledge.lists.contains, without)
        self._sources.hits.note(decision)
        factor = None
        if decision.action == Action.CHALLENGE and item.challenge != CaseState.PASSED:
            factor = await self._factor_of(reader, item)
        live = self._sources.scoring.live
        model = live.version if live is not None and item.score is not None else ""
        verdict = verdict_of(item, decision, factor, model, self._settings)
        return Opinion(verdict, self._record_of(item, decision, verdict, model))

    async def _factor_of(self, reader: RiskReader, item: Judged) -> Factor | None:
        slot = item.asked.slot
        return await reader.factor(slot, factor_id(slot, item.subject.user_id))

    def _record_of(
        self, item: Judged, decision: Decision, verdict: Verdict, model: str
    ) -> Record | None:
        waits = {Conclusion.CHALLENGE: item.challenge, Conclusion.REVIEW: item.review}
        if waits.get(verdict.conclusion) == CaseState.OPEN:
            # It came again while its case is open: that was told.
            return None
        decision_id = verdict.decision.decision_id if verdict.decision else ""
        return record_of(item, decision, verdict.conclusion, decision_id, model)

    async def close(self) -> None:
        for reader in self._readers:
            await reader.close()


def _too_late() -> Refusal:
    return Refusal(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "DEADLINE_EXCEEDED",
        "the deadline passed before risk had judged the request; nothing was executed",
    )


def _shorter(timeout_s: float | None, context: Any) -> float | None:
    """What is left of it once risk has judged."""
    left = timeout_of(context)
    if left is None or timeout_s is None:
        return timeout_s if left is None else left
    return min(timeout_s, left)


_TOLD = frozenset({Reason.RISK_DENIED, Reason.CHALLENGE_REQUIRED, Reason.UNDER_REVIEW})


def screened_command(command: Command, opinion: Opinion) -> Command:
    """Itself, where there is nothing to be looked at in the lane."""
    verdict = opinion.verdict
    if verdict.conclusion == Conclusion.ALLOW and not verdict.uses:
        return command
    return Screened(command, verdict)


@dataclass(frozen=True, slots=True)
class ScreenedLanes:
    """Looks like Lanes to whoever submits one request's command, however often."""

    screening: Screening
    lanes: Lanes
    asked: Asked
    context: Any

    async def submit(self, command: Command, timeout_s: float | None = None) -> Outcome:
        screening = self.screening
        if not screening.is_on():
            return await self.lanes.submit(command, timeout_s)
        opinion = await screening.opinion(self.asked, self.context)
        judged = screened_command(command, opinion)
        outcome = await self.lanes.submit(judged, _shorter(timeout_s, self.context))
        screening.conclude(opinion, outcome)
        return outcome


@dataclass(frozen=True, slots=True)
class _Runner:
    screening: Screening
    reader: RiskReader

    async def run(self) -> None:
        while True:
            await self.screening.run_one(self.reader)
