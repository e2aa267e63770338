"""What is due: read beside the lanes. All writes are commands, fenced like any noun's."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import func, literal_column, select

from cells.fencing.tables import slots
from cells.notifications.model import Delivery, Endpoint
from cells.notifications.tables import DELIVERIES, ENDPOINTS, deliveries, endpoints
from cells.reading import ReadEngine, fetch


class Due(NamedTuple):
    """A delivery to send, and where to."""

    delivery: Delivery
    endpoint: Endpoint


async def due_deliveries(
    engine: ReadEngine, cell: str, *, without: Collection[str], count_max: int
) -> list[Due]:
    """The longest due first, of the slots that the database gives to `cell` now.

    `without`: merchants to leave alone. A slot that moves away meanwhile does no harm: the claim
    is fenced.
    """
    statement = (
        select(
            *(deliveries.c[name] for name in DELIVERIES.fields),
            *(endpoints.c[name] for name in ENDPOINTS.fields),
        )
        .join(slots, slots.c.slot == deliveries.c.slot)
        .join(
            endpoints,
            (endpoints.c.slot == deliveries.c.slot)
            & (endpoints.c.endpoint_id == deliveries.c.merchant_id),
        )
        .where(
            slots.c.owner == cell,
            # Written out, not bound, so that the partial index is used.
            literal_column("deliveries.state = 'pending'"),
            deliveries.c.next_attempt_at <= func.now(),
        )
        .order_by(deliveries.c.next_attempt_at, deliveries.c.delivery_id)
        .limit(count_max)
    )
    if without:
        statement = statement.where(deliveries.c.merchant_id.not_in(sorted(without)))
    width = len(DELIVERIES.fields)
    return [
        Due(Delivery(*row[:width]), Endpoint(*row[width:]))
        for row in await fetch(engine, statement)
    ]
