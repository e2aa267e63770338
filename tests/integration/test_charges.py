"""Charges, refunds and payouts on a real database, with banks that do as they are told.

Each test is a way in which a bank or a cell goes wrong. At its end our account with each bank is
the bank's own book; after the last the audit of all books finds nothing broken.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.channels.attempts import ATTEMPTS
from cells.channels.model import Answer, AnswerReason, Operation, Verdict
from cells.charges.model import ChargeState, IfOrderEnded, RefundState
from cells.charges.refunds import RefundCharge
from cells.charges.tables import CHARGE_REFUNDS, CHARGES
from cells.ledger.model import Reason
from cells.orders.rules import CloseOrder
from cells.orders.tables import ORDERS
from cells.payouts.model import PayoutState
from cells.payouts.tables import PAYOUTS
from cells.settings import BankingSettings
from cells.verification.auditor import audit
from cells.verification.model import lines
from router.errors import Refusal
from router.ids import Kind, slot_of_id
from router.minting import mint_now
from router.slots import slot_of_user
from tests.integration.books import execute, give_all_slots, new_database
from tests.integration.scripted import (
    APPROVED,
    DECLINED,
    FAILED,
    NOT_FOUND,
    PENDING,
    QUICK,
    UNKNOWN,
    Counter,
    PaperVault,
    Say,
    ScriptedBank,
)

AUTHORISE, VOID, QUERY = Operation.AUTHORISE, Operation.VOID, Operation.QUERY


@pytest.fixture(scope="module")
async def engine(server_url: URL) -> AsyncIterator[AsyncEngine]:
    """Slots and their owner; each test has users of its own."""
    async with new_database(server_url) as engine:
        await give_all_slots(engine)
        yield engine
        report = await audit(engine)
        assert report.ok, "\n".join(lines(report))


@asynccontextmanager
async def counter(
    engine: AsyncEngine, user: str, settings: BankingSettings = QUICK, *more: ScriptedBank
) -> AsyncIterator[tuple[Counter, ScriptedBank]]:
    """A cell with one bank or more, whose books are compared at the end."""
    bank = ScriptedBank(f"{user}-bank")
    made = Counter("a", engine, [bank, *more], PaperVault(), settings)
    async with made.at_work():
        yield made, bank
        for one in (bank, *more):
            assert await made.lying(user, one.name) == one.book, one.name


async def test_a_top_up_is_in_the_balance_and_lies_with_the_bank(engine: AsyncEngine) -> None:
    async with counter(engine, "top") as (cell, bank):
        await cell.open("top")
        charge = await cell.charge("top", 500)
        assert charge.state == ChargeState.SUCCEEDED
        account = await cell.account("top")
        assert (account.balance, account.promised) == (500, 0)
        assert await cell.lying("top", bank.name) == -500
        (attempt,) = await cell.attempts(charge.charge_id)
        assert (attempt.state, attempt.bank_reference) == ("approved", "rrn")
        assert attempt.clearing_date == "2026-01-02"
        assert bank.requests[0].reference == attempt.attempt_id


async def test_a_charge_pays_its_order_in_the_same_commit(engine: AsyncEngine) -> None:
    async with counter(engine, "buyer") as (cell, _):
        await cell.open("buyer", 7)
        await cell.open("buyers-shop", merchant=True)
        order_id = await cell.ordered("buyer", "buyers-shop", 90)
        charge = await cell.charge("buyer", 90, order_id)
        assert charge.state == ChargeState.SUCCEEDED
        order = await cell.row(ORDERS, order_id)
        assert order.state == "paid"
        assert order.payment_id == charge.payment_id
        assert (await cell.account("buyer")).balance == 7


@pytest.mark.parametrize("choice", [IfOrderEnded.KEEP, IfOrderEnded.GIVE_BACK])
async def test_an_order_that_ended_meanwhile_leaves_the_money_as_agreed(
    engine: AsyncEngine, choice: IfOrderEnded
) -> None:
    user = f"late-{choice}"
    async with counter(engine, user) as (cell, bank):
        await cell.open(user)
        await cell.open(f"{user}-shop", merchant=True)
        order_id = await cell.ordered(user, f"{user}-shop", 90)
        bank.hold = asyncio.Event()
        charging = cell.desk.drives.start(cell.charge(user, 90, order_id, choice))
        while not bank.requests:
            await asyncio.sleep(0.005)
        slot = slot_of_user(user)
        await cell.do(CloseOrder(slot, order_id, cell.key("CloseOrder", order_id)))
        bank.hold.set()
        charge = await charging
        assert (charge.state, charge.payment_id) == (ChargeState.SUCCEEDED, "")
        await cell.recover()
        kept = 90 if choice == IfOrderEnded.KEEP else 0
        account = await cell.account(user)
        assert (account.balance, account.held) == (kept, 0)
        assert bank.book == -kept


async def test_a_decline_ends_a_charge_and_no_other_bank_is_asked(engine: AsyncEngine) -> None:
    second = ScriptedBank("poor-second")
    async with counter(engine, "poor", QUICK, second) as (cell, bank):
        await cell.open("poor")
        bank.will(AUTHORISE, DECLINED)
        charge = await cell.charge("poor", 50)
        assert (charge.state, charge.reason) == (ChargeState.FAILED, "INSUFFICIENT_FUNDS")
        assert not second.requests
        assert (await cell.account("poor")).promised == 0


async def test_a_clean_failure_goes_to_the_next_bank_with_a_reference_of_its_own(
    engine: AsyncEngine,
) -> None:
    second = ScriptedBank("routed-second")
    async with counter(engine, "routed", QUICK, second) as (cell, bank):
        await cell.open("routed")
        bank.will(AUTHORISE, FAILED)
        charge = await cell.charge("routed", 50)
        assert charge.state == ChargeState.SUCCEEDED
        first, then = await cell.attempts(charge.charge_id)
        assert (first.state, then.state) == ("failed", "approved")
        assert (first.channel, then.channel) == (bank.name, second.name)
        assert first.attempt_id != then.attempt_id


async def test_when_all_banks_fail_the_charge_fails(engine: AsyncEngine) -> None:
    second = ScriptedBank("luckless-second")
    async with counter(engine, "luckless", QUICK, second) as (cell, bank):
        await cell.open("luckless")
        bank.will(AUTHORISE, FAILED)
        second.will(AUTHORISE, FAILED)
        charge = await cell.charge("luckless", 50)
        assert (charge.state, charge.attempts) == (ChargeState.FAILED, 2)


async def test_without_a_channel_nothing_is_begun(engine: AsyncEngine) -> None:
    async with counter(engine, "nowhere") as (cell, bank):
        await cell.open("nowhere")
        bank.operations = frozenset({Operation.PAYOUT})
        with pytest.raises(Refusal) as refused:
            await cell.charge("nowhere", 50)
        assert refused.value.reason == Reason.NO_CHANNEL
        assert (await cell.account("nowhere")).promised == 0


@pytest.mark.parametrize("effect", [True, False])
async def test_a_time_out_is_asked_about_and_settled_by_what_the_bank_says(
    engine: AsyncEngine, effect: bool
) -> None:
    """With an effect it is credited once; without, the bank says that it never came."""
    user = f"timeout-{effect}"
    patient = replace(QUICK, reverse_after_s=3600.0, route_within_s=0.0)
    async with counter(engine, user, patient) as (cell, bank):
        await cell.open(user)
        bank.will(AUTHORISE, Say(UNKNOWN, effect))
        charge = await cell.charge(user, 50)
        assert charge.state == ChargeState.PROCESSING
        assert (await cell.account(user)).promised == 50
        await cell.recover()
        charge = await cell.row(CHARGES, charge.charge_id)
        assert charge.state == (ChargeState.SUCCEEDED if effect else ChargeState.FAILED)
        assert (await cell.account(user)).balance == (50 if effect else 0)
        assert len(bank.asked(AUTHORISE)) == 1, "it is asked about, never sent again"


async def test_an_unknown_that_stays_is_reversed(engine: AsyncEngine) -> None:
    async with counter(engine, "reversed") as (cell, bank):
        await cell.open("reversed")
        bank.will(AUTHORISE, Say(UNKNOWN, effect=True))
        bank.will(QUERY, UNKNOWN)
        charge = await cell.charge("reversed", 50)
        await cell.recover()
        charge = await cell.row(CHARGES, charge.charge_id)
        assert (charge.state, charge.reason) == (ChargeState.FAILED, "REVERSED")
        authorise, void = await cell.attempts(charge.charge_id)
        assert (authorise.state, void.state) == ("reversed", "approved")
        assert bank.asked(VOID)[0].original == authorise.attempt_id
        assert (await cell.account("reversed")).balance == 0
        # The first answer comes at last: absorbed, and written down to be looked at.
        step = await cell.desk.charging.answer(charge, authorise, APPROVED, 0.0)
        assert step.charge.state == ChargeState.FAILED
        (authorise, _) = await cell.attempts(charge.charge_id)
        assert authorise.dispute == "approved/00"


async def test_a_void_that_is_unknown_itself_is_repeated_with_the_same_reference(
    engine: AsyncEngine,
) -> None:
    async with counter(engine, "repeated") as (cell, bank):
        await cell.open("repeated")
        bank.will(AUTHORISE, Say(UNKNOWN, effect=True))
        bank.will(QUERY, UNKNOWN)
        not_sent = Answer(Verdict.FAILED, AnswerReason.NOT_SENT)
        bank.will(VOID, UNKNOWN, not_sent, UNKNOWN)
        charge = await cell.charge("repeated", 50)
        for _ in range(4):
            charge = await cell.row(CHARGES, charge.charge_id)
            assert charge.state in {ChargeState.PROCESSING, ChargeState.REVERSING}
            assert await cell.recover() >= 1
        charge = await cell.row(CHARGES, charge.charge_id)
        assert charge.state == ChargeState.FAILED
        assert len({it.reference for it in bank.asked(VOID)}) == 1
        assert len(bank.asked(VOID)) == 4


async def test_a_bank_that_will_not_undo_what_it_did_has_it(engine: AsyncEngine) -> None:
    """The VOID is declined, the query then says: approved. The user has paid, and has it."""
    async with counter(engine, "settled") as (cell, bank):
        await cell.open("settled")
        bank.will(AUTHORISE, Say(UNKNOWN, effect=True))
        bank.will(QUERY, UNKNOWN)
        bank.will(VOID, DECLINED)
        charge = await cell.charge("settled", 50)
        await cell.recover()
        assert (await cell.row(CHARGES, charge.charge_id)).state == ChargeState.REVERSING
        await cell.recover()
        charge = await cell.row(CHARGES, charge.charge_id)
        assert charge.state == ChargeState.SUCCEEDED
        assert (await cell.account("settled")).balance == 50


async def test_a_void_of_what_never_came_ends_the_charge(engine: AsyncEngine) -> None:
    async with counter(engine, "never") as (cell, bank):
        await cell.open("never")
        bank.will(AUTHORISE, UNKNOWN)
        bank.will(QUERY, UNKNOWN)
        bank.will(VOID, NOT_FOUND)
        charge = await cell.charge("never", 50)
        await cell.recover()
        charge = await cell.row(CHARGES, charge.charge_id)
        assert (charge.state, charge.reason) == (ChargeState.FAILED, "NOT_FOUND")


async def test_a_bank_that_cannot_void_is_asked_for_ever(engine: AsyncEngine) -> None:
    async with counter(engine, "endless") as (cell, bank):
        await cell.open("endless")
        bank.operations = frozenset({AUTHORISE, QUERY})
        bank.will(AUTHORISE, Say(UNKNOWN, effect=True))
        bank.will(QUERY, UNKNOWN, UNKNOWN, UNKNOWN)
        charge = await cell.charge("endless", 50)
        for _ in range(3):
            await cell.recover()
            charge = await cell.row(CHARGES, charge.charge_id)
            assert charge.state == ChargeState.PROCESSING
        await cell.recover()
        charge = await cell.row(CHARGES, charge.charge_id)
        assert charge.state == ChargeState.SUCCEEDED


async def test_a_pending_charge_waits_for_its_callback(engine: AsyncEngine) -> None:
    async with counter(engine, "callback") as (cell, bank):
        await cell.open("callback")
        bank.will(AUTHORISE, Say(PENDING, effect=True))
        bank.will(QUERY, PENDING)
        charge = await cell.charge("callback", 50)
        await cell.recover()
        charge = await cell.row(CHARGES, charge.charge_id)
        assert charge.state == ChargeState.PROCESSING, "pending is not overdue yet"
        (attempt,) = await cell.attempts(charge.charge_id)
        for _ in range(3):
            step = await cell.desk.charging.answer(charge, attempt, APPROVED, 0.0)
        assert step.charge.state == ChargeState.SUCCEEDED
        assert (await cell.account("callback")).balance == 50


async def test_the_same_key_is_charged_once(engine: AsyncEngine) -> None:
    async with counter(engine, "twice") as (cell, bank):
        await cell.open("twice")
        command, ask = await cell.charge_command("twice", 50)
        again = replace(command, charge_id=mint_now(Kind.CHARGE, command.slot))
        assert command.following is not None
        other = mint_now(Kind.ATTEMPT, command.slot)
        again = replace(again, following=command.following._replace(attempt_id=other))
        charges = await asyncio.gather(
            *(
                cell.desk.charging.create(it, ask, None, cell.lanes)
                for it in (command, again, again)
            )
        )
        assert len({it.charge_id for it in charges}) == 1
        assert len(bank.asked(AUTHORISE)) == 1


async def test_a_dead_cells_charge_is_finished_by_the_next_home(engine: AsyncEngine) -> None:
    """The bank did it; the cell died before it heard; the slot's new owner asks and credits."""
    bank, vault = ScriptedBank("orphan-bank"), PaperVault()
    bank.hold = asyncio.Event()
    quick = replace(QUICK, send_window_s=0.0, answer_timeout_s=0.0)
    dying = Counter("a", engine, [bank], vault)
    async with dying.at_work():
        await dying.open("orphan", 10)
        charging = dying.desk.drives.start(dying.charge("orphan", 50))
        paying = dying.desk.drives.start(dying.payout("orphan", 10))
        while len(bank.requests) < 2:
            await asyncio.sleep(0.005)
        assert bank.book == -40
        assert not charging.done()
        assert not paying.done()
    bank.hold = None
    slot = slot_of_user("orphan")
    await execute(
        engine,
        f"UPDATE slots SET owner = 'b', epoch = 2 WHERE slot = {slot}",
        f"INSERT INTO slot_history VALUES ({slot}, 2, 'b', 'op-1', now())",
    )
    heir = Counter("b", engine, [bank], vault, quick)
    async with heir.at_work():
        await heir.recover()
        account = await heir.account("orphan")
        assert (account.balance, account.held, account.promised) == (50, 0, 0)
        assert await heir.lying("orphan", bank.name) == bank.book == -40
    await execute(
        engine,
        f"UPDATE slots SET owner = 'a', epoch = 3 WHERE slot = {slot}",
        f"INSERT INTO slot_history VALUES ({slot}, 3, 'a', 'op-2', now())",
    )


