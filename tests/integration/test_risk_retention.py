"""Old decisions and ended cases are forgotten; what still counts, or is somebody else's, stays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.database import make_engine
from cells.fencing.tables import slots
from cells.risk.cases.model import Case, StoredDecision
from cells.risk.cases.retention import Retention
from cells.risk.cases.tables import risk_cases, risk_decisions
from cells.settings import DatabaseSettings
from cells.verification.risk import CHECKS
from router.guard import SlotsHere
from router.slotmap import Owned, SlotMap
from tests.integration.books import give_all_slots, new_database

pytestmark = pytest.mark.mesh
DAY_S = 86_400.0
NOW = datetime.now(UTC)
OLD, YOUNG = NOW - timedelta(days=31), NOW - timedelta(days=29)


@pytest.fixture
async def engine(server_url: URL) -> AsyncIterator[AsyncEngine]:
    async with new_database(server_url) as admin:
        await give_all_slots(admin)
        url = admin.url.render_as_string(hide_password=False)
        engine = make_engine(url, "test", DatabaseSettings(), pool_size=2)
        yield engine
        await engine.dispose()


def retention(engine: AsyncEngine, days: float = 30, batch_max: int = 2) -> Retention:
    here = SlotsHere("a")
    # It pauses after each slot.
    here.publish(SlotMap((Owned(0, 9, "a", 1), Owned(10, 1023, "b", 1))))
    return Retention(engine, here, days * DAY_S, batch_max=batch_max)


async def decide(engine: AsyncEngine, name: str, at: datetime, slot: int = 5) -> None:
    row = StoredDecision(
        slot, name, "u", "pay", "deny", "", "", 1, "USD", "", "", "", 1, "", at
    )  # fmt: skip
    async with engine.begin() as connection:
        await connection.execute(insert(risk_decisions), [row._asdict()])


async def case(
    engine: AsyncEngine, name: str, state: str, at: datetime, expires: datetime, decision: str = ""
) -> None:
    row = Case(
        5, name, "challenge", state, "u", "pay", "", "", 1, "USD", name, "f", decision or name,
        "", "", "{}", 0, "", "", "", expires, at, at,
    )  # fmt: skip
    async with engine.begin() as connection:
        await connection.execute(insert(risk_cases), [row._asdict()])
    await decide(engine, decision or name, at)


async def left(engine: AsyncEngine) -> tuple[set[str], set[str]]:
    async with engine.connect() as connection:
        cases = (await connection.execute(select(risk_cases.c.case_id))).scalars()
        decisions = (await connection.execute(select(risk_decisions.c.decision_id))).scalars()
        return set(cases), set(decisions)


async def test_what_is_old_and_can_pass_nothing_is_forgotten(engine: AsyncEngine) -> None:
    for state in ("used", "failed", "open", "passed"):
        await case(engine, f"old-{state}", state, OLD, OLD)
        await case(engine, f"young-{state}", state, YOUNG, YOUNG)
    # A review that is open for longer than anything is kept, and its decision.
    await case(engine, "waits", "open", OLD, NOW + timedelta(days=1))
    for number in range(5):
        await decide(engine, f"old-{number}", OLD)
        await decide(engine, f"young-{number}", YOUNG)
    kept = {"young-used", "young-failed", "young-open", "young-passed", "waits"}
    assert await retention(engine).forget() == 2 * 4 + 5
    cases, decisions = await left(engine)
    assert cases == kept
    assert decisions == kept | {f"young-{number}" for number in range(5)}
    assert await retention(engine).forget() == 0
    # Of the auditor's checks this is the one that a wrong order would break.
    (check,) = [item for item in CHECKS if item.name == "case_has_its_decision"]
    async with engine.connect() as connection:
        assert (await connection.execute(text(check.sql))).all() == []


async def test_a_decision_stays_for_as_long_as_its_case(engine: AsyncEngine) -> None:
    """A review that was made long ago and decided lately."""
    await case(engine, "c", "used", YOUNG, YOUNG)
    async with engine.begin() as connection:
        await connection.execute(update(risk_decisions).values(created_at=OLD))
    assert await retention(engine).forget() == 0
    assert await left(engine) == ({"c"}, {"c"})


async def test_nothing_of_a_slot_that_went_elsewhere_is_forgotten(engine: AsyncEngine) -> None:
    """The map says that it is here; the database knows better."""
    await decide(engine, "here", OLD, slot=6)
    await decide(engine, "elsewhere", OLD, slot=7)
    async with engine.begin() as connection:
        await connection.execute(update(slots).where(slots.c.slot == 7).values(owner="b"))
    assert await retention(engine).forget() == 1
    assert (await left(engine))[1] == {"elsewhere"}


async def test_zero_keeps_everything(engine: AsyncEngine) -> None:
    await decide(engine, "old", OLD)
    assert await retention(engine, days=0).forget() == 0
    assert (await left(engine))[1] == {"old"}
