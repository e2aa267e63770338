"""The gate: who is let in, who is told to wait, and what costs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from cellpay.orders.v1 import orders_pb2
from cellpay.payments.v1 import payments_pb2

from router.admission.gate import Admission, Limiter
from router.admission.rules import (
    CRITICALITY_HEADER,
    SHARES,
    Admitting,
    NamedRate,
    admitting_of,
    decide,
)
from router.errors import Refusal
from router.policies.model import (
    Concurrency,
    Criticality,
    Degradation,
    Feature,
    Limits,
    Mode,
    PolicyKind,
    Rate,
    RateBy,
)
from router.policies.rules import Policy, PolicySet

PAY = "cellpay.payments.v1.PaymentsService/Pay"
REFUND = "cellpay.payments.v1.PaymentsService/RefundPayment"
CREATE = "cellpay.orders.v1.OrdersService/CreateOrder"
CONFIRM = "cellpay.transfers.v1.ParticipantService/ConfirmBranch"
LIMIT_10 = Limits(concurrency=Concurrency(initial=10, minimum=1))


class Context:
    def __init__(self, left_s: float | None = None, metadata: dict[str, str] | None = None) -> None:
        self._left_s = left_s
        self._metadata = tuple((metadata or {}).items())

    def time_remaining(self) -> float | None:
        return self._left_s

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"peer_spiffe_id": [b"spiffe://cellpay.local/service/shop"]}


class Buckets:
    """Notes what it is asked for; `empty` names a bucket that has nothing left."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.empty = ""

    async def take(self, buckets: Sequence[tuple[str, NamedRate]]) -> tuple[str, int] | None:
        self.asked = [name for name, _ in buckets]
        return next(((name, 7) for name in self.asked if name == self.empty), None)


def _set(*limits: Limits, level: int = 0) -> Admitting:
    documents: list[Any] = [*limits, Degradation(level=level)]
    policies = {
        f"{number}": Policy(
            PolicyKind.LIMITS if isinstance(item, Limits) else PolicyKind.DEGRADATION,
            f"p{number}", 1, item,
        )
        for number, item in enumerate(documents)
    }  # fmt: skip
    return admitting_of(PolicySet(policies), "a", level)


def _gate(
    admission: Admission, method: str, request: Any, wait: asyncio.Event | None = None
) -> Any:
    async def behaviour(request: Any, context: Any) -> str:
        if wait is not None:
            await wait.wait()
        return "done"

    return admission.wrap(method, request.DESCRIPTOR, behaviour, bulk=False)


async def _reason(call: Any) -> str:
    try:
        return str(await call)
    except Refusal as refusal:
        return refusal.reason


def test_without_policies_nothing_is_decided_for_any_method() -> None:
    assert decide(PAY, _set()) is None
    assert decide(REFUND, _set(level=0)) is None


async def test_a_call_without_a_decision_asks_its_context_nothing() -> None:
    admission = Admission()
    assert await _gate(admission, PAY, payments_pb2.PayRequest())(None, None) == "done"


async def test_a_feature_that_is_off_is_refused_until_it_comes_back() -> None:
    admission = Admission()
    refund = _gate(admission, REFUND, payments_pb2.RefundPaymentRequest())
    pay = _gate(admission, PAY, payments_pb2.PayRequest())
    admission.apply(_set(level=3))
    with pytest.raises(Refusal) as caught:
        await refund(None, Context())
    assert (caught.value.code, caught.value.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "FEATURE_DEGRADED",
    )
    assert caught.value.metadata == {"feature": "refunds", "mode": "off"}
    assert await pay(None, None) == "done"
    admission.apply(_set(level=2))
    assert await refund(None, Context()) == "done"
    assert admission.refused == {"FEATURE_DEGRADED": 1}


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_no_level_touches_payments_orders_or_transfers(level: int) -> None:
    for method in (PAY, CREATE, CONFIRM, "cellpay.transfers.v1.TransfersService/CreateTransfer"):
        assert decide(method, _set(level=level)) is None


