"""The ledger against an independent model: the same decisions, the same balances, one effect a key.

The model is written from docs and design, with plain dicts and one request at a time. The ledger
decides the same requests in random groups, through the real loading of keys and the real book.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cells.accounts.model import Direction
from cells.accounts.rules import CloseAccount, MoveMoney, OpenAccount
from cells.ledger.book import Book, Leg
from cells.ledger.model import (
    MAX_AMOUNT_MINOR,
    SYSTEM_BALANCE_SOFT_MAX_MINOR,
    Accepted,
    AccountKind,
    Idempotency,
    Key,
    Reason,
    Refused,
)
from cells.ledger.tables import ACCOUNTS, IDEMPOTENCY
from cells.orders.rules import CloseOrder, CreateOrder
from cells.orders.tables import ORDERS
from cells.payments.model import RefundEvent
from cells.payments.rules import EndRefund, Pay, RefundPayment
from cells.payments.tables import PAYMENTS, REFUNDS
from cells.transfers.model import TransferKind
from cells.transfers.rules import BeginTransfer
from router.ids import Kind, Purpose, account_id, collection_account_id, mint, slot_of_id
from router.slots import SLOT_COUNT, slot_of_user
from tests.property.memory import MemoryStore, Owner, check_books
from tests.property.model import CURRENCIES, STRANGER, Model, Request, key_of

CELL = "here"
PEOPLE = ["ann", "bob", "cy"]
MERCHANTS = ["shop", "café"]
USERS = [*PEOPLE, *MERCHANTS, STRANGER]


class Builder:
    """Makes the ledger's command of a request, with IDs minted anew each time, as services do."""

    def __init__(self) -> None:
        self._random = itertools.count(1)

    def new(self, kind: Kind, slot: int) -> str:
        return mint(kind, slot, unix_ms=0, random_80=next(self._random))

    def build(self, request: Request) -> tuple[Any, str]:
        """The command, and the ID of what it would make."""
        scope = request.scope
        digest = repr(request.details).encode()
        key = Idempotency(scope, request.key, request.method, digest)
        is_id = "_" in scope
        slot = slot_of_id(scope) if is_id else slot_of_user(scope)
        event = self.new(Kind.EVENT, slot)
        build = getattr(self, f"_{request.method}")
        command, new_id = build(slot, scope, key, event, *request.details)
        return command, new_id

    def _open(self, slot: int, user: str, key: Any, event: str, currency: str, kind: str) -> Any:
        command = OpenAccount(slot, user, currency, AccountKind(kind), key)
        return command, account_id(user, currency)

    def _close(self, slot: int, scope: str, key: Any, event: str, *_: str) -> Any:
        return CloseAccount(slot, scope, key), scope

    def _deposit(self, slot: int, user: str, key: Any, event: str, *what: Any) -> Any:
        return self._move(slot, user, key, Direction.IN, *what)

    def _withdraw(self, slot: int, user: str, key: Any, event: str, *what: Any) -> Any:
        return self._move(slot, user, key, Direction.OUT, *what)

    def _move(
        self, slot: int, user: str, key: Any, way: Direction, currency: str, amount: int
    ) -> Any:
        new_id = self.new(Kind.MOVEMENT, slot)
        return MoveMoney(slot, new_id, user, way, amount, currency, key), new_id

    def _order(
        self, slot: int, payer: str, key: Any, event: str, merchant: str, currency: str, amount: int
    ) -> Any:
        new_id = self.new(Kind.ORDER, slot)
        return CreateOrder(slot, new_id, payer, merchant, amount, currency, "", key), new_id

    def _close_order(self, slot: int, order: str, key: Any, event: str) -> Any:
        return CloseOrder(slot, order, key), order

    def _pay(self, slot: int, order: str, key: Any, event: str) -> Any:
        new_id = self.new(Kind.PAYMENT, slot)
        return Pay(slot, new_id, event, order, key.key, key.request_hash.hex()), new_id

    def _refund(self, slot: int, payment: str, key: Any, event: str, amount: int | None) -> Any:
        new_id = self.new(Kind.REFUND, slot)
        return RefundPayment(slot, new_id, event, payment, amount, None, "", key), new_id

    def _end_refund(self, slot: int, refund: str, key: Any, event: str, funded: bool) -> Any:
        end = RefundEvent.FUNDED if funded else RefundEvent.UNFUNDED
        return EndRefund(slot, refund, event, end), refund

    def _begin(
        self, kind: TransferKind, payer: str, payee: str, parties: tuple[str, str],
        amount: int | None, currency: str, event: str, key: Any,
    ) -> Any:  # fmt: skip
        slot = slot_of_id(payer)
        new_id = self.new(Kind.TRANSFER, slot)
        return BeginTransfer(
            slot, new_id, event, kind, *parties, payer, payee, amount, currency, "", key
        ), new_id

    def _fund(
        self, slot: int, merchant: str, key: Any, event: str, payer: str, currency: str, amount: int
    ) -> Any:
        collection = collection_account_id(slot_of_user(payer), merchant, currency)
        return self._begin(
            TransferKind.FUNDING, account_id(merchant, currency), collection,
            (merchant, merchant), amount, currency, event, key,
        )  # fmt: skip

    def _sweep(
        self, slot: int, payer: str, key: Any, event: str, merchant: str, currency: str
    ) -> Any:
        collection = collection_account_id(slot, merchant, currency)
        return self._begin(
            TransferKind.SETTLEMENT, collection, account_id(merchant, currency),
            (merchant, merchant), None, currency, event, None,
        )  # fmt: skip

    def _transfer(
        self, slot: int, payer: str, key: Any, event: str, payee: str, currency: str, amount: int
    ) -> Any:
        return self._begin(
            TransferKind.USER, account_id(payer, currency), account_id(payee, currency),
            (payer, payee), amount, currency, event, key,
        )  # fmt: skip