async def test_what_is_too_late_to_send_is_never_sent(engine: AsyncEngine) -> None:
    """A process that was paused after the commit: others have asked about it meanwhile."""
    async with counter(engine, "paused", replace(QUICK, send_window_s=-1.0)) as (cell, bank):
        await cell.open("paused", 10)
        charge = await cell.charge("paused", 50)
        assert (charge.state, charge.reason) == (ChargeState.FAILED, "NOT_SENT")
        payout = await cell.payout("paused", 10)
        assert payout.state == PayoutState.FAILED
        assert not bank.requests


async def test_a_vault_that_is_away_leaves_no_charge_in_doubt(engine: AsyncEngine) -> None:
    async with counter(engine, "vaultless") as (cell, bank):
        await cell.open("vaultless")
        cell.vault.away = True
        charge = await cell.charge("vaultless", 50)
        assert (charge.state, charge.reason) == (ChargeState.FAILED, "NOT_SENT")
        assert not bank.requests


async def refunded(cell: Counter, charge_id: str, amount: int | None) -> str:
    slot = slot_of_id(charge_id)
    key = cell.key("RefundCharge", charge_id)
    command = RefundCharge(slot, mint_now(Kind.REFUND, slot), charge_id, amount, None, "", key)
    refund = await cell.desk.refunding.create(command, None)
    return refund.refund_id


