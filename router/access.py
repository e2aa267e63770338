"""Who may call which method of a cell: one table. What it does not name, nobody may call.

Kinds of caller are those of SPIFFE IDs (identity.py). The control plane has its own table, by roles
(control/access/rules.py); a test finds every method of every proto in one of the two.

The model: a *service* of our own speaks for any user; it has authenticated him. A *merchant* comes
through the edge with a certificate of his own, or signs what he asks for, and speaks for himself
alone: what is not his is, to him, not there. He may take money in (orders, refunds) and send his
own out, but none out of another's account: that is the payer's to say, through our services. Cells,
controllers and gateways talk among themselves, never through the edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    CELL = "cell"
    CONTROLLER = "controller"
    EDGE = "edge"
    GATEWAY = "gateway"
    MERCHANT = "merchant"
    OPERATOR = "operator"
    RECONCILER = "reconciler"
    SERVICE = "service"


# Whom an edge may speak for.
THROUGH_THE_EDGE = frozenset({Kind.SERVICE, Kind.MERCHANT})


@dataclass(frozen=True, slots=True)
class Own:
    """What makes a request a merchant's own: the field that names him, …

    … or, with `of`, the field that names a resource: that method of the same service finds it, and
    one of `owners` in the answer must be him.
    """

    field: str
    of: str = ""
    owners: tuple[str, ...] = ()
    # The service holds the owner against whoever signed the request, by its own rules.
    by_service: bool = False


@dataclass(frozen=True, slots=True)
class Access:
    kinds: frozenset[str]
    # None: not for merchants.
    own: Own | None = None

    @property
    def is_public(self) -> bool:
        return bool(self.kinds & THROUGH_THE_EDGE)


def _only(*kinds: Kind) -> Access:
    return Access(frozenset(kinds))


_SERVICES = _only(Kind.SERVICE)
_CELLS = _only(Kind.CELL)
_CONTROLLERS = _only(Kind.CONTROLLER)
# The HTTP edge through the gRPC one, and nobody whom an edge speaks for.
_EDGES = _only(Kind.EDGE)


def _own(field: str, of: str = "", *owners: str) -> Access:
    return Access(frozenset({Kind.SERVICE, Kind.MERCHANT}), Own(field, of, owners))


def _signed(field: str) -> Access:
    return Access(frozenset({Kind.SERVICE, Kind.MERCHANT}), Own(field, by_service=True))


# Service → method → who.
_SERVED: Mapping[str, Mapping[str, Access]] = {
    "cellpay.accounts.v1.AccountsService": {
        "OpenAccount": _own("user_id"),
        "GetAccount": _own("account_id", "GetAccount", "user_id"),
        "CloseAccount": _own("account_id", "GetAccount", "user_id"),
        "GetBalance": _own("user_id"),
        "ListEntries": _own("account_id", "GetAccount", "user_id"),
        # Says that money came from outside: who says so of himself makes it.
        "Deposit": _SERVICES,
        "Withdraw": _own("user_id"),
    },
    "cellpay.orders.v1.OrdersService": {
        "CreateOrder": _own("merchant_id"),
        "GetOrder": _own("order_id", "GetOrder", "merchant_id", "payer_id"),
        "CloseOrder": _own("order_id", "GetOrder", "merchant_id", "payer_id"),
        "ListOrders": _own("payer_id"),
    },
    "cellpay.payments.v1.PaymentsService": {
        "Pay": _SERVICES,
        "BatchPay": _SERVICES,
        "PayStream": _SERVICES,
        "GetPayment": _own("payment_id", "GetPayment", "merchant_id", "payer_id"),
        "RefundPayment": _own("payment_id", "GetPayment", "merchant_id"),
        # Names a payment only, not whose it is.
        "GetRefund": _SERVICES,
        "ListPayments": _own("payer_id"),
    },
    "cellpay.transfers.v1.TransfersService": {
        "CreateTransfer": _own("payer_id"),
        "GetTransfer": _own("transfer_id", "GetTransfer", "payer_id", "payee_id"),
    },
    "cellpay.transfers.v1.ParticipantService": {
        "TryBranch": _CELLS,
        "ConfirmBranch": _CELLS,
        "CancelBranch": _CELLS,
        "AdvanceBranches": _CELLS,
    },
    "cellpay.transfers.v1.FundingService": {"FundCollection": _CELLS},
    "cellpay.notifications.v1.NotificationsService": {
        "SetEndpoint": _own("merchant_id"),
        "GetEndpoint": _own("merchant_id"),
        "ListDeliveries": _own("merchant_id"),
        # No method finds one delivery.
        "RedeliverDelivery": _SERVICES,
        # Merchants trust what reaches them signed: nobody else puts words into our mouth.
        "EnqueueDelivery": _CELLS,
        "EnqueueDeliveries": _CELLS,
    },
    "cellpay.vault.v1.InstrumentsService": {
        "RegisterCard": _SERVICES,
        "RegisterBankAccount": _own("user_id"),
        "GetInstrument": _own("instrument_id", "GetInstrument", "user_id"),
        "ListInstruments": _own("user_id"),
        "RemoveInstrument": _own("instrument_id", "GetInstrument", "user_id"),
    },
    "cellpay.charges.v1.ChargesService": {
        "CreateCharge": _SERVICES,
        "GetCharge": _SERVICES,
        "ListCharges": _SERVICES,
        "RefundCharge": _SERVICES,
        "GetChargeRefund": _SERVICES,
    },
    "cellpay.payouts.v1.PayoutsService": {
        "CreatePayout": _own("user_id"),
        "GetPayout": _own("payout_id", "GetPayout", "user_id"),
        "ListPayouts": _own("user_id"),
    },
    "cellpay.keys.v1.KeysService": {
        "RegisterKey": _own("merchant_id"),
        "ListKeys": _own("merchant_id"),
        "ExpireKey": _signed("key_id"),
        "RevokeKey": _signed("key_id"),
        "ListSigningKeys": _own("merchant_id"),
    },
    "cellpay.keys.v1.AnswersService": {"SignAnswer": _EDGES},
    "cellpay.risk.v1.RiskService": {
        "GetChallenge": _own("challenge_id", "GetChallenge", "user_id"),
        "AnswerChallenge": _own("challenge_id", "GetChallenge", "user_id"),
        "EnrollFactor": _own("user_id"),
        "ConfirmFactor": _own("user_id"),
        "GetFactor": _own("user_id"),
        # Tells what rules have seen: no help for whoever tries them out.
        "ListDecisions": _SERVICES,
    },
    # A controller has authorised the operator, and recorded what he decided.
    "cellpay.risk.v1.ReviewsService": {
        "DecideReview": _CONTROLLERS,
        "ResetFactor": _CONTROLLERS,
    },
    "cellpay.channels.v1.ReportsService": {
        # Cells pass on what their channels hear; a gateway takes callbacks; operators and
        # reconciliation say what they found out.
        "Report": _only(Kind.CELL, Kind.GATEWAY, Kind.OPERATOR, Kind.RECONCILER),
    },
    "cellpay.channels.v1.AdjustmentsService": {
        "Adjust": _only(Kind.CELL, Kind.OPERATOR, Kind.RECONCILER),
    },
    "cellpay.cell.v1.CellService": {
        "DrainSlots": _CONTROLLERS,
        "RecoverSlots": _CONTROLLERS,
    },
}

# `package.Service/Method` → who may call it.
METHODS: Mapping[str, Access] = {
    f"{service}/{method}": access
    for service, methods in _SERVED.items()
    for method, access in methods.items()
}
SERVICES = tuple(_SERVED)

_ALL = _only(*Kind)
_MESH = _only(*(kind for kind in Kind if kind != Kind.MERCHANT))

# What every server offers beside its own services (standard.py), and the control plane's xDS:
# service → who.
STANDARD: Mapping[str, Access] = {
    "grpc.health.v1.Health": _ALL,
    "grpc.reflection.v1alpha.ServerReflection": _MESH,
    # Tells of every connection: addresses, and who calls what how often.
    "grpc.channelz.v1.Channelz": _only(Kind.OPERATOR),
    "envoy.service.discovery.v3.AggregatedDiscoveryService": _MESH,
}

# Read message by message, so never whole. Not through an edge, which sends on what it has whole: a
# caller with a stream of payments is inside the mesh. A test compares with the descriptors.
STREAMS: tuple[str, ...] = (
    "cellpay.payments.v1.PaymentsService/PayStream",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)


def internal_services() -> tuple[str, ...]:
    """Services of which nothing is for whoever comes through the edge."""
    return tuple(
        name
        for name, methods in _SERVED.items()
        if not any(access.is_public or access is _EDGES for access in methods.values())
    )