_KEYS = st.sampled_from(["k1", "k2", "k3", "k4", "k5", "k6", "k7", "k8"])
_CURRENCY = st.sampled_from(["USD", "USD", "USD", "JPY"])
_AMOUNT = st.one_of(
    st.integers(1, 60), st.integers(1, 60), st.sampled_from([100, MAX_AMOUNT_MINOR])
)
_AT_HOME = st.sampled_from([*PEOPLE, *MERCHANTS])
_UNKNOWN = {
    kind: mint(kind, slot_of_user("ann"), unix_ms=1, random_80=0) for kind in Kind
}  # fmt: skip


def _one_of(known: list[str], kind: Kind) -> st.SearchStrategy[str]:
    """One that exists, at times one that does not."""
    return st.sampled_from([*known, *known, _UNKNOWN[kind]])


def requests(model: Model) -> st.SearchStrategy[Request]:
    """Requests that a caller could make who knows what is there now."""
    user, key = st.sampled_from(USERS), _KEYS
    order = _one_of(list(model.orders), Kind.ORDER)
    payment = _one_of(list(model.payments), Kind.PAYMENT)

    def made(method: str, scope: st.SearchStrategy[str], *details: Any) -> Any:
        return st.builds(Request, st.just(method), scope, key, st.tuples(*details))

    def close(who: str, currency: str, key: str) -> Request:
        return Request("close", account_id(who, currency), key, (who, currency))

    kind = st.sampled_from(["person", "merchant"])
    return st.one_of(
        made("open", user, _CURRENCY, kind),
        st.builds(close, user, _CURRENCY, key),
        made("deposit", user, _CURRENCY, _AMOUNT),
        made("withdraw", user, _CURRENCY, _AMOUNT),
        made("order", st.sampled_from(PEOPLE), st.sampled_from(MERCHANTS), _CURRENCY, _AMOUNT),
        made("order", user, _AT_HOME, _CURRENCY, _AMOUNT),
        made("close_order", order),
        made("pay", order),
        made("pay", order),
        made("refund", payment, st.one_of(st.none(), _AMOUNT)),
        made("transfer", user, _AT_HOME, _CURRENCY, _AMOUNT),
        st.builds(
            Request, st.just("sweep"), st.sampled_from(PEOPLE), st.just(""),
            st.tuples(st.sampled_from(MERCHANTS), _CURRENCY),
        ),
    )  # fmt: skip


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        elsewhere = slot_of_user(STRANGER)
        self.store = MemoryStore(
            {slot: Owner(CELL, 1) for slot in range(SLOT_COUNT) if slot != elsewhere}
        )
        self.model = Model()
        self.builder = Builder()
        self.made: list[Request] = []

    @initialize()
    def people_with_money(self) -> None:
        opened = [Request("open", user, "open", ("USD", "person")) for user in PEOPLE]
        opened += [Request("open", user, "open", ("USD", "merchant")) for user in MERCHANTS]
        self.execute(opened)
        self.execute([Request("deposit", user, "first", ("USD", 100)) for user in PEOPLE])

    @rule(data=st.data(), size=st.integers(1, 6))
    def group(self, data: st.DataObject, size: int) -> None:
        one = requests(self.model)
        if self.made:
            # A caller who got no answer asks again.
            one = st.one_of(one, one, one, st.sampled_from(self.made))
        self.execute([data.draw(one) for _ in range(size)])

    @rule(
        payer=st.sampled_from(PEOPLE),
        merchant=st.sampled_from(MERCHANTS),
        amount=st.integers(1, 40),
        key=_KEYS,
    )
    def purchase(self, payer: str, merchant: str, amount: int, key: str) -> None:
        before = set(self.model.orders)
        self.execute([Request("order", payer, key, (merchant, "USD", amount))])
        for order in set(self.model.orders) - before:
            self.execute([Request("pay", order, key, ()), Request("pay", order, key, ())])

    @precondition(lambda self: self.model.payments)
    @rule(
        data=st.data(),
        amounts=st.lists(st.one_of(st.none(), st.integers(1, 20)), min_size=1, max_size=4),
    )
    def settled_payment_is_refunded(self, data: st.DataObject, amounts: list[int | None]) -> None:
        payment_id = data.draw(st.sampled_from(list(self.model.payments)))
        payment = self.model.payments[payment_id]
        self.execute([Request("sweep", payment["payer"], "", (payment["merchant"], "USD"))])
        self.execute(
            [
                Request("refund", payment_id, f"again {number}", (amount,))
                for number, amount in enumerate(amounts)
            ]
        )

    @precondition(lambda self: self.pending())
    @rule(data=st.data(), funded=st.booleans())
    def pending_refund_ends(self, data: st.DataObject, funded: bool) -> None:
        refund_id = data.draw(st.sampled_from(self.pending()))
        refund = self.model.refunds[refund_id]
        if funded:
            details = (refund["payer"], refund["currency"], refund["amount"])
            fund = Request("fund", refund["merchant"], refund_id, details)
            (funded,) = self.execute([fund])
        self.execute([Request("end_refund", refund_id, "", (funded,))])

    @precondition(lambda self: self.pending())
    @rule(data=st.data(), key=_KEYS)
    def payer_leaves_before_the_refund(self, data: st.DataObject, key: str) -> None:
        """A promise keeps an empty account open."""
        refund = self.model.refunds[data.draw(st.sampled_from(self.pending()))]
        who = (refund["payer"], refund["currency"])
        balance = self.model.balances[who]
        if balance:
            self.execute([Request("withdraw", who[0], "all", (who[1], balance))])
        self.execute([Request("close", account_id(*who), key, who)])

    def pending(self) -> list[str]:
        return [name for name, it in self.model.refunds.items() if it["state"] == "pending"]

    def execute(self, group: list[Request]) -> list[bool]:
        before = self.store.snapshot()
        built = [self.builder.build(request) for request in group]
        outcomes = self.store.commit(CELL, [command for command, _ in built])
        expected = [
            self.model.answer(request, new_id)
            for request, (_, new_id) in zip(group, built, strict=True)
        ]
        for request, (_, new_id), outcome, answer in zip(
            group, built, outcomes, expected, strict=True
        ):
            assert isinstance(outcome, Accepted) == answer.accepted, (request, outcome)
            if isinstance(outcome, Refused):
                reused = outcome.reason == Reason.EXISTS_WITH_DIFFERENT_INPUT
                assert reused == answer.reused_key
                continue
            assert outcome.replayed == answer.replayed
            first = self.model.keys[key_of(request)][1] if request.key else new_id
            # Whichever repeat this is, it finds what the first one made.
            assert outcome.resource[1] == first
        if not any(answer.accepted and not answer.replayed for answer in expected):
            assert self.store.snapshot() == before, "refused and repeated requests change nothing"
        self.made += [request for request in group if request.key and request.method != "fund"]
        return [answer.accepted for answer in expected]

    @invariant()
    def books_hold(self) -> None:
        check_books(self.store)

    @invariant()
    def balances_are_the_models(self) -> None:
        found = {(it.user_id, it.currency): it for it in self.store.by_purpose("balance")}
        assert {owner: it.balance for owner, it in found.items()} == self.model.balances
        assert {owner for owner, it in found.items() if it.state == "closed"} == self.model.closed
        slots = {slot_of_user(person): person for person in USERS}
        collected = {
            (slots[it.slot], it.user_id, it.currency): it.balance
            for it in self.store.by_purpose("collection")
        }
        assert collected == self.model.collected

    @invariant()
    def money_is_conserved(self) -> None:
        for currency in CURRENCIES:
            inside = sum(
                it.balance
                for it in self.store.all(ACCOUNTS)
                if it.currency == currency and it.purpose != "external"
            )
            assert inside == self.model.outside[currency]

    @invariant()
    def each_key_has_one_effect(self) -> None:
        records = self.store.all(IDEMPOTENCY)
        paid = {(it.order_id, it.idempotency_key, "pay") for it in self.store.all(PAYMENTS)}
        assert len(records) + len(paid) == len(self.model.keys)
        assert paid == {key for key in self.model.keys if key[2] == "pay"}
        made_once = ("mov_", "ref_", "tra_")
        made = [it.resource_id for it in records if it.resource_id.startswith(made_once)]
        assert len(made) == len(set(made))

    @invariant()
    def orders_payments_and_refunds_are_the_models(self) -> None:
        assert {it.order_id: (it.state, it.payment_id) for it in self.store.all(ORDERS)} == {
            order: (it["state"], it["payment"]) for order, it in self.model.orders.items()
        }
        assert {it.payment_id: (it.order_id, it.refunded) for it in self.store.all(PAYMENTS)} == {
            payment: (it["order"], it["refunded"]) for payment, it in self.model.payments.items()
        }
        assert {it.refund_id: (it.amount, it.state) for it in self.store.all(REFUNDS)} == {
            refund: (it["amount"], it["state"]) for refund, it in self.model.refunds.items()
        }


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=80, stateful_step_count=20, deadline=None)


