"""The models in force, live and in shadow, as the policies have them: swapped without a restart.

    knowledge ──▶ hear ──▶ a thread: unpack, parse, compile ──▶ live, shadows   (both at once)

Whoever scores takes `live` once for a group. What is not changed is not compiled again. A model
that is not valid changes nothing: those in force stay, and `alarm` says why.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import structlog
from prometheus_client.metrics_core import Metric

from cells.risk.drift import Drift
from cells.risk.interface import Score
from cells.risk.knowledge import Knowledge
from cells.risk.model import TreeModel
from router.metrics import gauge
from router.risk.artefact import BrokenModel, ModelMode, RiskModel, text_of
from router.risk.facts import Type, Value
from router.risk.trees import BadModel, parse

log = structlog.get_logger(__name__)


class InForce:
    """A Scorer that watches how what it scores drifts."""

    def __init__(self, model: TreeModel, sha256: str, clock_s: Callable[[], float]) -> None:
        self.version = model.version
        self.sha256 = sha256
        self.model = model
        self.drift = Drift(model.model)
        self._clock_s = clock_s

    def score(self, facts: Sequence[Mapping[str, Value]]) -> Sequence[Score]:
        hour = int(self._clock_s() // 3600)
        found = []
        for item in facts:
            numbers = self.model.numbers(item)
            score = self.model.of(numbers)
            self.drift.note(hour, numbers, score.value)
            found.append(score)
        return found

    def indices(self) -> Iterator[tuple[str, float]]:
        return self.drift.indices(int(self._clock_s() // 3600))


class Scorers:
    """Hears of every knowledge (`Knowing.followers`) and makes its models in `run`."""

    def __init__(self, clock_s: Callable[[], float] = time.time) -> None:
        self._clock_s = clock_s
        self._heard = asyncio.Event()
        self._documents: tuple[RiskModel, ...] = ()
        self._types: Mapping[str, Type] = {}
        self.live: InForce | None = None
        self.shadows: tuple[InForce, ...] = ()
        # Why the last documents are not in force; empty while they are.
        self.alarm = ""
        # Set at the next change, and then replaced.
        self.changed = asyncio.Event()

    def hear(self, knowledge: Knowledge) -> None:
        """At once."""
        if knowledge.models == self._documents and not self.alarm:
            return
        self._documents, self._types = knowledge.models, knowledge.types
        self._heard.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._heard.wait()
            self._heard.clear()
            documents, types = self._documents, self._types
            known = {item.sha256: item for item in (self.live, *self.shadows) if item is not None}
            try:
                made = await asyncio.to_thread(self._made, documents, types, known)
            except (BrokenModel, BadModel) as error:
                # Written past the service. Those in force stay.
                self.alarm = str(error)
                log.error("risk models are not valid and are ignored", why=self.alarm)
                continue
            self.alarm = ""
            self.live = next((item for mode, item in made if mode == ModelMode.LIVE), None)
            self.shadows = tuple(item for mode, item in made if mode == ModelMode.SHADOW)
            log.info(
                "risk models", live=self.live.version if self.live else "",
                shadows=[item.version for item in self.shadows],
            )  # fmt: skip
            self.changed.set()
            self.changed = asyncio.Event()

    def _made(
        self,
        documents: Sequence[RiskModel],
        types: Mapping[str, Type],
        known: Mapping[str, InForce],
    ) -> list[tuple[ModelMode, InForce]]:
        """In a thread. A model that leaves the shadow keeps what is known of its drift."""
        made = []
        for document in documents:
            item = known.get(document.sha256)
            if item is None or item.version != document.version:
                model = parse(text_of(document), types)
                if model.version != document.version:
                    raise BadModel("version", f"the text is that of {model.version}")
                item = InForce(TreeModel(model), document.sha256, self._clock_s)
            made.append((document.mode, item))
        return made

    def __call__(self) -> Iterator[Metric]:
        """For whoever scrapes."""
        in_force = [item for item in (self.live, *self.shadows) if item is not None]
        yield gauge(
            "cellpay_risk_model_psi",
            "Population stability index of the last day against training: scores, inputs.",
            [((item.version, of), index) for item in in_force for of, index in item.indices()],
            labels=("model", "of"),
        )
        yield gauge(
            "cellpay_risk_model_alarm", "1: risk models are not valid.", [((), bool(self.alarm))]
        )
