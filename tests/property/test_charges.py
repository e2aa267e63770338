"""Charges, their refunds and payouts, whatever banks do: the real rules against banks of our own.

Each bank keeps a book of what really had its effect there, which the rules never see. Hypothesis
decides which requests arrive, which answers are lost, late or repeated, when an attempt is given up
and voided, and in what order all of it happens. After each step nothing was credited twice and no
hold outlives what it is for; when all is known, our channels' accounts are the banks' books, to the
cent. A second machine lets banks lie: then what is not right is written down as a dispute, and no
money comes of it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cells.accounts.model import Direction
from cells.accounts.rules import CloseAccount, MoveMoney, OpenAccount
from cells.channels.attempts import ATTEMPTS
from cells.channels.choosing import Following
from cells.channels.model import Answer, AnswerReason, Verdict
from cells.channels.rules import as_repeatable
from cells.charges.model import IfOrderEnded
from cells.charges.refunds import AnswerRefund, RefundCharge, SendRefund
from cells.charges.rules import AnswerCharge, CreateCharge, ReverseCharge
from cells.charges.tables import CHARGE_REFUNDS, CHARGES
from cells.ledger.model import Accepted, AccountKind, Idempotency, Outcome
from cells.orders.rules import CloseOrder, CreateOrder
from cells.orders.tables import ORDERS
from cells.payments.rules import Pay
from cells.payouts.rules import (
    AnswerPayout,
    CreatePayout,
    GiveUpPayout,
    ReturnPayout,
    SendPayout,
)
from cells.payouts.tables import PAYOUTS
from router.ids import Kind, account_id, mint
from router.slots import slot_of_user
from tests.property.memory import MemoryStore, Owner, check_books

USER, SHOP = "ann", "shop"
SLOT = slot_of_user(USER)
BANKS = ("north", "south")
AMOUNTS = st.integers(1, 30)
OPEN = {"sent", "pending", "unknown"}
# What may follow what; written from the design, not taken from the rules.
NEXT: dict[str, dict[str, set[str]]] = {
    "attempts": {
        "": {"sent"},
        "sent": {"approved", "declined", "failed", "pending", "unknown", "reversed"},
        "pending": {"approved", "declined", "failed", "reversed"},
        "unknown": {"approved", "declined", "failed", "pending", "reversed"},
        "approved": {"reversed"},
        "declined": set(),
        "failed": set(),
        "reversed": set(),
    },
    "charges": {
        "": {"processing"},
        "processing": {"reversing", "succeeded", "failed"},
        "reversing": {"succeeded", "failed"},
        "succeeded": set(),
        "failed": set(),
    },
    "charge_refunds": {
        "": {"held"},
        "held": {"sending", "failed"},
        "sending": {"held", "succeeded", "failed"},
        "succeeded": set(),
        "failed": set(),
    },
    "payouts": {
        "": {"held"},
        "held": {"sending", "failed"},
        "sending": {"held", "paid", "failed"},
        "paid": {"returned"},
        "failed": set(),
        "returned": set(),
    },
}


@dataclass
class Bank:
    """What a bank knows: verdicts by reference, and what its own book says we owe each other."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    # Seen from us: what it took for us is negative, as in our channel account.
    book: int = 0

    def act(self, attempt: Any, wish: Verdict) -> None:
        """A request arrives; a repeat changes nothing."""
        if attempt.attempt_id in self.verdicts:
            return
        if attempt.operation == "void":
            wish = self._void(attempt, wish)
        elif wish == Verdict.APPROVED:
            self.book += -attempt.amount if attempt.operation == "authorise" else attempt.amount
        self.verdicts[attempt.attempt_id] = wish

    def _void(self, void: Any, wish: Verdict) -> Verdict:
        if wish != Verdict.APPROVED:
            return wish
        if self.verdicts.get(void.original_id) == Verdict.APPROVED:
            self.book += void.amount
        # What comes later under this reference is refused.
        self.verdicts[void.original_id] = Verdict.DECLINED
        return wish

    def says(self, reference: str) -> Answer:
        """The answer to a query. What it never saw it will refuse from now on."""
        if reference not in self.verdicts:
            self.verdicts[reference] = Verdict.FAILED
            return Answer(Verdict.FAILED, AnswerReason.NOT_FOUND)
        return Answer(self.verdicts[reference], AnswerReason.NONE, "00", "rrn")


