"""How payments end: the acceptance rate, as what merchants feel of a cell.

Plain numbers, for they are in the path of a payment. A repeat that finds its payment counts as
`replayed`: it says nothing new.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.metrics_core import Metric

from cells.ledger.model import Accepted, Outcome, Reason
from router.errors import Refusal
from router.metrics import counter

_RULES = frozenset(Reason) - {Reason.NOT_OWNER}


class PaymentOutcomes:
    """One process's."""

    def __init__(self) -> None:
        # (outcome, reason) → payments.
        self.counts: Counter[tuple[str, str]] = Counter()

    def note(self, outcome: Outcome | Refusal) -> None:
        if isinstance(outcome, Accepted):
            self.counts["replayed" if outcome.replayed else "accepted", ""] += 1
        else:
            self.note_reason(outcome.reason)

    def note_reason(self, reason: str) -> None:
        # What the rules refuse is refused; what the cell could not do has failed.
        self.counts["refused" if reason in _RULES else "failed", reason] += 1

    def __call__(self) -> Iterator[Metric]:
        yield counter(
            "cellpay_payments",
            "Payments by how they ended, and why not well.",
            sorted(self.counts.items()),
            labels=("outcome", "reason"),
        )
