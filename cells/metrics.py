"""What a cell tells Prometheus beside its requests: lanes, breakers, degradation, refusals; and, of
the business, what only the database knows, asked when somebody scrapes and at most every few
seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import aiohttp
import structlog
from prometheus_client.metrics_core import Metric
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.ledger.worker import Lanes
from cells.policing import Policing
from router.guard import SlotsHere
from router.metrics import (
    CONTENT_TYPE,
    OPENMETRICS_TYPE,
    Calls,
    Metrics,
    Source,
    counter,
    gauge,
    merged,
)
from router.probes import Probes

log = structlog.get_logger(__name__)

_BUSINESS_AGE_S = 5.0
_BUSINESS_WAIT_S = 2.0
_SIBLING_TIMEOUT = aiohttp.ClientTimeout(total=1.0)
_BREAKER = {"closed": 0, "half_open": 1, "open": 2}
# Of all slots that this cell owns. Each reads a partial index of what is open.
_QUERIES: Mapping[str, tuple[str, str]] = {
    "cellpay_transfers_in_doubt": (
        "Transfers across cells that have not ended.",
        "SELECT count(*) FROM transfers WHERE slot = ANY(:slots)"
        " AND state IN ('trying', 'committing', 'cancelling')",
    ),
    "cellpay_transfers_in_doubt_oldest_seconds": (
        "Age of the oldest transfer that has not ended.",
        "SELECT COALESCE(EXTRACT(EPOCH FROM now() - min(created_at)), 0) FROM transfers"
        " WHERE slot = ANY(:slots) AND state IN ('trying', 'committing', 'cancelling')",
    ),
    "cellpay_outbox_waiting": (
        "Batches of events that the stream has not confirmed.",
        "SELECT count(*) FROM outbox WHERE slot = ANY(:slots) AND NOT sent",
    ),
    "cellpay_outbox_waiting_oldest_seconds": (
        "Age of the oldest batch of events that the stream has not confirmed.",
        "SELECT COALESCE(EXTRACT(EPOCH FROM now() - min(created_at)), 0) FROM outbox"
        " WHERE slot = ANY(:slots) AND NOT sent",
    ),
    "cellpay_refunds_pending": (
        "Refunds whose money has not come from the merchant's home.",
        "SELECT count(*) FROM refunds WHERE slot = ANY(:slots) AND state = 'pending'",
    ),
}
# By a label: (its name, a query of its values and their figures).
_LABELLED: Mapping[str, tuple[str, str, str]] = {
    "cellpay_holds": (
        "Money on hold for transfers, payouts and refunds to cards: how many holds, by age.",
        "age",
        """SELECT CASE WHEN age < 10 THEN 'under 10 s' WHEN age < 60 THEN 'under 1 min'
            WHEN age < 600 THEN 'under 10 min' WHEN age < 3600 THEN 'under 1 h'
            WHEN age < 86400 THEN 'under 1 d' ELSE 'older' END, count(*)
        FROM (SELECT EXTRACT(EPOCH FROM now() - since) AS age FROM (
            SELECT created_at AS since FROM transfers
            WHERE slot = ANY(:slots) AND state = 'trying'
            UNION ALL SELECT created_at FROM payouts
            WHERE slot = ANY(:slots) AND state = 'held'
            UNION ALL SELECT created_at FROM charge_refunds
            WHERE slot = ANY(:slots) AND state = 'held'
            UNION ALL SELECT created_at FROM attempts
            WHERE slot = ANY(:slots) AND state IN ('sent', 'pending', 'unknown')
                AND operation IN ('payout', 'refund')
        ) AS holds) AS aged GROUP BY 1""",
    ),
    # Of all cells, for breaks belong to no slot: each cell tells the same.
    "cellpay_breaks": (
        "Breaks of reconciliation that are not resolved, of the whole mesh, by state.",
        "state",
        "SELECT state, count(*) FROM reconciliation_breaks"
        " WHERE state IN ('open', 'case', 'adjusting') GROUP BY state",
    ),
    "cellpay_breaks_oldest_seconds": (
        "Age of the oldest break that is not resolved, of the whole mesh, by state.",
        "state",
        "SELECT state, EXTRACT(EPOCH FROM now() - min(created_at)) FROM reconciliation_breaks"
        " WHERE state IN ('open', 'case', 'adjusting') GROUP BY state",
    ),
}
# Every label that there may be: a figure that has gone to none is 0, not as it was.
_LABELS = {
    "age": ("under 10 s", "under 1 min", "under 10 min", "under 1 h", "under 1 d", "older"),
    "state": ("open", "case", "adjusting"),
}


class CellMetrics:
    """One process's. Those of the database belong to the first process of a cell."""

    def __init__(self, here: SlotsHere, lanes: Lanes, policing: Policing, calls: Calls) -> None:
        self.here = here
        self._calls = calls
        self._lanes = lanes
        self._policing = policing

    def __call__(self) -> Iterator[Metric]:
        figures = [lane.figures for lane in self._lanes.lanes]
        for name, help_, value in (
            ("cellpay_lane_groups", "Groups that committed.", sum(f.groups for f in figures)),
            ("cellpay_lane_commands", "Commands in them.", sum(f.commands for f in figures)),
            ("cellpay_lane_retries", "Groups decided again.", sum(f.retries for f in figures)),
            ("cellpay_lane_bisections", "Groups halved.", sum(f.bisections for f in figures)),
            (
                "cellpay_lane_commit_seconds",
                "Time in transactions that committed.",
                sum(f.commit_s for f in figures),
            ),
        ):
            yield counter(name, help_, [((), value)])
        yield gauge(
            "cellpay_lane_waiting",
            "Commands that wait for a group.",
            [((), sum(lane.waiting for lane in self._lanes.lanes))],
        )
        yield gauge(
            "cellpay_requests_under_way", "Requests without an answer yet.",
            [((), self._calls.under_way)],
        )  # fmt: skip
        yield gauge(
            "cellpay_queue_delay_seconds",
            "How long a command waits for its group.",
            [((), self._policing.felt.queue_delay_ms / 1000)],
        )
        yield gauge("cellpay_slots_owned", "Slots at home here.", [((), len(self.here.owned()))])
        yield gauge("cellpay_degradation_level", "0 to 3.", [((), self._policing.level)])
        yield gauge(
            "cellpay_breaker_state",
            "0 closed, 1 half open, 2 open.",
            [
                ((name,), _BREAKER[state])
                for name, (state, _) in self._policing.board.report().items()
            ],
            labels=("dependency",),
        )
        yield counter(
            "cellpay_refused",
            "Requests refused before they were looked at, by reason.",
            [((reason,), count) for reason, count in self._policing.admission.refused.items()],
            labels=("reason",),
        )
        if self._policing.risk is not None:
            yield from self._policing.risk()