class BankingMachine(RuleBasedStateMachine):
    lying = False

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore({SLOT: Owner("a", 1), slot_of_user(SHOP): Owner("a", 1)})
        self.banks = {name: Bank() for name in BANKS}
        self._count = itertools.count(1)
        self.answers: list[tuple[str, Answer]] = []
        self.states: dict[str, str] = {}
        self.deposited = 0
        self.lied: set[str] = set()

    # Making commands.

    def new(self, kind: Kind, slot: int = SLOT) -> str:
        return mint(kind, slot, unix_ms=0, random_80=next(self._count))

    def key(self, method: str, scope: str = USER) -> Idempotency:
        return Idempotency(scope, str(next(self._count)), method, b"")

    def do(self, command: Any) -> Outcome:
        return self.store.commit("a", [command])[0]

    def following(self, bank: str) -> Following:
        return Following(self.new(Kind.ATTEMPT), bank, "{}")

    def attempts(self, *states: str) -> list[Any]:
        wanted = set(states) or OPEN
        return [it for it in self.store.all(ATTEMPTS) if it.state in wanted]

    def owner(self, attempt: Any) -> Any:
        for record in (CHARGES, CHARGE_REFUNDS, PAYOUTS):
            found = self.store.get(record, SLOT, attempt.owner_id)
            if found is not None:
                return found
        raise AssertionError

    def answer(self, attempt: Any, answer: Answer, onward: str = "") -> None:
        owner, event = self.owner(attempt), self.new(Kind.EVENT)
        if attempt.operation in {"authorise", "void"}:
            coming = self.following(onward) if onward else None
            command: Any = AnswerCharge(
                SLOT, owner.charge_id, attempt.attempt_id, attempt.channel, "USD", owner.order_id,
                event, self.new(Kind.PAYMENT), self.new(Kind.EVENT), self.new(Kind.REFUND),
                as_repeatable(attempt.operation, answer), coming,
            )  # fmt: skip
        elif attempt.operation == "refund":
            command = AnswerRefund(
                SLOT, owner.refund_id, owner.charge_id, attempt.attempt_id, USER, attempt.channel,
                "USD", event, answer, bool(onward),
            )  # fmt: skip
        else:
            command = AnswerPayout(
                SLOT, owner.payout_id, attempt.attempt_id, USER, attempt.channel, "USD", event,
                answer, bool(onward),
            )  # fmt: skip
        assert isinstance(self.do(command), Accepted)

    # What users do.

    @initialize()
    def people_with_money(self) -> None:
        for user, kind in ((USER, AccountKind.PERSON), (SHOP, AccountKind.MERCHANT)):
            slot = slot_of_user(user)
            self.do(OpenAccount(slot, user, "USD", kind, self.key("OpenAccount", user)))
        self.deposit(50)

    def deposit(self, amount: int) -> None:
        self.deposited += amount
        self.do(
            MoveMoney(
                SLOT, self.new(Kind.MOVEMENT), USER, Direction.IN, amount, "USD",
                self.key("Deposit"),
            )
        )  # fmt: skip

    @rule(
        amount=AMOUNTS,
        bank=st.sampled_from(BANKS),
        order=st.booleans(),
        ended=st.sampled_from(IfOrderEnded),
    )
    def charge(self, amount: int, bank: str, order: bool, ended: IfOrderEnded) -> None:
        order_id = ""
        if order:
            order_id = self.new(Kind.ORDER)
            self.do(
                CreateOrder(SLOT, order_id, USER, SHOP, amount, "USD", "", self.key("CreateOrder"))
            )
        self.do(
            CreateCharge(
                SLOT, self.new(Kind.CHARGE), USER, order_id, "ins", amount, "USD", ended,
                self.following(bank), self.key("CreateCharge"),
            )
        )  # fmt: skip

    @precondition(lambda self: self.store.all(ORDERS))
    @rule(data=st.data(), pay=st.booleans())
    def order_ends_meanwhile(self, data: st.DataObject, pay: bool) -> None:
        order = data.draw(st.sampled_from(self.store.all(ORDERS)))
        if pay:
            event = self.new(Kind.EVENT)
            self.do(Pay(SLOT, self.new(Kind.PAYMENT), event, order.order_id, event, "hash"))
        else:
            self.do(CloseOrder(SLOT, order.order_id, self.key("CloseOrder", order.order_id)))

    @rule()
    def account_is_to_be_closed(self) -> None:
        """Never while anything is under way with a bank."""
        if self.attempts():
            closed = self.do(CloseAccount(SLOT, account_id(USER, "USD"), self.key("CloseAccount")))
            assert not isinstance(closed, Accepted)

    @precondition(lambda self: self.store.all(CHARGES))
    @rule(data=st.data(), amount=st.one_of(st.none(), AMOUNTS))
    def refund(self, data: st.DataObject, amount: int | None) -> None:
        charge = data.draw(st.sampled_from(self.store.all(CHARGES)))
        self.do(
            RefundCharge(
                SLOT, self.new(Kind.REFUND), charge.charge_id, amount, None, "",
                self.key("RefundCharge", charge.charge_id),
            )
        )  # fmt: skip

    @rule(amount=AMOUNTS)
    def payout(self, amount: int) -> None:
        self.do(
            CreatePayout(
                SLOT, self.new(Kind.PAYOUT), USER, "ins", amount, "USD", "",
                self.key("CreatePayout"),
            )
        )  # fmt: skip

    # What drivers do.

    @rule(bank=st.sampled_from(BANKS))
    def what_is_held_is_sent(self, bank: str) -> None:
        for refund in self.store.all(CHARGE_REFUNDS):
            self.do(
                SendRefund(SLOT, refund.refund_id, self.new(Kind.ATTEMPT), refund.channel, "USD")
            )
        for payout in self.store.all(PAYOUTS):
            self.do(SendPayout(SLOT, payout.payout_id, "USD", self.following(bank)))

    @precondition(lambda self: self.store.all(PAYOUTS))
    @rule(data=st.data())
    def payout_is_given_up(self, data: st.DataObject) -> None:
        payout = data.draw(st.sampled_from(self.store.all(PAYOUTS)))
        event = self.new(Kind.EVENT)
        self.do(GiveUpPayout(SLOT, payout.payout_id, USER, "USD", event, "NO_CHANNEL"))

    @precondition(lambda self: self.store.all(CHARGES))
    @rule(data=st.data())
    def charge_is_overdue(self, data: st.DataObject) -> None:
        """Recovery gives it up, whether it is time or not."""
        charge = data.draw(st.sampled_from(self.store.all(CHARGES)))
        self.do(ReverseCharge(SLOT, charge.charge_id, self.new(Kind.ATTEMPT)))

    @rule(
        amount=AMOUNTS,
        bank=st.sampled_from(BANKS),
        done=st.sampled_from([None, Verdict.APPROVED, Verdict.DECLINED]),
        undone=st.sampled_from([None, Verdict.APPROVED, Verdict.DECLINED, Verdict.FAILED]),
    )
    def charge_goes_wrong(
        self, amount: int, bank: str, done: Verdict | None, undone: Verdict | None
    ) -> None:
        """Its answer is lost, it is overdue, and the VOID goes as it may: often seen, so a rule."""
        self.charge(amount, bank, False, IfOrderEnded.KEEP)
        attempt = self.attempts("sent")[-1]
        if done is not None:
            self.banks[bank].act(attempt, done)
        self.answer(attempt, Answer(Verdict.UNKNOWN, AnswerReason.TIMED_OUT))
        self.do(ReverseCharge(SLOT, attempt.owner_id, self.new(Kind.ATTEMPT)))
        (void,) = [it for it in self.attempts("sent") if it.original_id == attempt.attempt_id]
        if undone is not None:
            self.banks[bank].act(void, undone)
            self.answer(void, Answer(self.banks[bank].verdicts[void.attempt_id]))

    # What banks do.

    @precondition(lambda self: self.attempts("sent", "pending", "unknown", "failed"))
    @rule(
        data=st.data(),
        wish=st.sampled_from(
            [Verdict.APPROVED, Verdict.APPROVED, Verdict.DECLINED, Verdict.FAILED]
        ),
        heard=st.booleans(),
    )
    def request_arrives(self, data: st.DataObject, wish: Verdict, heard: bool) -> None:
        """Perhaps late, perhaps again; its answer may be lost, or come when it likes."""
        attempt = data.draw(st.sampled_from(self.attempts("sent", "pending", "unknown", "failed")))
        bank = self.banks[attempt.channel]
        bank.act(attempt, wish)
        said = Answer(bank.verdicts[attempt.attempt_id], AnswerReason.NONE, "00", "rrn")
        self.answers.append((attempt.attempt_id, said))
        if heard:
            self.answer(attempt, said)

    @precondition(lambda self: self.attempts())
    @rule(data=st.data(), verdict=st.sampled_from([Verdict.UNKNOWN, Verdict.PENDING]))
    def nobody_knows(self, data: st.DataObject, verdict: Verdict) -> None:
        attempt = data.draw(st.sampled_from(self.attempts()))
        self.answer(attempt, Answer(verdict, AnswerReason.TIMED_OUT))

    @precondition(lambda self: self.answers)
    @rule(data=st.data(), onward=st.sampled_from(("", *BANKS)))
    def answer_comes_late_or_twice(self, data: st.DataObject, onward: str) -> None:
        reference, answer = data.draw(st.sampled_from(self.answers))
        attempt = self.store.get(ATTEMPTS, SLOT, reference)
        self.answer(attempt, answer, onward)

    @precondition(lambda self: self.attempts())
    @rule(data=st.data(), onward=st.sampled_from(("", *BANKS)))
    def bank_is_asked(self, data: st.DataObject, onward: str) -> None:
        self.ask(data.draw(st.sampled_from(self.attempts())), onward)

    def ask(self, attempt: Any, onward: str = "") -> None:
        bank = self.banks[attempt.channel]
        if attempt.operation == "void":
            bank.act(attempt, Verdict.APPROVED)
        self.answer(attempt, bank.says(attempt.attempt_id), onward)

    @precondition(lambda self: any(it.state == "paid" for it in self.store.all(PAYOUTS)))
    @rule(data=st.data())
    def bank_sends_it_back(self, data: st.DataObject) -> None:
        paid = [it for it in self.store.all(PAYOUTS) if it.state == "paid"]
        payout = data.draw(st.sampled_from(paid))
        back = ReturnPayout(
            SLOT, payout.payout_id, payout.attempt_id, USER, payout.channel, "USD",
            self.new(Kind.EVENT), "INSTRUMENT_INVALID",
        )  # fmt: skip
        if not self.lying:
            self.banks[payout.channel].book -= payout.amount
        assert isinstance(self.do(back), Accepted)
        assert isinstance(self.do(back), Accepted), "the second time it finds the first"

    def teardown(self) -> None:
        """Recovery comes to each in the end; then all is known."""
        if self.lying:
            return
        for _ in range(12):
            self.what_is_held_is_sent(BANKS[0])
            for attempt in self.attempts():
                self.ask(attempt)
            for charge in self.store.all(CHARGES):
                if charge.state == "reversing":
                    self.do(ReverseCharge(SLOT, charge.charge_id, self.new(Kind.ATTEMPT)))
        assert not self.attempts()
        assert {it.state for it in self.store.all(CHARGES)} <= {"succeeded", "failed"}
        user = self.store.get_account(USER)
        assert (user.held, user.promised) == (0, 0)
        self.books_are_the_banks()
        self.books_hold()

    # What always holds.

    @invariant()
    def books_hold(self) -> None:
        check_books(self.store)

    @invariant()
    def states_follow_each_other(self) -> None:
        for record in (ATTEMPTS, CHARGES, CHARGE_REFUNDS, PAYOUTS):
            for row in self.store.all(record):
                before = self.states.get(row[1], "")
                if row.state != before:
                    # Several steps may lie between two looks; each of them must be allowed.
                    assert row.state in _reachable(NEXT[record.name], before), (row, before)
                    self.states[row[1]] = row.state

    @invariant()
    def money_moves_once_and_only_with_its_state(self) -> None:
        entries = Counter(entry.posting_id for entry in self.store.entries.values())
        for charge in self.store.all(CHARGES):
            assert entries[charge.charge_id] == (2 if charge.state == "succeeded" else 0)
        for refund in self.store.all(CHARGE_REFUNDS):
            assert entries[refund.refund_id] == (2 if refund.state == "succeeded" else 0)
        for payout in self.store.all(PAYOUTS):
            paid = payout.state in {"paid", "returned"}
            assert entries[payout.payout_id] == (2 if paid else 0)
            back = payout.state == "returned"
            assert entries[f"{payout.payout_id}/returned"] == (2 if back else 0)

    @invariant()
    def balance_is_what_came_and_went(self) -> None:
        expected = self.deposited
        for charge in self.store.all(CHARGES):
            expected += charge.amount if charge.state == "succeeded" else 0
        for refund in self.store.all(CHARGE_REFUNDS):
            expected -= refund.amount if refund.state == "succeeded" else 0
        for payout in self.store.all(PAYOUTS):
            expected -= payout.amount if payout.state == "paid" else 0
        for order in self.store.all(ORDERS):
            expected -= order.amount if order.state == "paid" else 0
        assert self.store.get_account(USER).balance == expected

    @invariant()
    def attempts_are_in_order(self) -> None:
        for charge in self.store.all(CHARGES):
            mine = [it for it in self.store.all(ATTEMPTS) if it.owner_id == charge.charge_id]
            authorisations = [it for it in mine if it.operation == "authorise"]
            assert len([it for it in authorisations if it.state in OPEN]) <= 1
            assert len([it for it in authorisations if it.state == "approved"]) <= 1
            voids = [it for it in mine if it.operation == "void" and it.state in OPEN]
            assert len(voids) <= (1 if charge.state == "reversing" else 0)
            if charge.state in {"succeeded", "failed"}:
                assert not [it for it in mine if it.state in OPEN]
            approved = [it for it in authorisations if it.state == "approved"]
            if charge.state == "succeeded":
                assert [it.attempt_id for it in approved] == [charge.attempt_id]
            if charge.state == "failed":
                assert not approved

    @invariant()
    def honest_banks_are_never_disputed(self) -> None:
        if not self.lying:
            for attempt in self.store.all(ATTEMPTS):
                # Its approval came when it was undone already: absorbed, and to be looked at.
                late = attempt.state == "reversed"
                assert late or not attempt.dispute, attempt

    def books_are_the_banks(self) -> None:
        lying = {it.user_id: it.balance for it in self.store.by_purpose("channel")}
        for name, bank in self.banks.items():
            assert lying.get(name, 0) == bank.book, name