async def test_refunds_to_the_card_are_bounded_while_one_is_in_doubt(engine: AsyncEngine) -> None:
    async with counter(engine, "refunder") as (cell, bank):
        await cell.open("refunder")
        charge = await cell.charge("refunder", 100)
        bank.will(Operation.REFUND, Say(UNKNOWN, effect=True))
        bank.will(QUERY, UNKNOWN)
        refund_id = await refunded(cell, charge.charge_id, 60)
        await cell.recover()
        assert (await cell.row(CHARGE_REFUNDS, refund_id)).state == RefundState.SENDING
        assert (await cell.account("refunder")).held == 60
        with pytest.raises(Refusal) as refused:
            await refunded(cell, charge.charge_id, 41)
        assert refused.value.reason == Reason.REFUND_EXCEEDS_CHARGE
        await cell.recover()
        assert (await cell.row(CHARGE_REFUNDS, refund_id)).state == RefundState.SUCCEEDED
        rest = await refunded(cell, charge.charge_id, None)
        assert (await cell.row(CHARGE_REFUNDS, rest)).amount == 40
        account = await cell.account("refunder")
        assert (account.balance, account.held) == (0, 0)
        original = charge.attempt_id
        assert {it.original for it in bank.asked(Operation.REFUND)} == {original}


