"""The screening between a service and its lane: real lanes and a real PostgreSQL; features in
memory, and features that do not answer, as a Redis that is away."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from unittest.mock import ANY

import grpc
import pytest
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.accounts.model import Direction
from cells.accounts.rules import MoveMoney, OpenAccount
from cells.database import make_engine
from cells.ledger.model import Accepted, AccountKind, Idempotency, Outcome, Reason, Refused
from cells.ledger.worker import Lanes
from cells.orders.rules import CreateOrder
from cells.payments.rules import Pay
from cells.reading import ReadEngine
from cells.risk.asking import NOWHERE, Asked, Whence
from cells.risk.cases.model import Operation
from cells.risk.cases.rules import DecideReview
from cells.risk.hits import Hits
from cells.risk.interface import FeaturesAway, Score
from cells.risk.knowledge import Knowledge, knowledge_of
from cells.risk.lookups import RiskReader
from cells.risk.memory import MemoryFeatures
from cells.risk.screening import Screening, Sources
from cells.settings import DatabaseSettings, LaneSettings, RiskSettings
from router.errors import Refusal
from router.guard import SlotsHere
from router.ids import Kind, slot_of_id
from router.minting import mint_now
from router.policies.risk import Rulebook
from router.risk.compiling import Compiling
from router.risk.facts import Value
from router.risk.features import Aggregate, Entity, Feature, FeatureSet, Observation
from router.risk.model import Action, FailOpen, Mode, Rule, RuleSet, Source
from router.risk.record import Record
from router.slotmap import Owned, SlotMap
from router.slots import slot_of_user
from tests.integration.behind import going_on
from tests.integration.books import give_all_slots, new_database

pytestmark = pytest.mark.mesh
CELL, SHOP = "a", "screened-shop"
PAID = FeatureSet((Feature("paid", Entity.DEVICE, Aggregate.COUNT, 3600),))
PATIENT = RiskSettings(screening_timeout_ms=20_000)


class NoContext:
    """A call without deadline, from nobody."""

    def time_remaining(self) -> None:
        return None

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}


class Hurried(NoContext):
    """A caller with little time."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def time_remaining(self) -> float:  # type: ignore[override]
        return max(0.0, self._until - time.monotonic())


class Away:
    """Redis, when it is away: at once, or not even that."""

    def __init__(self, hang_s: float = 0.0) -> None:
        self.hang_s = hang_s

    async def read(
        self, document: FeatureSet, asked: Sequence[Observation]
    ) -> Sequence[Mapping[str, int]]:
        await asyncio.sleep(self.hang_s)
        raise FeaturesAway("away")


class Model:
    version = "m1"

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def score(self, facts: Sequence[Mapping[str, Value]]) -> Sequence[Score]:
        if self.broken:
            raise ZeroDivisionError
        return [Score(0.99 if item["device.id"] == "bot" else 0.01) for item in facts]


class Models:
    def __init__(self, live: Model | None = None, shadows: Sequence[Model] = ()) -> None:
        self.live, self.shadows = live, shadows


class Told:
    def __init__(self) -> None:
        self.records: list[Record] = []

    def put(self, record: Record) -> None:
        self.records.append(record)


def rule(name: str, when: str, action: Action = Action.DENY, **more: Any) -> Rule:
    return Rule(name, when, action, name.upper().replace("-", "_"), **more)


def knowing(*rules: Rule, features: FeatureSet | None = None, **limits: int) -> Knowledge:
    fail_open = tuple(FailOpen(name, "USD", most) for name, most in limits.items())
    documents = {"r": RuleSet(rules, fail_open)} if rules or limits else {}
    book = Rulebook(documents, features={"f": features} if features else {})
    return knowledge_of(book, datetime.now(UTC), Compiling())


@pytest.fixture
async def engine(server_url: URL) -> AsyncIterator[AsyncEngine]:
    async with new_database(server_url) as engine:
        await give_all_slots(engine)
        yield engine