def _reachable(table: dict[str, set[str]], state: str) -> set[str]:
    found: set[str] = set()
    ahead = set(table[state])
    while ahead - found:
        found |= ahead
        ahead = set().union(*(table[it] for it in found))
    return found


class LyingMachine(BankingMachine):
    """Banks that say anything of anything."""

    lying = True

    @precondition(lambda self: self.store.all(ATTEMPTS))
    @rule(
        data=st.data(),
        verdict=st.sampled_from(Verdict),
        code=st.sampled_from(["", "00", "05", "\x1e\x00 ", "x" * 500]),
        onward=st.sampled_from(("", *BANKS)),
    )
    def bank_lies(self, data: st.DataObject, verdict: Verdict, code: str, onward: str) -> None:
        attempt = data.draw(st.sampled_from(self.store.all(ATTEMPTS)))
        before = self.store.snapshot()[1]
        self.answer(attempt, Answer(verdict, AnswerReason.NONE, code), onward)
        if attempt.state in OPEN:
            return
        after = self.store.get(ATTEMPTS, SLOT, attempt.attempt_id)
        assert after.state == attempt.state, "what is known stays known"
        assert self.store.snapshot()[1] == before, "no money comes of what is said afterwards"
        has_effect = attempt.state == "approved"
        contradicts = verdict.is_final and (verdict == Verdict.APPROVED) != has_effect
        assert bool(after.dispute) >= contradicts, (attempt, verdict)


TestCharges = BankingMachine.TestCase
TestCharges.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestLyingBanks = LyingMachine.TestCase
TestLyingBanks.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