@dataclass(frozen=True)
class HalfDone:
    """Does a bit of everything and is then refused."""

    slot: int
    idempotency: Idempotency
    resource_type = ACCOUNTS

    def other_slots(self) -> tuple[int, ...]:
        return ()

    def reads(self) -> tuple[Key, ...]:
        return ()

    def accounts(self, book: Book) -> list[Key]:
        return [Key(ACCOUNTS, self.slot, account_id("ann", "USD"))]

    def decide(self, book: Book) -> Refused:
        payer = book.account(account_id("ann", "USD"))
        assert payer is not None
        fresh = book.system_account(self.slot, _UNKNOWN[Kind.ACCOUNT], Purpose.CLEARING, "USD")
        book.change_account(payer.account_id, held=10)
        book.change_account(payer.account_id, held=-10, promised=1)
        book.post("posting", "transfer", [Leg(payer, -5), Leg(fresh, 5)])
        book.tell(self.slot, _UNKNOWN[Kind.EVENT], "half.done", "", "{}")
        return Refused(Reason.INSUFFICIENT_FUNDS, "after all")


def test_a_refused_command_leaves_nothing_between_its_neighbours() -> None:
    """Whatever it did to the book before it was refused is undone, and only that."""
    slot = slot_of_user("ann")
    stores = [MemoryStore({slot: Owner(CELL, 1)}) for _ in range(2)]
    for store, refused in zip(stores, [[HalfDone], []], strict=True):
        builder = Builder()
        opened = Request("open", "ann", "k1", ("USD", "person"))
        paid = [Request("deposit", "ann", f"k{number}", ("USD", 50)) for number in (2, 3)]
        store.commit(CELL, [builder.build(opened)[0]])
        group = [builder.build(request)[0] for request in paid]
        group[1:1] = [make(slot, Idempotency("ann", "k4", "HalfDone", b"")) for make in refused]
        assert len(store.commit(CELL, group)) == len(group)
    assert stores[0].snapshot() == stores[1].snapshot()


def test_the_users_of_these_tests_have_slots_of_their_own() -> None:
    assert len({slot_of_user(user) for user in USERS}) == len(USERS)


def test_deposits_beyond_what_the_outside_world_may_owe_are_refused() -> None:
    names = (f"user-{number}" for number in itertools.count())
    slot = slot_of_user(next(names))
    users = list(itertools.islice((n for n in names if slot_of_user(n) == slot), 2))
    store = MemoryStore({slot: Owner(CELL, 1)})
    builder = Builder()
    for user in users:
        store.commit(CELL, [builder.build(Request("open", user, "open", ("USD", "person")))[0]])
    amounts = [SYSTEM_BALANCE_SOFT_MAX_MINOR, 1]
    deposits = [
        builder.build(Request("deposit", user, "deposit", ("USD", amount)))[0]
        for user, amount in zip(users, amounts, strict=True)
    ]
    first, second = store.commit(CELL, deposits)
    assert isinstance(first, Accepted)
    assert isinstance(second, Refused)
    assert second.reason == Reason.BALANCE_TOO_LARGE
