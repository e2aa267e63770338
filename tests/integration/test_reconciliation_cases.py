"""Runs and cases as operators meet them on a mesh: two people, the audit log, the tables."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from sqlalchemy import insert, text

from cells.reconciliation.internal import CHECKS, positions
from cells.reconciliation.tables import breaks, cases
from control.audit import list_audit
from control.cellctl.session import Session
from router.ids import Kind, derive
from tests.integration.test_control import cellctl, document
from tests.integration.test_reconciliation_mesh import counted, grown

pytestmark = pytest.mark.mesh

CHANNEL, DAY = "desk-bank", "2026-11-23"


class Desk(NamedTuple):
    """A mesh with three cases, and bob, who checks and does not operate."""

    session: Session
    break_ids: list[str]


@contextlib.asynccontextmanager
async def desk_of(session: Session) -> AsyncIterator[Desk]:
    """Three cases, until the end."""
    done = cellctl(session, "identity", "issue", "bob", "--role", "approver", "--role", "viewer")
    assert done.returncode == 0, done.stderr
    names = [derive(Kind.BREAK, 7, CHANNEL, DAY, str(number)) for number in range(3)]
    key = {"channel": CHANNEL, "clearing_date": DAY}
    empty = dict.fromkeys(
        ("attempt_id", "ours", "theirs", "note", "resolved_on", "resolution", "adjustment_id"), ""
    )
    nobody = dict.fromkeys(
        ("proposal", "maker", "maker_reason", "maker_audit_id", "checker", "checker_reason",
         "checker_audit_id"), "",
    )  # fmt: skip
    async with session.database() as engine:
        async with engine.begin() as connection:
            await connection.execute(insert(breaks), [
                {**key, **empty, "break_id": name, "class": "duplicate", "reason": "LISTED_TWICE",
                 "state": "case", "amount": amount, "currency": "CNY", "waits": False}
                for name, amount in zip(names, (1250, -300, 0), strict=True)
            ])  # fmt: skip
            await connection.execute(insert(cases), [
                {**key, **nobody, "break_id": name, "version": 1, "state": "opened"}
                for name in names
            ])  # fmt: skip
        try:
            yield Desk(session, names)
        finally:
            async with engine.begin() as connection:
                for table in ("cases", "breaks", "runs"):
                    await connection.execute(
                        text(f"DELETE FROM reconciliation_{table} WHERE channel = '{CHANNEL}'")
                    )


@pytest.fixture
async def desk(session: Session) -> AsyncIterator[Desk]:
    async with desk_of(session) as desk:
        yield desk


async def test_a_case_takes_two_people_and_ends_in_a_posting_to_be_made(desk: Desk) -> None:
    session, (first, second, nothing) = desk
    listed = document(session, "reconcile", "cases")
    assert {item["break_id"] for item in listed} == set(desk.break_ids)
    early = cellctl(session, "reconcile", "approve", first, "--reason", "x", "--as", "bob")
    assert "CASE_NOT_PROPOSED" in early.stderr
    made = document(session, "reconcile", "propose", first, "--reason", "the bank paid twice")
    assert (made["case"], made["proposal"]) == ("proposed", "adjust")
    own = cellctl(session, "reconcile", "approve", first, "--reason", "me again")
    assert "CASE_IS_YOUR_OWN" in own.stderr
    done = document(session, "reconcile", "approve", first, "--reason", "seen", "--as", "bob")
    assert (done["case"], done["break"]) == ("approved", "adjusting")
    assert done["checker"].endswith("/operator/bob")
    again = cellctl(session, "reconcile", "reject", first, "--reason", "x", "--as", "bob")
    assert "CASE_NOT_PROPOSED" in again.stderr

    document(session, "reconcile", "propose", second, "--reason", "noise", "--dismiss")
    no = document(session, "reconcile", "reject", second, "--reason", "why?", "--as", "bob")
    assert (no["case"], no["break"]) == ("rejected", "case")
    document(session, "reconcile", "propose", second, "--reason", "their test", "--dismiss")
    closed = document(session, "reconcile", "approve", second, "--reason", "ok", "--as", "bob")
    assert closed["break"] == "closed"

    empty = cellctl(session, "reconcile", "propose", nothing, "--reason", "x")
    assert "NOTHING_TO_POST" in empty.stderr
    operates = cellctl(session, "reconcile", "propose", nothing, "--reason", "x", "--as", "bob")
    assert "CALLER_NOT_ALLOWED" in operates.stderr
    await _check_the_records(session, first)


async def _check_the_records(session: Session, break_id: str) -> None:
    """Each decision names its record, and what was refused is recorded too."""
    async with session.database() as engine, engine.connect() as connection:
        row = (
            await connection.execute(
                text(
                    "SELECT maker, maker_audit_id, checker, checker_audit_id"
                    " FROM reconciliation_cases WHERE break_id = :break_id"
                ),
                {"break_id": break_id},
            )
        ).one()
    async with session.store() as store:
        records = {item.audit_id: item for item in await list_audit(store)}
    assert records[row.maker_audit_id].actor == row.maker
    assert records[row.checker_audit_id].actor == row.checker
    assert records[row.checker_audit_id].action == "reconcile.approve"
    denied = [item.verdict for item in records.values() if "reconcile" in item.action]
    assert "denied: CASE_IS_YOUR_OWN" in denied


async def test_an_operator_asks_for_a_run_and_for_it_again(desk: Desk) -> None:
    session = desk.session
    (run,) = document(session, "reconcile", "run", CHANNEL, DAY, "--reason", "monday")
    assert (run["state"], run["cases"]) == ("waiting", 3)
    wrong = cellctl(session, "reconcile", "run", "No Channel", "2026-13-01", "--reason", "x")
    assert "clearing_date" in wrong.stderr
    async with session.database() as engine, engine.begin() as connection:
        await connection.execute(text("UPDATE reconciliation_runs SET state = 'done'"))
    document(session, "reconcile", "run", CHANNEL, DAY, "--reason", "they sent another")
    assert [item["state"] for item in document(session, "reconcile", "status")] == ["waiting"]
    assert len(document(session, "reconcile", "breaks", "--state", "case")) == 3


async def test_our_own_books_agree_and_what_does_not_is_named(desk: Desk) -> None:
    async with desk.session.database() as engine:
        before = await counted(engine)
        async with engine.begin() as connection:
            await connection.execute(
                text(
                    "UPDATE reconciliation_breaks SET state = 'adjusted', adjustment_id = 'adj_x'"
                    " WHERE break_id = :name"
                ),
                {"name": desk.break_ids[0]},
            )
            await connection.execute(
                text(
                    "INSERT INTO adjustments (slot, adjustment_id, break_id, channel, source,"
                    " target, user_id, amount, currency, subject_id, reason, approved_by,"
                    " created_at) VALUES (7, 'adj_y', 'brk_y', 'desk-bank', 'channel', 'suspense',"
                    " '', 5, 'CNY', '', '', '', now())"
                )
            )
            await connection.execute(
                text("UPDATE reconciliation_cases SET state = 'approved' WHERE break_id = :name"),
                {"name": desk.break_ids[1]},
            )
            await connection.execute(
                text(
                    "INSERT INTO outbox (slot, batch_id, type, events, lines, created_at, sent)"
                    " VALUES (7, 'evt_z', 'payment.succeeded', 1, :line,"
                    " now() - interval '1 hour', true)"
                ),
                {"line": f'{{"id": "evt_07{"0" * 26}", "merchant_id": "m"}}'},
            )
        try:
            assert {check.name for check in CHECKS} <= await grown(engine, before)
            (ours,) = [item for item in await positions(engine) if item.channel == CHANNEL]
            assert ours.adjusted == 1250
        finally:
            async with engine.begin() as connection:
                await connection.execute(
                    text("DELETE FROM adjustments WHERE adjustment_id = 'adj_y'")
                )
                await connection.execute(text("DELETE FROM outbox WHERE batch_id = 'evt_z'"))