async def test_a_refund_that_the_bank_declines_releases_its_hold(engine: AsyncEngine) -> None:
    async with counter(engine, "unrefunded") as (cell, bank):
        await cell.open("unrefunded")
        charge = await cell.charge("unrefunded", 100)
        bank.will(Operation.REFUND, DECLINED)
        refund_id = await refunded(cell, charge.charge_id, 60)
        refund = await cell.row(CHARGE_REFUNDS, refund_id)
        assert (refund.state, refund.failure) == (RefundState.FAILED, "INSUFFICIENT_FUNDS")
        account = await cell.account("unrefunded")
        assert (account.balance, account.held) == (100, 0)
        assert (await cell.row(CHARGES, charge.charge_id)).refunded == 0


async def test_deferred_refunds_and_payouts_wait_held_and_go_out_later(
    engine: AsyncEngine,
) -> None:
    async with counter(engine, "deferred") as (cell, bank):
        await cell.open("deferred")
        charge = await cell.charge("deferred", 100)
        cell.deferring = True
        refund_id = await refunded(cell, charge.charge_id, 60)
        payout = await cell.payout("deferred", 40)
        await cell.recover()
        assert (await cell.account("deferred")).held == 100
        assert len(bank.requests) == 1
        cell.deferring = False
        await cell.recover()
        assert (await cell.row(CHARGE_REFUNDS, refund_id)).state == RefundState.SUCCEEDED
        assert (await cell.row(PAYOUTS, payout.payout_id)).state == PayoutState.PAID
        assert (await cell.account("deferred")).held == 0