class BusinessMetrics:
    """Asked of the database, not more often than every few seconds, however many scrape."""

    def __init__(self, engine: AsyncEngine, here: SlotsHere) -> None:
        self._engine = engine
        self._here = here
        self._values: dict[str, float] = {}
        self._labelled: dict[str, dict[str, float]] = {}
        self._until = 0.0

    async def refresh(self) -> None:
        """Keeps the old values when the database is away: their age shows in nothing, so `up`
        below says it."""
        now = time.monotonic()
        if now < self._until:
            return
        self._until = now + _BUSINESS_AGE_S
        try:
            async with asyncio.timeout(_BUSINESS_WAIT_S), self._engine.connect() as connection:
                slots = {"slots": sorted(self._here.owned())}
                for name, (_, query) in _QUERIES.items():
                    value = (await connection.execute(text(query), slots)).scalar_one()
                    self._values[name] = float(value)
                for name, (_, label, query) in _LABELLED.items():
                    rows = (await connection.execute(text(query), _named(query, slots))).all()
                    found = dict.fromkeys(_LABELS[label], 0.0)
                    self._labelled[name] = found | {row[0]: float(row[1]) for row in rows}
                self._values["cellpay_business_metrics_up"] = 1
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.info("no business metrics: the database is away", error=type(error).__name__)
            self._values["cellpay_business_metrics_up"] = 0

    def __call__(self) -> Iterator[Metric]:
        for name, (help_, _) in _QUERIES.items():
            if name in self._values:
                yield gauge(name, help_, [((), self._values[name])])
        for name, (help_, label, _) in _LABELLED.items():
            values = [((value,), figure) for value, figure in self._labelled.get(name, {}).items()]
            yield gauge(name, help_, values, labels=(label,))
        up = self._values.get("cellpay_business_metrics_up", 0)
        yield gauge("cellpay_business_metrics_up", "Whether the database was asked.", [((), up)])


def _named(query: str, values: Mapping[str, Sequence[int]]) -> Mapping[str, Sequence[int]]:
    return values if ":slots" in query else {}


class Telling:
    """All that a process of a cell tells whoever asks: probes, and the page of metrics.

    The first process asks the others, so that one address has all of the cell's.
    """

    def __init__(
        self,
        watched: CellMetrics,
        sources: Sequence[Source],
        business: BusinessMetrics | None,
        siblings: Callable[[], Mapping[str, str]],
    ) -> None:
        """`sources`: of this process, beside those. `siblings`: process → host:port of its page."""
        self._business = business
        self._siblings = siblings
        of_cell = [business] if business is not None else []
        self._metrics = Metrics(*sources, watched, *of_cell)
        self.probes = Probes(watched.here.takes_work, self.page)

    async def page(self, openmetrics: bool) -> str:
        if self._business is None:
            return self._metrics.render(openmetrics=openmetrics)
        await self._business.refresh()
        others = self._siblings()
        pages = await asyncio.gather(
            *(_page_at(address, openmetrics) for address in others.values())
        )
        own = self._metrics.render(openmetrics=openmetrics)
        return merged([("0", own), *zip(others, pages, strict=True)], openmetrics=openmetrics)


async def _page_at(address: str, openmetrics: bool) -> str:
    """Empty when that process does not answer: it is starting, or ending."""
    try:
        async with (
            aiohttp.ClientSession(timeout=_SIBLING_TIMEOUT) as client,
            client.get(
                f"http://{address}/metrics",
                headers={"accept": OPENMETRICS_TYPE if openmetrics else CONTENT_TYPE},
            ) as answer,
        ):
            return await answer.text()
    except (aiohttp.ClientError, TimeoutError):
        return ""
