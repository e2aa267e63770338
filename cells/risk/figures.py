"""What a process tells Prometheus of features and of the stream that they come from."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric

from cells.risk.consumer import Consumer
from cells.risk.stream import Publisher
from router.metrics import counter, gauge


class FeatureMetrics:
    """`consumer`: of the process that counts; the others have none."""

    def __init__(self, publisher: Publisher, consumer: Consumer | None) -> None:
        self._publisher = publisher
        self._consumer = consumer

    def __call__(self) -> Iterator[Metric]:
        publisher = self._publisher
        outcomes = [(("published",), publisher.published), (("dropped",), publisher.dropped)]
        yield counter(
            "cellpay_risk_records",
            "Decisions that went to the stream, and those that never will.",
            outcomes,
            labels=("outcome",),
        )
        yield gauge(
            "cellpay_risk_records_waiting",
            "Decisions on their way to the stream.",
            [((), publisher.waiting)],
        )
        if self._consumer is not None:
            yield counter(
                "cellpay_risk_observations",
                "Observations that features were made of.",
                [((), self._consumer.applied)],
            )
            yield gauge(
                "cellpay_risk_features_behind",
                "Messages of the stream that features do not have yet.",
                [((), self._consumer.behind)],
            )