async def test_a_payout_leaves_the_hold_when_it_is_paid(engine: AsyncEngine) -> None:
    async with counter(engine, "payee") as (cell, bank):
        await cell.open("payee", 70)
        payout = await cell.payout("payee", 30)
        assert payout.state == PayoutState.PAID
        account = await cell.account("payee")
        assert (account.balance, account.held) == (40, 0)
        assert await cell.lying("payee", bank.name) == 30


async def test_an_unknown_payout_holds_the_money_until_the_bank_says(engine: AsyncEngine) -> None:
    second = ScriptedBank("doubt-second")
    async with counter(engine, "doubt", QUICK, second) as (cell, bank):
        await cell.open("doubt", 70)
        bank.will(Operation.PAYOUT, Say(UNKNOWN, effect=True))
        bank.will(QUERY, UNKNOWN, UNKNOWN)
        payout = await cell.payout("doubt", 30)
        for _ in range(2):
            await cell.recover()
            assert (await cell.row(PAYOUTS, payout.payout_id)).state == PayoutState.SENDING
            assert (await cell.account("doubt")).held == 30
        await cell.recover()
        assert (await cell.row(PAYOUTS, payout.payout_id)).state == PayoutState.PAID
        assert not second.requests, "what is not known to have failed goes nowhere else"
        assert not bank.asked(VOID)


async def test_a_payout_goes_on_to_the_next_bank_and_is_given_up_after_the_last(
    engine: AsyncEngine,
) -> None:
    second = ScriptedBank("onward-second")
    async with counter(engine, "onward", QUICK, second) as (cell, bank):
        await cell.open("onward", 70)
        bank.will(Operation.PAYOUT, FAILED, FAILED)
        assert (await cell.payout("onward", 30)).state == PayoutState.PAID
        assert second.book == 30
        second.will(Operation.PAYOUT, FAILED)
        payout = await cell.payout("onward", 30)
        assert (payout.state, payout.reason) == (PayoutState.FAILED, "ISSUER_UNAVAILABLE")
        assert (await cell.account("onward")).held == 0


