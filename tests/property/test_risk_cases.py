"""Verdicts in commands, cases and second factors: whatever comes in whatever order, money moves for
a request only when it was allowed or its own case was passed, and then once."""

from __future__ import annotations

import itertools
from collections import Counter
from datetime import timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cells.accounts.model import Direction
from cells.accounts.rules import MoveMoney, OpenAccount
from cells.accounts.tables import MOVEMENTS
from cells.ledger.model import Accepted, AccountKind, Idempotency, Reason, Refused
from cells.ledger.tables import ENTRIES
from cells.orders.rules import CreateOrder
from cells.payments.rules import Pay
from cells.payments.tables import PAYMENTS
from cells.risk.cases.model import (
    NO_TIME,
    TRANSITIONS,
    TRIES_MAX,
    Case,
    CaseEvent,
    CaseKind,
    CaseState,
    Conclusion,
    StoredDecision,
    Verdict,
)
from cells.risk.cases.rules import (
    FAILURES_MAX,
    AnswerChallenge,
    ConfirmFactor,
    DecideReview,
    EnrolFactor,
    Screened,
    can_answer,
    case_id,
    conclude,
    factor_id,
    fingerprint,
)
from cells.risk.cases.tables import CASES, FACTORS, RISK_DECISIONS
from cells.vault.model import KeyPurpose, KeyState, SlotKey, key_id_of
from cells.vault.rules import AddKey
from router.ids import Kind, mint
from router.risk.model import Action
from router.slots import slot_of_user
from tests.property.memory import MemoryStore, Owner, check_books

CELL = "here"
USER, SHOP = "ann", "shop"
SLOT = slot_of_user(USER)
AMOUNT = 10
TTL_S = 300
KEYS = ["k1", "k2"]
REQUESTS = st.sampled_from([("pay", "k1"), ("pay", "k2"), ("withdraw", "k1")])