class Desk:
    """A cell's services, as far as they submit."""

    def __init__(self, lanes: Lanes, screening: Screening, told: Told) -> None:
        self.lanes = lanes
        self.screening = screening
        self.told = told

    async def opened(self, user: str, minor_units: int, kind: str = "person") -> str:
        slot = slot_of_user(user)
        key = Idempotency(user, "open", "OpenAccount", b"")
        await self.lanes.submit(OpenAccount(slot, user, "USD", AccountKind(kind), key))
        if minor_units:
            key = Idempotency(user, "in", "Deposit", b"")
            await self.lanes.submit(
                MoveMoney(
                    slot, mint_now(Kind.MOVEMENT, slot), user, Direction.IN, minor_units, "USD", key
                )
            )
        return user

    async def ordered(self, user: str, minor_units: int) -> str:
        await self.opened(SHOP, 0, "merchant")
        slot = slot_of_user(user)
        key = Idempotency(user, uuid.uuid4().hex, "CreateOrder", b"")
        made = await self.lanes.submit(
            CreateOrder(slot, mint_now(Kind.ORDER, slot), user, SHOP, minor_units, "USD", "", key)
        )
        assert isinstance(made, Accepted)
        return str(made.resource.order_id)

    async def pay(self, order_id: str, device: str = "", key: str = "k") -> Outcome:
        slot = slot_of_id(order_id)
        command = Pay(
            slot, mint_now(Kind.PAYMENT, slot), mint_now(Kind.EVENT, slot), order_id, key, "hash"
        )
        asked = Asked(
            Operation.PAY, slot, order_id, key, "", "", 0, "", order_id, Whence(device=device)
        )
        return await self.screening.submit(command, asked, NoContext())

    async def withdraw(
        self, user: str, minor_units: int, key: str = "k", context: Any = None
    ) -> Outcome:
        slot = slot_of_user(user)
        command = MoveMoney(
            slot, mint_now(Kind.MOVEMENT, slot), user, Direction.OUT, minor_units, "USD",
            Idempotency(user, key, "Withdraw", b""),
        )  # fmt: skip
        asked = Asked(
            Operation.WITHDRAW, slot, user, key, user, "", minor_units, "USD", "", NOWHERE
        )
        return await self.screening.submit(command, asked, context or NoContext())


@asynccontextmanager
async def desk(
    engine: AsyncEngine,
    knowledge: Knowledge | None,
    *,
    features: Any = None,
    models: Models | None = None,
    settings: RiskSettings = PATIENT,
    is_on: bool = True,
) -> AsyncIterator[Desk]:
    url = engine.url.render_as_string(hide_password=False)
    database = DatabaseSettings()
    made = make_engine(url, CELL, database, pool_size=4, lanes=True)
    lanes = Lanes(made, CELL, LaneSettings())
    here = SlotsHere(CELL)
    here.publish(SlotMap((Owned(0, 1023, CELL, 1),)))
    told = Told()
    sources = Sources(
        lambda: knowledge, features or MemoryFeatures(), models or Models(), lambda: is_on, Hits()
    )
    readers = [RiskReader(made, here) for _ in range(settings.groups_max)]
    screening = Screening(lanes, readers, sources, told, settings)
    try:
        async with going_on(*lanes.runners(), *screening.runners()):
            yield Desk(lanes, screening, told)
    finally:
        await screening.close()
        await ReadEngine(made).dispose()


def reason(outcome: Outcome) -> str:
    return outcome.reason if isinstance(outcome, Refused) else "ok"


async def test_without_documents_nothing_is_asked_and_nothing_is_told(engine: AsyncEngine) -> None:
    async with desk(engine, knowing(), features=Away(60)) as at:
        user = await at.opened("nobody-minds", 100)
        assert reason(await at.withdraw(user, 1)) == "ok"
        assert not at.told.records


async def test_before_anything_is_known_nothing_goes_out(engine: AsyncEngine) -> None:
    async with desk(engine, None) as at:
        user = await at.opened("too-early", 100)
        assert reason(await at.withdraw(user, 1)) == Reason.RISK_UNAVAILABLE


async def test_facts_are_what_the_books_say(engine: AsyncEngine) -> None:
    what = (
        'operation == "pay" && amount == 30 && currency == "USD" && user.id == "facts"'
        f' && user.balance == 100 && payee.id == "{SHOP}" && payee.is_merchant'
        ' && user.account_age_days == 0 && device.id == "d" && model.score < 0.0'
        " && !challenge.passed && f.paid == 0"
    )
    async with desk(engine, knowing(rule("all", what), features=PAID)) as at:
        order = await at.ordered(await at.opened("facts", 100), 30)
        outcome = await at.pay(order, "d")
        assert isinstance(outcome, Refused)
        assert outcome.metadata["reasons"] == "ALL"
        (record,) = at.told.records
        assert (record.action, record.hits, record.observation.user) == ("deny", ("all",), "facts")


