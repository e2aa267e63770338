"""Charges, refunds and payouts as callers see them: through the mesh, to a simulated bank."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import pytest
from cellpay.channels.v1 import channels_pb2 as channels
from cellpay.charges.v1 import charges_pb2 as charges
from cellpay.orders.v1 import orders_pb2
from cellpay.payouts.v1 import payouts_pb2 as payouts
from cellpay.vault.v1 import instruments_pb2
from sqlalchemy import text

from control.cellctl.session import Session
from control.slotmap import read_slot_map
from router.client import Mesh, connect_direct
from router.ids import Kind, slot_of_id
from router.minting import mint_now
from router.slots import slot_of_user
from tests.chaos.outside import reached
from tests.conformance.process import BankProcess
from tests.conftest import PATIENT
from tests.integration.test_api import (
    INVALID,
    NOT_FOUND,
    PRECONDITION,
    available,
    key,
    opened,
    ordered,
    refused,
    usd,
)

pytestmark = pytest.mark.mesh
_cards = itertools.count(1)


@pytest.fixture
async def banks(bank_ports: Mapping[str, Mapping[str, int]]) -> AsyncIterator[dict[str, Any]]:
    async with reached(bank_ports) as banks:
        for bank in banks.values():
            await bank.behave()
        yield banks


async def carded(mesh: Mesh, user_id: str) -> str:
    card = await mesh.instruments.RegisterCard(
        instruments_pb2.RegisterCardRequest(
            user_id=user_id, number="4000000000000002", expiry_year=2030, expiry_month=12
        )
    )
    return card.instrument_id


def charge_of(user_id: str, card: str, minor_units: int, **rest: Any) -> Any:
    return charges.CreateChargeRequest(
        user_id=user_id, instrument_id=card, amount=usd(minor_units), **rest
    )


async def test_a_card_tops_up_pays_an_order_and_is_refunded(
    mesh: Mesh, edge: Mesh, banks: dict[str, BankProcess]
) -> None:
    user, shop = await opened(mesh), await opened(mesh, kind=2)
    card = await carded(mesh, user)
    same = key()
    request = charge_of(user, card, 500, idempotency_key=same)
    charge = await mesh.charges.CreateCharge(request)
    assert charge.state == charges.Charge.STATE_SUCCEEDED
    assert await mesh.charges.CreateCharge(request) == charge
    assert await available(mesh, user) == 500
    order = await ordered(mesh, user, shop, 300)
    paid = await edge.charges.CreateCharge(charge_of(user, card, 300, order_id=order.order_id))
    assert paid.state == charges.Charge.STATE_SUCCEEDED
    found = await mesh.orders.GetOrder(orders_pb2.GetOrderRequest(order_id=order.order_id))
    assert (found.state, found.payment_id) == (orders_pb2.Order.STATE_PAID, paid.payment_id)
    assert await available(mesh, user) == 500
    refund = await mesh.charges.RefundCharge(
        charges.RefundChargeRequest(charge_id=charge.charge_id, amount=usd(200))
    )
    assert refund.state == charges.ChargeRefund.STATE_SUCCEEDED
    again = await mesh.charges.GetChargeRefund(
        charges.GetChargeRefundRequest(refund_id=refund.refund_id)
    )
    assert again == refund
    assert await available(mesh, user) == 300
    await refused(
        mesh.charges.RefundCharge(
            charges.RefundChargeRequest(charge_id=charge.charge_id, amount=usd(301))
        ),
        PRECONDITION,
        "REFUND_EXCEEDS_CHARGE",
    )
    first = await mesh.charges.ListCharges(charges.ListChargesRequest(user_id=user, page_size=1))
    rest = await mesh.charges.ListCharges(
        charges.ListChargesRequest(user_id=user, page_token=first.next_page_token)
    )
    listed = [it.charge_id for it in (*first.charges, *rest.charges)]
    assert sorted(listed) == sorted([charge.charge_id, paid.charge_id])


async def test_a_withdrawal_reaches_the_bank(mesh: Mesh, banks: dict[str, BankProcess]) -> None:
    user = await opened(mesh, 100)
    request = payouts.CreatePayoutRequest(
        user_id=user, instrument_id=await carded(mesh, user), amount=usd(60)
    )
    payout = await mesh.payouts.CreatePayout(request)
    assert payout.state == payouts.Payout.STATE_PAID
    assert await available(mesh, user) == 40
    found = await mesh.payouts.GetPayout(payouts.GetPayoutRequest(payout_id=payout.payout_id))
    assert found == payout
    page = await mesh.payouts.ListPayouts(payouts.ListPayoutsRequest(user_id=user))
    assert list(page.payouts) == [payout]
    request.amount.minor_units, request.idempotency_key = 41, key()
    await refused(mesh.payouts.CreatePayout(request), PRECONDITION, "INSUFFICIENT_FUNDS")


async def test_a_decline_is_told_in_our_words(mesh: Mesh, banks: dict[str, BankProcess]) -> None:
    user = await opened(mesh)
    await banks["north"].behave({"action": "decline", "code": "51"})
    charge = await mesh.charges.CreateCharge(charge_of(user, await carded(mesh, user), 500))
    assert charge.state == charges.Charge.STATE_FAILED
    assert charge.failure_reason == "INSUFFICIENT_FUNDS"
    assert await available(mesh, user) == 0


async def test_others_cards_wrong_amounts_and_unknown_things_are_refused(mesh: Mesh) -> None:
    user, other = await opened(mesh, 50), await opened(mesh)
    card = await carded(mesh, user)
    create, shop = mesh.charges.CreateCharge, await opened(mesh, kind=2)
    await refused(create(charge_of(other, card, 5)), NOT_FOUND, "INSTRUMENT_NOT_FOUND")
    unknown = mint_now(Kind.INSTRUMENT, slot_of_user(user))
    await refused(create(charge_of(user, unknown, 5)), NOT_FOUND, "INSTRUMENT_NOT_FOUND")
    order = await ordered(mesh, user, shop, 30)
    wrong = charge_of(user, card, 31, order_id=order.order_id)
    await refused(create(wrong), PRECONDITION, "AMOUNT_MISMATCH")
    theirs = charge_of(other, await carded(mesh, other), 30, order_id=order.order_id)
    await refused(create(theirs), NOT_FOUND, "ORDER_NOT_FOUND")
    await refused(create(charge_of(user, card, 0)), INVALID, "INVALID_REQUEST")
    await refused(create(charge_of(user, "x", 5)), INVALID, "INVALID_REQUEST")
    missing = charges.GetChargeRequest(charge_id=mint_now(Kind.CHARGE, 7))
    await refused(mesh.charges.GetCharge(missing), NOT_FOUND, "CHARGE_NOT_FOUND")
    nothing = payouts.GetPayoutRequest(payout_id=mint_now(Kind.PAYOUT, 7))
    await refused(mesh.payouts.GetPayout(nothing), NOT_FOUND, "PAYOUT_NOT_FOUND")


async def attempt_of(session: Session, owner_id: str) -> tuple[str, str]:
    async with session.database() as engine, engine.connect() as connection:
        rows = await connection.execute(
            text("SELECT attempt_id, channel FROM attempts WHERE owner_id = :owner"),
            {"owner": owner_id},
        )
        row = rows.one()
        return row.attempt_id, row.channel


async def test_reports_and_adjustments_are_for_operators_and_move_what_they_may(
    session: Session, mesh: Mesh, banks: dict[str, BankProcess]
) -> None:
    user = await opened(mesh, 100)
    payout = await mesh.payouts.CreatePayout(
        payouts.CreatePayoutRequest(
            user_id=user, instrument_id=await carded(mesh, user), amount=usd(60)
        )
    )
    reference, channel = await attempt_of(session, payout.payout_id)
    report = channels.ReportRequest(
        reference=reference, channel=channel, verdict=channels.VERDICT_DECLINED, code="05"
    )
    denied = "CALLER_NOT_ALLOWED"
    await refused(mesh.reports.Report(report), grpc.StatusCode.PERMISSION_DENIED, denied)
    adjustment = channels.AdjustRequest(
        subject_id=reference, break_id="break-1", channel=channel, source=channels.SIDE_CHANNEL,
        target=channels.SIDE_USER, user_id=user, amount=usd(3), approved_by="checker",
    )  # fmt: skip
    await refused(mesh.adjustments.Adjust(adjustment), grpc.StatusCode.PERMISSION_DENIED, denied)
    address = await home_address(session, slot_of_id(reference))
    async with connect_direct(address, session.tls("operator"), policy=PATIENT) as operator:
        told = await operator.reports.Report(report)
        assert (told.attempt_state, told.dispute) == ("approved", "declined/05")
        assert await available(mesh, user) == 40
        # The bank gives it back after all; saying it twice is saying it once.
        report.verdict = channels.VERDICT_RETURNED
        for _ in range(2):
            await operator.reports.Report(report)
        assert await available(mesh, user) == 100
        booked = [await operator.adjustments.Adjust(adjustment) for _ in range(2)]
        assert booked[0] == booked[1]
        assert await available(mesh, user) == 103
        adjustment.amount.minor_units = 4
        again = operator.adjustments.Adjust(adjustment)
        await refused(again, grpc.StatusCode.ALREADY_EXISTS, "EXISTS_WITH_DIFFERENT_INPUT")
        adjustment.break_id, adjustment.source = "break-2", channels.SIDE_FEES
        await refused(
            operator.adjustments.Adjust(adjustment), PRECONDITION, "ADJUSTMENT_NOT_ALLOWED"
        )
        report.channel = "elsewhere"
        wrong = operator.reports.Report(report)
        await refused(wrong, PRECONDITION, "ATTEMPT_OF_ANOTHER_CHANNEL")


async def home_address(session: Session, slot: int) -> str:
    async with session.store() as store:
        current = await read_slot_map(store)
    assert current is not None
    return str(session.state.address(f"cell-{current[0].at(slot).cell}"))
