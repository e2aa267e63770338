"""What a controller tells Prometheus: who leads, which cells live, what the xDS server is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from prometheus_client.metrics_core import Metric

from control.leader import Leadership
from control.view import View
from control.xds.server import XdsServer
from router.metrics import Metrics, counter, gauge
from router.slots import SLOT_COUNT


def _homeless(view: View) -> int:
    if view.slot_map is None:
        return SLOT_COUNT
    return sum(
        entry.last - entry.first + 1
        for entry in view.slot_map.ranges
        if entry.cell not in view.live
    )


def control_page(
    view: View, xds: XdsServer, leadership: Leadership
) -> Callable[[bool], Awaitable[str]]:
    def tell() -> Iterator[Metric]:
        yield gauge("cellpay_leads", "1 for the controller that leads.", [((), leadership.leads)])
        yield gauge(
            "cellpay_cell_lives",
            "1 for a declared cell that holds its lease.",
            [((cell,), float(cell in view.live)) for cell in sorted(view.declared)],
            labels=("of",),
        )
        yield gauge(
            "cellpay_slots_without_a_home",
            "Slots whose cell holds no lease, as far as this controller sees.",
            [((), _homeless(view))],
        )
        subscribers = xds.subscribers()
        yield gauge(
            "cellpay_xds_subscribers", "Streams of this xDS server.", [((), len(subscribers))]
        )
        yield counter(
            "cellpay_xds_nacks",
            "Configurations that a subscriber has refused (pitfall 30).",
            [((), sum(item.nacks for item in subscribers))],
        )

    metrics = Metrics(tell)

    async def page(openmetrics: bool) -> str:
        return metrics.render(openmetrics=openmetrics)

    return page