async def test_each_request_of_a_group_finds_its_own_account_and_payee(engine: AsyncEngine) -> None:
    async with desk(engine, knowing()) as at:
        users = [await at.opened(f"own-{number}", 100 + number) for number in range(3)]
        order = await at.ordered(users[0], 7)
        group = [
            Asked(Operation.PAY, slot_of_id(order), order, "k", "", "", 0, "", order, NOWHERE),
            *(_transfer(users[1], payee, "USD") for payee in (SHOP, users[2], "nobody")),
            _transfer(users[2], SHOP, "EUR"),
            Asked(
                Operation.WITHDRAW, slot_of_user("none"), "none", "k", "none", "", 1, "USD", "",
                NOWHERE,
            ),
        ]  # fmt: skip
        here = SlotsHere(CELL)
        here.publish(SlotMap((Owned(0, 1023, CELL, 1),)))
        reader = RiskReader(engine, here)
        found = await reader.requests(group)
        assert [item.account.balance if item.account else None for item in found] == [
            100, 101, 101, 101, None, None
        ]  # fmt: skip
        assert [item.payee_kind for item in found] == ["", "merchant", "person", "", "", ""]
        # One alone, whose columns are all empty but for the order.
        assert await reader.requests(group[:1]) == [found[0]._replace(now=ANY)]
        # A payee of another cell is not looked up.
        slot = slot_of_user(SHOP)
        here.publish(SlotMap((
            *([Owned(0, slot - 1, CELL, 1)] if slot else []), Owned(slot, slot, "b", 2),
            *([Owned(slot + 1, 1023, CELL, 1)] if slot < 1023 else []),
        )))  # fmt: skip
        (elsewhere,) = await reader.requests(group[1:2])
        assert elsewhere.payee_kind == ""
        await reader.close()


def _transfer(payer: str, payee: str, currency: str) -> Asked:
    return Asked(
        Operation.TRANSFER, slot_of_user(payer), payer, "k", payer, payee, 1, currency, "", NOWHERE
    )


async def test_a_decision_is_told_when_it_had_an_effect_and_once(engine: AsyncEngine) -> None:
    denying = rule("bad", 'device.id == "bad"')
    shadow = rule("later", "amount > 0", mode=Mode.SHADOW)
    async with desk(engine, knowing(denying, shadow)) as at:
        user = await at.opened("told", 50)
        order, dear = await at.ordered(user, 30), await at.ordered(user, 1000)
        assert reason(await at.pay(order, "bad")) == Reason.RISK_DENIED
        first = await at.pay(order, "good")
        again = await at.pay(order, "bad")
        assert isinstance(first, Accepted)
        assert isinstance(again, Accepted)
        assert again.resource == first.resource
        assert reason(await at.pay(dear, "good", "other")) == Reason.INSUFFICIENT_FUNDS
        assert [record.action for record in at.told.records] == ["deny", "allow"]
        assert at.told.records[1].shadow_hits == ("later",)


async def test_many_at_once_are_judged_in_groups_each_for_itself(engine: AsyncEngine) -> None:
    async with desk(engine, knowing(rule("large", "amount > 15"))) as at:
        users = [await at.opened(f"many-{number}", 100) for number in range(60)]
        reads = 0
        for reader in at.screening._readers:
            real = reader.requests

            async def counted(group: Any, real: Any = real) -> Any:
                nonlocal reads
                reads += 1
                return await real(group)

            reader.requests = counted  # type: ignore[method-assign]
        outcomes = await asyncio.gather(
            *(at.withdraw(user, 10 + number % 10) for number, user in enumerate(users))
        )
        assert [reason(item) for item in outcomes] == [
            Reason.RISK_DENIED if number % 10 > 5 else "ok" for number in range(60)
        ]
        assert reads < 10


@pytest.mark.parametrize("seconds", [0.0, 0.0013, 0.05])
async def test_who_has_no_time_for_a_judgement_gets_no_money_without_one(
    engine: AsyncEngine, seconds: float
) -> None:
    # What risk lets pass when it is away itself, and a caller who says that it is.
    known = knowing(rule("no", "amount > 0"), features=PAID, withdraw=1000)
    async with desk(engine, known, features=Away(60)) as at:
        user = await at.opened("hurried", 100)
        with pytest.raises(Refusal) as refused:
            await at.withdraw(user, 10, "hurried", Hurried(seconds))
        assert refused.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert not at.told.records
    async with desk(engine, knowing()) as at:
        assert reason(await at.withdraw("hurried", 100, "all of it")) == "ok"