class Cases(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore({slot: Owner(CELL, 1) for slot in (SLOT, slot_of_user(SHOP))})
        self.numbers = itertools.count(1)
        self.step = 1_000
        self.orders: dict[str, str] = {}
        # What each request's first success made, and what may let it go on.
        self.made: dict[tuple[str, str], str] = {}
        self.plain: set[tuple[str, str]] = set()
        self.passes: Counter[str] = Counter()
        self.right_steps: list[int] = []

    def new(self, kind: Kind) -> str:
        return mint(kind, SLOT, unix_ms=0, random_80=next(self.numbers))

    def run(self, command: Any) -> Any:
        return self.store.commit(CELL, [command])[0]

    @initialize()
    def begin(self) -> None:
        for user, kind in ((USER, AccountKind.PERSON), (SHOP, AccountKind.MERCHANT)):
            key = Idempotency(user, "open", "OpenAccount", b"")
            self.run(OpenAccount(slot_of_user(user), user, "USD", kind, key))
        key = Idempotency(USER, "in", "Deposit", b"")
        self.run(MoveMoney(SLOT, self.new(Kind.MOVEMENT), USER, Direction.IN, 1000, "USD", key))
        for name in KEYS:
            key = Idempotency(USER, name, "CreateOrder", b"")
            command = CreateOrder(SLOT, self.new(Kind.ORDER), USER, SHOP, AMOUNT, "USD", "", key)
            self.orders[name] = self.run(command).resource.order_id
        wrapped = SlotKey(
            SLOT, key_id_of(SLOT, KeyPurpose.FIELD, 1), KeyPurpose.FIELD, 1, KeyState.PRIMARY,
            "d3JhcHBlZA==", "1", NO_TIME, NO_TIME,
        )  # fmt: skip
        self.run(AddKey(wrapped))
        assert isinstance(self.run(EnrolFactor(SLOT, USER, "c2VhbGVk", 1, 0, 0)), Accepted)
        assert isinstance(self.run(ConfirmFactor(SLOT, USER, self.step, 1)), Accepted)
        self.store.now += timedelta(seconds=1)

    def _command(self, request: tuple[str, str]) -> tuple[Any, str]:
        what, key = request
        if what == "pay":
            order = self.orders[key]
            pay = Pay(SLOT, self.new(Kind.PAYMENT), self.new(Kind.EVENT), order, key, "hash")
            return pay, order
        idempotency = Idempotency(USER, key, "Withdraw", b"")
        move = MoveMoney(
            SLOT, self.new(Kind.MOVEMENT), USER, Direction.OUT, AMOUNT, "USD", idempotency
        )
        return move, USER

    def _read(self, identifier: str) -> Case | None:
        case: Case | None = self.store.get(CASES, SLOT, identifier)
        return case

    def _state(self, case: Case) -> CaseState:
        """By the page, not by the code."""
        waits = case.state in {"open", "passed"}
        return (
            CaseState.EXPIRED
            if waits and case.expires_at <= self.store.now
            else CaseState(case.state)
        )

    def _challenge(self, request: tuple[str, str]) -> str:
        _, scope = self._command(request)
        return case_id(CaseKind.CHALLENGE, SLOT, request[0], scope, request[1])

    def _verdict(self, request: tuple[str, str], scope: str, action: Action) -> Verdict:
        """As screening makes it, of what stands there now."""
        what, key = request
        ids = {kind: case_id(kind, SLOT, what, scope, key) for kind in CaseKind}
        cases = {kind: self._read(identifier) for kind, identifier in ids.items()}
        states = {kind: self._state(case) if case else None for kind, case in cases.items()}
        factor = self.store.get(FACTORS, SLOT, factor_id(SLOT, USER))
        conclusion, why = conclude(
            action, states[CaseKind.CHALLENGE], states[CaseKind.REVIEW],
            answerable=can_answer(factor, cases[CaseKind.CHALLENGE]),
        )  # fmt: skip
        if conclusion == Conclusion.ALLOW:
            uses = tuple(ids[kind] for kind in CaseKind if states[kind] == CaseState.PASSED)
            return Verdict(conclusion, uses=uses)
        subject = scope if what == "pay" else ""
        decision = StoredDecision(
            SLOT, self.new(Kind.DECISION), USER, what, conclusion, subject, "", AMOUNT, "USD",
            why or "R", "", "", 1, "", NO_TIME,
        )  # fmt: skip
        if conclusion == Conclusion.DENY:
            return Verdict(conclusion, (why or "R",), decision)
        kind = CaseKind(conclusion.value)
        case = Case(
            SLOT, ids[kind], kind, CaseState.OPEN, USER, what, subject, "", AMOUNT, "USD", key,
            fingerprint(what, USER, subject, "", AMOUNT, "USD"), decision.decision_id, "R", "",
            "{}", 0, "", "", "", NO_TIME, NO_TIME, NO_TIME,
        )  # fmt: skip
        return Verdict(conclusion, ("R",), decision, case, TTL_S)

    @rule(request=REQUESTS, action=st.sampled_from(list(Action)))
    def ask(self, request: tuple[str, str], action: Action) -> None:
        command, scope = self._command(request)
        verdict = self._verdict(request, scope, action)
        self._ask(request, command, verdict, action)

    @rule(request=REQUESTS, stale=st.sampled_from(list(CaseKind)))
    def ask_with_what_is_no_longer_true(self, request: tuple[str, str], stale: CaseKind) -> None:
        """Two of the same request at once: both saw the case passed."""
        command, scope = self._command(request)
        used = case_id(stale, SLOT, request[0], scope, request[1])
        self._ask(request, command, Verdict(Conclusion.ALLOW, uses=(used,)), None)

    def _ask(
        self, request: tuple[str, str], command: Any, verdict: Verdict, action: Action | None
    ) -> None:
        money = len(self.store.all(PAYMENTS)) + len(self.store.all(MOVEMENTS))
        entries = len(self.store.entries)
        before = {case: self._read(case) for case in verdict.uses}
        outcome = self.run(Screened(command, verdict))
        moved = len(self.store.all(PAYMENTS)) + len(self.store.all(MOVEMENTS)) - money
        if request in self.made:
            # Never denied, never again.
            assert isinstance(outcome, Accepted)
            assert outcome.replayed
            assert outcome.resource[1] == self.made[request]
        elif isinstance(outcome, Accepted):
            self.made[request] = outcome.resource[1]
            assert verdict.conclusion == Conclusion.ALLOW
            assert verdict.uses or action == Action.ALLOW
            for case, known in before.items():
                assert known is not None
                assert self._state(known) == CaseState.PASSED
                used = self._read(case)
                assert used is not None
                assert used.state == CaseState.USED
                self.passes[case] += 1
            assert moved == 1
            return
        assert moved == 0
        assert len(self.store.entries) == entries
        if isinstance(outcome, Refused) and outcome.reason == Reason.RISK_DENIED:
            kept = self.store.get(RISK_DECISIONS, SLOT, outcome.metadata["decision_id"])
            assert kept is not None

    @rule(request=REQUESTS, waited_s=st.sampled_from([0, TTL_S - 1, TTL_S]))
    def answer_and_go_on(self, request: tuple[str, str], waited_s: int) -> None:
        """As an honest client does; one that comes too late is asked again."""
        self.ask(request, Action.CHALLENGE)
        self.answer(request, right=True, late=False)
        self.wait(waited_s)
        self.ask(request, Action.CHALLENGE)
        self.ask_with_what_is_no_longer_true(request, CaseKind.CHALLENGE)

    @rule(first=REQUESTS, second=REQUESTS)
    def a_code_opens_one_challenge(self, first: tuple[str, str], second: tuple[str, str]) -> None:
        for request in (first, second):
            self.ask(request, Action.CHALLENGE)
        self.step += 1
        version = self.store.get(FACTORS, SLOT, factor_id(SLOT, USER)).version
        opened = set()
        for request in (first, second):
            challenge = self._challenge(request)
            before = self._read(challenge)
            self.run(AnswerChallenge(SLOT, challenge, USER, self.step, version, TTL_S))
            after = self._read(challenge)
            # One may stand passed, by an earlier code.
            if before is not None and after is not None and before.state != after.state == "passed":
                opened.add(request)
        assert len(opened) <= 1

    @rule(
        request=REQUESTS,
        right=st.sampled_from([True, True, False]),
        late=st.sampled_from([False, False, False, True]),
    )
    def answer(self, request: tuple[str, str], right: bool, late: bool) -> None:
        """`late`: the code was made out by a factor that has changed since."""
        _, scope = self._command(request)
        challenge = case_id(CaseKind.CHALLENGE, SLOT, request[0], scope, request[1])
        case, factor = self._read(challenge), self.store.get(FACTORS, SLOT, factor_id(SLOT, USER))
        if right:
            self.step += 1
        step = self.step if right else 0
        version = factor.version - 1 if late else factor.version
        outcome = self.run(AnswerChallenge(SLOT, challenge, USER, step, version, TTL_S))
        after = self._read(challenge)
        if case is None:
            assert isinstance(outcome, Refused)
            return
        assert after is not None
        could = (
            self._state(case) == CaseState.OPEN
            and right and not late and factor.locked_until <= self.store.now
        )  # fmt: skip
        assert isinstance(outcome, Accepted) == could
        assert after.tries <= TRIES_MAX
        if could:
            assert after.state == CaseState.PASSED

    @rule(request=REQUESTS, approve=st.booleans())
    def review(self, request: tuple[str, str], approve: bool) -> None:
        _, scope = self._command(request)
        identifier = case_id(CaseKind.REVIEW, SLOT, request[0], scope, request[1])
        case = self._read(identifier)
        audit_id = f"audit-{next(self.numbers)}"
        command = DecideReview(SLOT, identifier, approve, "op", audit_id, "", TTL_S)
        outcome, again = self.run(command), self.run(command)
        event = CaseEvent.PASS if approve else CaseEvent.FAIL
        may = case and TRANSITIONS[self._state(case)].get(event)
        assert isinstance(outcome, Accepted) == bool(may)
        assert isinstance(again, Accepted) == bool(may)

    @rule(seconds=st.sampled_from([1, 1, 1, TTL_S - 1, TTL_S, 4 * TTL_S]))
    def wait(self, seconds: int) -> None:
        self.store.now += timedelta(seconds=seconds)

    @invariant()
    def the_books_are_sound_and_a_case_passes_one_request(self) -> None:
        check_books(self.store)
        assert max(self.passes.values(), default=0) <= 1
        spent = sum(1 for what, _ in self.made if what == "withdraw")
        assert len([move for move in self.store.all(MOVEMENTS) if move.direction == "out"]) == spent
        used = {case.case_id for case in self.store.all(CASES) if case.state == CaseState.USED}
        assert used == set(self.passes)
        kept = {decision.decision_id for decision in self.store.all(RISK_DECISIONS)}
        assert all(case.decision_id in kept for case in self.store.all(CASES))
        assert self.store.rows.get(ENTRIES) is None


Cases.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestCases = Cases.TestCase


def test_wrong_codes_lock_a_factor_for_longer_each_time() -> None:
    machine = Cases()
    machine.begin()
    request = ("pay", "k1")
    for number in range(FAILURES_MAX):
        # Other challenges, for each ends after its own few.
        machine.orders["k1"] = machine.run(
            CreateOrder(
                SLOT, machine.new(Kind.ORDER), USER, SHOP, AMOUNT, "USD", "",
                Idempotency(USER, f"more-{number}", "CreateOrder", b""),
            )
        ).resource.order_id  # fmt: skip
        machine.ask(request, Action.CHALLENGE)
        machine.answer(request, right=False, late=False)
    challenge = case_id(CaseKind.CHALLENGE, SLOT, "pay", machine.orders["k1"], "k1")
    factor = machine.store.get(FACTORS, SLOT, factor_id(SLOT, USER))
    locked = machine.run(
        AnswerChallenge(SLOT, challenge, USER, machine.step + 1, factor.version, TTL_S)
    )
    assert isinstance(locked, Refused)
    assert locked.reason == Reason.FACTOR_LOCKED
    machine.store.now += timedelta(seconds=299)
    assert machine.store.get(FACTORS, SLOT, factor.factor_id).locked_until > machine.store.now


def test_a_factor_that_is_younger_than_the_challenge_does_not_answer_it() -> None:
    machine = Cases()
    machine.begin()
    request = ("pay", "k1")
    machine.ask(request, Action.CHALLENGE)
    # Whoever has a code of the old one may replace it, and still not answer what was asked before.
    enrolling = EnrolFactor(SLOT, USER, "b3RoZXI=", 1, machine.step + 1, 2)
    assert isinstance(machine.run(enrolling), Accepted)
    assert isinstance(machine.run(ConfirmFactor(SLOT, USER, machine.step + 2, 3)), Accepted)
    answer = AnswerChallenge(SLOT, machine._challenge(request), USER, machine.step + 3, 4, TTL_S)
    outcome = machine.run(answer)
    assert isinstance(outcome, Refused)
    assert outcome.reason == Reason.FACTOR_NOT_FOUND
