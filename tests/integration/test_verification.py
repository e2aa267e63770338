"""The auditor on a real database: clean books pass, and each check finds what it is for.

The books are filled by the ledger itself, through two cells. Then each test breaks one thing by
SQL, as a fault of the ledger would, and the audit must name it. A check that cannot fail is a
defect: `test_every_check_is_shown_to_fail` holds this file to that.

The database is an embedded PostgreSQL of this module, or the one of DATABASE_URL.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from sqlalchemy.engine import URL

from cells.fencing.tables import metadata
from cells.verification.auditor import CHECKS, audit
from cells.verification.model import Report, Severity, lines
from router.slotmap import Move, SlotMap
from tests.integration.books import (
    FIRST_MAP,
    Books,
    current_map,
    execute,
    fill,
    new_database,
)
from tests.integration.corruptions import CORRUPTIONS, record


@pytest.fixture(scope="module")
async def books(server_url: URL) -> AsyncIterator[Books]:
    async with new_database(server_url) as engine:
        town = await fill(engine)
        await engine.dispose()
        yield Books(server_url, str(engine.url.database), town.ids)


def _found(report: Report) -> set[str]:
    return {finding.check for finding in report.broken}


async def test_books_that_the_ledger_wrote_are_sound(books: Books) -> None:
    async with books.copy() as engine:
        report = await audit(engine, current_map(books.ids))
    assert report.ok, "\n".join(lines(report))
    assert {finding.check for finding in report.findings} == {
        "refund_is_pending",
        "transfer_is_in_doubt",
        "batch_is_unsent",
        "attempt_is_disputed",
        "attempt_is_open",
        "payment_out_is_held",
    }
    assert all(finding.severity == Severity.PENDING for finding in report.findings)


async def test_the_figures_are_what_was_done(books: Books) -> None:
    async with books.copy() as engine:
        figures = (await audit(engine)).figures
    dollars = {money.currency: money for money in figures.money}["USD"]
    assert (dollars.deposits, dollars.withdrawals) == (10_000 + 5_000 + 400 + 8_000 + 150, 500)
    # In flight: decided, and not yet with the payee.
    assert dollars.clearing == 15
    assert dollars.held == 25 + 9
    assert dollars.conserved
    assert dollars.external == -(dollars.deposits - dollars.withdrawals)
    assert figures.payments == 3
    assert figures.orders == {"closed": 1, "open": 1, "paid": 3}
    assert figures.refunds == {"failed": 1, "pending": 1, "succeeded": 2}
    # Also confirmed: one settlement across cells, one in a cell, one funding.
    assert figures.transfers == {
        "cancelled": 2, "cancelling": 1, "committing": 2, "confirmed": 5, "trying": 2
    }  # fmt: skip
    assert figures.in_doubt == 5
    euros = {money.currency: money for money in figures.money}["EUR"]
    # Charged 300, given back 50, paid 13, and what was adjusted; 16 came back.
    assert euros.users == 900 + 300 - 50 - 13 + 5
    assert euros.banks == -300 + 50 + 13 - 5
    assert euros.conserved
    assert figures.charges == {"failed": 2, "processing": 1, "reversing": 1, "succeeded": 1}
    assert figures.charge_refunds == {"failed": 1, "sending": 1, "succeeded": 1}
    assert figures.payouts == {"failed": 2, "held": 1, "paid": 1, "returned": 1, "sending": 1}
    assert figures.attempts_open == 4
    assert figures.outbox == figures.outbox_unsent > 0


@pytest.mark.parametrize("what", list(CORRUPTIONS))
async def test_the_audit_names(books: Books, what: str) -> None:
    broken = CORRUPTIONS[what]
    statements = [statement.format(**books.ids) for statement in broken.statements]
    async with books.copy() as engine:
        await execute(engine, *statements)
        report = await audit(engine)
    text_ = lines(report)
    assert _found(report) == {broken.check, *broken.also}, "\n".join(text_)
    assert not report.ok
    finding = next(item for item in report.broken if item.check == broken.check)
    assert finding.total >= len(finding.samples) >= 1
    for sample in finding.samples:
        assert any(sample in line for line in text_)
    assert json.loads(json.dumps(report.to_dict()))["ok"] is False


def test_every_check_is_shown_to_fail() -> None:
    """A check that cannot fail is a defect."""
    shown = {broken.check for broken in CORRUPTIONS.values()}
    elsewhere = {check.name for check in CHECKS if check.needs}
    can_break = {check.name for check in CHECKS if check.severity == Severity.BROKEN}
    assert shown == can_break - elsewhere


async def test_samples_are_bounded_and_the_total_is_told(books: Books) -> None:
    async with books.copy() as engine:
        await execute(engine, "UPDATE entries SET balance_after = balance_after + 1")
        report = await audit(engine, samples_max=2)
    (finding,) = report.broken
    assert (len(finding.samples), finding.total) == (2, report.figures.entries)
    assert any(line.strip() == f"… and {finding.total - 2} more" for line in lines(report))


async def test_a_map_that_the_database_does_not_know_is_broken(books: Books) -> None:
    slot = int(books.ids["empty_slot"])
    now = current_map(books.ids)
    owner = now.at(slot)
    ahead = now.apply([Move(slot, slot, owner.cell, "z", owner.epoch + 1)])
    async with books.copy() as engine:
        report = await audit(engine, ahead)
    assert _found(report) == {"slots_match_the_map"}
    assert f"slot {slot} is {owner.cell}'s" in "\n".join(lines(report))


async def test_a_map_that_lags_behind_the_fence_is_pending(books: Books) -> None:
    """The database is fenced first, then etcd publishes: between them an operation is under way."""
    async with books.copy() as engine:
        report = await audit(engine, FIRST_MAP)
    assert report.ok
    assert "map_is_behind_the_slots" in {finding.check for finding in report.pending}


async def test_an_event_that_the_outbox_may_have_purged_is_not_missed(books: Books) -> None:
    async with books.copy() as engine:
        await execute(
            engine,
            "UPDATE payments SET created_at = created_at - INTERVAL '3 days'",
            "DELETE FROM outbox WHERE type = 'payment.succeeded'",
        )
        kept_long = await audit(engine)
        kept_short = await audit(engine, outbox_retention_s=86_400)
    assert _found(kept_long) == {"effect_has_its_event"}
    assert kept_short.ok


async def test_the_audit_looks_at_deliveries_when_there_are_any(books: Books) -> None:
    async with books.copy() as engine:
        await execute(engine, "DROP TABLE IF EXISTS deliveries")
        without = await audit(engine)
        assert "deliveries" in without.skipped["event_is_delivered_once"]
        assert without.figures.deliveries is None
        await execute(
            engine,
            "CREATE TABLE deliveries (delivery_id TEXT PRIMARY KEY, event_id TEXT, state TEXT)",
            "INSERT INTO deliveries VALUES ('1', 'x', 'pending'), ('2', 'x', 'dead'),"
            " ('3', 'y', 'delivered')",
        )
        report = await audit(engine)
    assert _found(report) == {"event_is_delivered_once"}
    assert {"delivery_is_pending", "delivery_is_dead"} <= {item.check for item in report.pending}
    assert report.figures.deliveries == {"dead": 1, "delivered": 1, "pending": 1}


async def test_what_is_not_checked_is_said(books: Books) -> None:
    async with books.copy() as engine:
        await execute(engine, record("Unheard", "x", "7").format(**books.ids))
        report = await audit(engine)
    assert report.ok
    said = "\n".join(lines(report))
    assert "Unheard" in said
    assert "invariant 4" in said
    assert "slots_match_the_map" in said


async def test_an_audit_waits_for_nobody_and_disturbs_nobody(books: Books) -> None:
    """Rows that the ledger has locked are read as they were; nothing is written."""
    async with books.copy() as engine, engine.begin() as writer:
        await writer.exec_driver_sql("UPDATE accounts SET balance = balance + 1")
        report = await audit(engine)
        await writer.rollback()
    assert report.ok


async def test_an_empty_mesh_is_sound(server_url: URL) -> None:
    async with new_database(server_url) as engine:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
            await connection.exec_driver_sql(
                "INSERT INTO slots SELECT n, 'a', 1 FROM generate_series(0, 1023) AS n"
            )
        report = await audit(engine, SlotMap.even(["a"]))
    assert report.ok
    assert report.findings == ()