async def test_features_that_are_away_leave_it_to_conservative_rules(engine: AsyncEngine) -> None:
    rules = (
        rule("fast", "f.paid > -1"),
        rule("careful", "amount > 20", Action.REVIEW, when_without=(Source.FEATURES,)),
        rule("scored", "model.score < 2.0", when_without=()),
    )
    known = knowing(*rules[:2], features=PAID)
    async with desk(engine, known, features=Away(), models=Models(Model())) as at:
        user = await at.opened("away", 100)
        assert reason(await at.withdraw(user, 20)) == "ok"
        assert reason(await at.withdraw(user, 21, "other")) == Reason.UNDER_REVIEW
        # Without features there is no score that means anything.
        assert at.told.records[0].without == ("features", "model")
    async with desk(engine, known) as at:
        assert reason(await at.withdraw("away", 1, "third")) == Reason.RISK_DENIED


@pytest.mark.parametrize(("live", "is_on"), [(Model(broken=True), True), (Model(), False)])
async def test_without_its_model_rules_decide_alone(
    engine: AsyncEngine, live: Model, is_on: bool
) -> None:
    rules = (
        rule("scored", "model.score < 2.0"),
        rule("instead", "amount > 20", when_without=(Source.MODEL,)),
    )
    async with desk(engine, knowing(*rules), models=Models(live), is_on=is_on) as at:
        user = await at.opened("no-model", 100)
        assert reason(await at.withdraw(user, 20)) == "ok"
        assert reason(await at.withdraw(user, 21, "other")) == Reason.RISK_DENIED


async def test_a_models_score_is_a_fact_and_a_shadows_is_only_told(engine: AsyncEngine) -> None:
    models = Models(Model(), [Model()])
    async with desk(engine, knowing(rule("bot", "model.score > 0.9")), models=models) as at:
        user = await at.opened("scored", 100)
        order = await at.ordered(user, 10)
        assert reason(await at.pay(order, "bot")) == Reason.RISK_DENIED
        assert reason(await at.pay(order, "phone")) == "ok"
        assert [record.shadow_scores for record in at.told.records] == [
            (("m1", 0.99),), (("m1", 0.01),),
        ]  # fmt: skip
        assert at.told.records[0].model_version == "m1"


async def test_an_engine_that_takes_too_long_leaves_it_to_policy(engine: AsyncEngine) -> None:
    hurried = RiskSettings(screening_timeout_ms=50)
    review = rule("review", "amount == 7", Action.REVIEW)
    limited = knowing(review, features=PAID, withdraw=10, pay=10)
    async with desk(engine, limited, features=MemoryFeatures()) as at:
        user = await at.opened("hurried", 100)
        rejected = await at.withdraw(user, 7, "rejected")
        assert isinstance(rejected, Refused)
        review_id = rejected.metadata["review_id"]
        decide = DecideReview(slot_of_id(review_id), review_id, False, "op", "audit-1", "", 60)
        assert isinstance(await at.lanes.submit(decide), Accepted)
        small, large = await at.ordered(user, 10), await at.ordered(user, 11)
        before = await at.withdraw(user, 12, "before")
        assert isinstance(before, Accepted)
    async with desk(engine, limited, features=Away(60), settings=hurried) as at:
        outcomes = {
            "small": await at.withdraw(user, 10, "small"),
            "large": await at.withdraw(user, 11, "large"),
            "small order": await at.pay(small),
            "large order": await at.pay(large),
            "before": await at.withdraw(user, 12, "before"),
            "rejected": await at.withdraw(user, 7, "rejected"),
        }
        assert {name: reason(outcome) for name, outcome in outcomes.items()} == {
            "small": "ok",
            "large": Reason.RISK_UNAVAILABLE,
            "small order": "ok",
            "large order": Reason.RISK_UNAVAILABLE,
            # Executed before: answered, judged or not.
            "before": "ok",
            # A person said no: that stays no.
            "rejected": Reason.RISK_DENIED,
        }
        again = outcomes["before"]
        assert isinstance(again, Accepted)
        assert again.resource == before.resource