async def test_a_payout_that_no_channel_takes_waits_and_is_given_up(engine: AsyncEngine) -> None:
    async with counter(engine, "waiting") as (cell, bank):
        await cell.open("waiting", 70)
        bank.operations = frozenset({AUTHORISE})
        payout = await cell.payout("waiting", 30)
        assert payout.state == PayoutState.HELD
        given_up = await cell.desk.paying.advance(payout, QUICK.payout_patience_s)
        assert (given_up.state, given_up.reason) == (PayoutState.FAILED, "NO_CHANNEL")
        assert (await cell.account("waiting")).held == 0


async def test_a_payout_to_a_card_that_was_removed_is_given_up(engine: AsyncEngine) -> None:
    async with counter(engine, "removed") as (cell, bank):
        await cell.open("removed", 70)
        cell.deferring = True
        payout = await cell.payout("removed", 30)
        cell.deferring = False
        cell.vault.owners.clear()
        await cell.recover()
        payout = await cell.row(PAYOUTS, payout.payout_id)
        assert (payout.state, payout.reason) == (PayoutState.FAILED, "INSTRUMENT_INVALID")
        assert not bank.requests


async def test_a_silent_bank_holds_up_nobody_elses_recovery(engine: AsyncEngine) -> None:
    second, one = ScriptedBank("queue-second"), replace(QUICK, recovery_concurrency_max=1)
    async with counter(engine, "queue", one, second) as (cell, bank):
        await cell.open("queue")
        bank.will(AUTHORISE, UNKNOWN, UNKNOWN, FAILED)
        second.will(AUTHORISE, Say(UNKNOWN, effect=True))
        charges = [await cell.charge("queue", 50) for _ in range(3)]
        bank.hold = asyncio.Event()
        recovering = cell.desk.drives.start(cell.desk.recovery.recover(cell.here.owned()))
        while (await cell.row(CHARGES, charges[2].charge_id)).state != ChargeState.SUCCEEDED:
            await asyncio.sleep(0.01)
        assert len(bank.asked(QUERY)) == 1, "one at a time, as told"
        assert not recovering.done()
        bank.hold.set()
        await recovering
        await cell.recover()
        # They never came there, and went on to the other bank.
        states = {(await cell.row(CHARGES, it.charge_id)).state for it in charges}
        assert states == {ChargeState.SUCCEEDED}
        assert bank.book == 0


async def test_a_returned_payout_is_a_posting_of_its_own(engine: AsyncEngine) -> None:
    async with counter(engine, "returned") as (cell, bank):
        await cell.open("returned", 70)
        payout = await cell.payout("returned", 30)
        attempt = await cell.row(ATTEMPTS, payout.attempt_id)
        bank.effects.clear()
        for _ in range(2):
            back = await cell.desk.paying.returned(payout, attempt, "INSTRUMENT_INVALID")
            assert back.state == PayoutState.RETURNED
        assert (await cell.account("returned")).balance == 70


async def test_a_bank_that_lies_is_written_down_and_moves_nothing(engine: AsyncEngine) -> None:
    async with counter(engine, "lied-to") as (cell, bank):
        await cell.open("lied-to", 70)
        bank.will(AUTHORISE, DECLINED)
        charge = await cell.charge("lied-to", 50)
        (attempt,) = await cell.attempts(charge.charge_id)
        for answer in (APPROVED, APPROVED, UNKNOWN):
            step = await cell.desk.charging.answer(charge, attempt, answer, 0.0)
            assert step.charge.state == ChargeState.FAILED
        payout = await cell.payout("lied-to", 20)
        paid = await cell.row(ATTEMPTS, payout.attempt_id)
        await cell.desk.paying.answer(payout, paid, DECLINED)
        assert (await cell.row(PAYOUTS, payout.payout_id)).state == PayoutState.PAID
        disputes = [it.dispute for it in await cell.attempts(charge.charge_id)]
        assert disputes == ["approved/00"]
        assert (await cell.row(ATTEMPTS, paid.attempt_id)).dispute == "declined/51"
        assert (await cell.account("lied-to")).balance == 50
    pending = {it.check for it in (await audit(engine)).pending}
    assert "attempt_is_disputed" in pending
