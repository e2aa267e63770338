"""How often each rule matched, in this process since its start: what an operator looks at before a
rule leaves the shadow, and after it is live."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from prometheus_client.metrics_core import Metric

from router.metrics import counter
from router.risk.model import Decision, Mode


class Hits:
    """Noted in the path of a payment; read when somebody scrapes."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, Mode]] = Counter()

    def note(self, decision: Decision) -> None:
        for hit in decision.hits:
            self._counts[hit.rule, Mode.SHADOW if hit.shadow else Mode.LIVE] += 1

    def keep(self, rules: Collection[str]) -> None:
        """The others are no more: names would gather for ever."""
        for rule, mode in [key for key in self._counts if key[0] not in rules]:
            del self._counts[rule, mode]

    def __call__(self) -> Iterator[Metric]:
        yield counter(
            "cellpay_risk_rule_hits",
            "Requests that a risk rule matched.",
            [((rule, mode), count) for (rule, mode), count in sorted(self._counts.items())],
            labels=("rule", "mode"),
        )