async def test_the_less_critical_is_refused_first_and_room_that_is_left_lets_in_again() -> None:
    admission = Admission()
    go_on = asyncio.Event()
    slow = _gate(admission, PAY, payments_pb2.PayRequest(), go_on)
    quick = _gate(admission, CREATE, orders_pb2.CreateOrderRequest())
    admission.apply(_set(LIMIT_10))
    for under_way, let_in in ((4, set(Criticality)),
                              (5, set(Criticality) - {Criticality.SHEDDABLE}),
                              (7, {Criticality.CRITICAL, Criticality.CRITICAL_PLUS}),
                              (9, {Criticality.CRITICAL_PLUS}), (10, set())):  # fmt: skip
        async with asyncio.TaskGroup() as group:
            for _ in range(under_way):
                group.create_task(slow(None, Context()))
            await asyncio.sleep(0)
            found = {
                item
                for item in Criticality
                if await _reason(quick(None, Context(metadata={CRITICALITY_HEADER: item})))
                == "done"
            }
            go_on.set()
        go_on.clear()
        assert found == let_in
    assert await quick(None, Context()) == "done"


async def test_a_call_that_fails_gives_its_place_back() -> None:
    limiter = Limiter()
    limiter.configure(Concurrency(initial=1, minimum=1))
    for _ in range(3):
        limiter.leave(limiter.enter(Criticality.SHEDDABLE), counts=False)
    limiter.enter(Criticality.CRITICAL_PLUS)
    with pytest.raises(Refusal) as caught:
        limiter.enter(Criticality.CRITICAL_PLUS)
    assert (caught.value.reason, caught.value.code) == (
        "OVERLOADED",
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    )
    assert caught.value.retry_after_ms


async def test_a_policy_that_goes_while_calls_are_under_way_leaves_no_count_behind() -> None:
    admission = Admission()
    go_on = asyncio.Event()
    slow = _gate(admission, PAY, payments_pb2.PayRequest(), go_on)
    admission.apply(_set(LIMIT_10))
    async with asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(slow(None, Context()))
        await asyncio.sleep(0)
        admission.apply(_set())
        go_on.set()
    admission.apply(_set(LIMIT_10))
    assert await slow(None, Context()) == "done"


async def test_money_under_way_is_never_limited() -> None:
    assert decide(CONFIRM, _set(LIMIT_10, Limits(rates=(Rate(RateBy.API, 1, 1),)))) is None


async def test_a_call_whose_time_is_up_is_not_begun() -> None:
    admission = Admission()
    pay = _gate(admission, PAY, payments_pb2.PayRequest())
    admission.apply(_set(LIMIT_10))
    assert await _reason(pay(None, Context(left_s=0.0))) == "DEADLINE_EXCEEDED"


async def test_rates_are_of_the_method_the_merchant_the_user_and_the_caller() -> None:
    buckets = Buckets()
    admission = Admission(buckets)
    create = _gate(admission, CREATE, orders_pb2.CreateOrderRequest())
    rates = tuple(Rate(by, 1, 1) for by in RateBy)
    admission.apply(_set(Limits(rates=rates)))
    request = orders_pb2.CreateOrderRequest(payer_id="ann", merchant_id="shop")
    assert await create(request, Context()) == "done"
    assert buckets.asked == [
        f"p0:0:api:{CREATE}",
        "p0:1:merchant:shop",
        "p0:2:user:ann",
        "p0:3:caller:spiffe://cellpay.local/service/shop",
    ]
    buckets.empty = "p0:1:merchant:shop"
    with pytest.raises(Refusal) as caught:
        await create(request, Context())
    assert (caught.value.reason, caught.value.retry_after_ms) == ("RATE_LIMITED", 7)
    assert caught.value.metadata == {"limit": "merchant"}


async def test_a_request_without_a_user_is_counted_by_the_users_header_or_not_at_all() -> None:
    buckets = Buckets()
    admission = Admission(buckets)
    pay = _gate(admission, PAY, payments_pb2.PayRequest())
    admission.apply(_set(Limits(rates=(Rate(RateBy.USER, 1, 1),))))
    await pay(payments_pb2.PayRequest(), Context(metadata={"x-user-id": "ann"}))
    assert buckets.asked == ["p0:0:user:ann"]
    buckets.asked = []
    await pay(payments_pb2.PayRequest(), Context())
    assert buckets.asked == []


def test_a_policys_criticality_of_a_method_wins_over_ours() -> None:
    low = Limits(concurrency=Concurrency(), criticality={PAY: Criticality.SHEDDABLE})
    decision = decide(PAY, _set(low))
    assert decision is not None
    assert decision.criticality == Criticality.SHEDDABLE
    assert SHARES[Criticality.CRITICAL_PLUS] == 1.0


def test_modes_are_told_to_whom_they_concern() -> None:
    assert _set(level=2).modes[Feature.NOTIFICATION] == Mode.DEFERRED
