"""From policies to one decision a method. Pure.

Shares of the concurrency limit by criticality are what makes shedding go by priority: a class may
use the limit up to its share, so that the least critical are refused first and the most critical
only when the whole limit is used (Site Reliability Engineering, chapter 21).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import grpc

from router.errors import Refusal
from router.policies.model import (
    Criticality,
    Degradation,
    Feature,
    Limits,
    Mode,
    Rate,
    RedisAway,
)
from router.policies.rules import PolicySet, modes_at

CRITICALITY_HEADER = "x-cellpay-criticality"
_RETRY_AFTER_OFF_MS = 5_000

SHARES: Mapping[Criticality, float] = {
    Criticality.CRITICAL_PLUS: 1.0,
    Criticality.CRITICAL: 0.9,
    Criticality.SHEDDABLE_PLUS: 0.7,
    Criticality.SHEDDABLE: 0.5,
}
# Of calls that do not say it. What finishes money under way comes before what begins more.
_CRITICALITY: Mapping[str, Criticality] = {
    "cellpay.payments.v1.PaymentsService/Pay": Criticality.CRITICAL_PLUS,
    "cellpay.payments.v1.PaymentsService/BatchPay": Criticality.CRITICAL_PLUS,
    "cellpay.transfers.v1.TransfersService/CreateTransfer": Criticality.CRITICAL,
    "cellpay.transfers.v1.FundingService/FundCollection": Criticality.CRITICAL_PLUS,
    "cellpay.orders.v1.OrdersService/CreateOrder": Criticality.CRITICAL,
    "cellpay.accounts.v1.AccountsService/ListEntries": Criticality.SHEDDABLE,
    "cellpay.orders.v1.OrdersService/ListOrders": Criticality.SHEDDABLE,
    "cellpay.payments.v1.PaymentsService/ListPayments": Criticality.SHEDDABLE,
    "cellpay.notifications.v1.NotificationsService/ListDeliveries": Criticality.SHEDDABLE,
    "cellpay.notifications.v1.NotificationsService/EnqueueDeliveries": Criticality.SHEDDABLE,
    "cellpay.notifications.v1.NotificationsService/EnqueueDelivery": Criticality.SHEDDABLE,
}
# Money that is under way is finished whatever the load, and the controller is always heard.
_NEVER_LIMITED = (
    "cellpay.cell.v1.",
    "cellpay.transfers.v1.ParticipantService/",
    "cellpay.channels.v1.ReportsService/",
)
# Methods that are off with their feature. Deferred refunds and payouts are taken, and go out later.
_METHODS: Mapping[str, tuple[Feature, frozenset[Mode]]] = {
    "cellpay.payments.v1.PaymentsService/RefundPayment": (
        Feature.REFUNDS, frozenset({Mode.OFF}),
    ),
    "cellpay.charges.v1.ChargesService/RefundCharge": (
        Feature.REFUNDS, frozenset({Mode.OFF}),
    ),
    "cellpay.payouts.v1.PayoutsService/CreatePayout": (
        Feature.PAYOUTS, frozenset({Mode.OFF}),
    ),
    "cellpay.charges.v1.ChargesService/ListCharges": (
        Feature.STATEMENTS, frozenset({Mode.OFF, Mode.DEFERRED}),
    ),
    "cellpay.payouts.v1.PayoutsService/ListPayouts": (
        Feature.STATEMENTS, frozenset({Mode.OFF, Mode.DEFERRED}),
    ),
    "cellpay.accounts.v1.AccountsService/ListEntries": (
        Feature.STATEMENTS, frozenset({Mode.OFF, Mode.DEFERRED}),
    ),
    "cellpay.orders.v1.OrdersService/ListOrders": (
        Feature.STATEMENTS, frozenset({Mode.OFF, Mode.DEFERRED}),
    ),
    "cellpay.payments.v1.PaymentsService/ListPayments": (
        Feature.STATEMENTS, frozenset({Mode.OFF, Mode.DEFERRED}),
    ),
    "cellpay.notifications.v1.NotificationsService/RedeliverDelivery": (
        Feature.NOTIFICATION, frozenset({Mode.OFF, Mode.DEFERRED}),
    ),
    "cellpay.notifications.v1.NotificationsService/ListDeliveries": (
        Feature.NOTIFICATION, frozenset({Mode.OFF}),
    ),
}  # fmt: skip


class NamedRate(NamedTuple):
    # Names its buckets: policies of one name share them, whoever wrote them.
    name: str
    rate: Rate
    away: RedisAway


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done with a method's calls before they run."""

    criticality: Criticality
    refusal: Refusal | None = None
    limited: bool = False
    rates: tuple[NamedRate, ...] = ()


@dataclass(frozen=True)
class Admitting:
    """Everything that the policies say to one cell."""

    limits: tuple[Limits, ...] = ()
    rates: tuple[NamedRate, ...] = ()
    modes: Mapping[Feature, Mode] = field(default_factory=dict)

    @property
    def concurrency(self) -> Limits | None:
        """The last policy by name that sets a limit of concurrency."""
        return next((item for item in reversed(self.limits) if item.concurrency), None)


def admitting_of(policies: PolicySet, cell: str, level: int) -> Admitting:
    rates = []
    limits = []
    for _, policy in sorted(policies.policies.items()):
        document = policy.document
        if not isinstance(document, Limits) or (document.cells and cell not in document.cells):
            continue
        limits.append(document)
        for number, rate in enumerate(document.rates):
            name = f"{policy.name}:{number}"
            rates.append(NamedRate(name, rate, document.redis_away))
    modes = modes_at(policies.of(Degradation, cell), level)
    return Admitting(tuple(limits), tuple(rates), modes)


def decide(method: str, admitting: Admitting) -> Decision | None:
    """None: nothing is to be done. `method` is a full name without the first slash."""
    refusal = _off(method, admitting.modes)
    limited = admitting.concurrency is not None and not method.startswith(_NEVER_LIMITED)
    rates = tuple(
        item
        for item in admitting.rates
        if method in item.rate.methods or (not item.rate.methods and not _is_exempt(method))
    )
    if refusal is None and not limited and not rates:
        return None
    return Decision(_criticality(method, admitting.limits), refusal, limited, rates)


def _is_exempt(method: str) -> bool:
    return method.startswith(_NEVER_LIMITED)


def _criticality(method: str, limits: Sequence[Limits]) -> Criticality:
    said: Iterable[Criticality] = (
        item.criticality[method] for item in reversed(limits) if method in item.criticality
    )
    default = _CRITICALITY.get(method, Criticality.SHEDDABLE_PLUS)
    return next(iter(said), default)


def _off(method: str, modes: Mapping[Feature, Mode]) -> Refusal | None:
    feature, off = _METHODS.get(method, (None, frozenset[Mode]()))
    if feature is None or modes.get(feature, Mode.ON) not in off:
        return None
    return Refusal(
        grpc.StatusCode.UNAVAILABLE,
        "FEATURE_DEGRADED",
        f"{feature} is switched off for now, so that payments go on; nothing was executed",
        metadata={"feature": feature, "mode": modes[feature]},
        retry_after_ms=_RETRY_AFTER_OFF_MS,
    )


def overloaded(criticality: Criticality) -> Refusal:
    """More calls than the cell can do; what is less critical goes first."""
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "OVERLOADED",
        "the cell has more to do than it can; nothing was executed",
        metadata={"criticality": criticality},
        retry_after_ms=100,
    )


def share_of(limit: float, criticality: Criticality) -> int:
    """How many calls may be under way when one of this class comes."""
    return max(1, int(limit * SHARES[criticality]))
