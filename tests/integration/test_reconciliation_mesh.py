"""A day from its statement to the ledger: the reconciler's process, a real mesh, two people."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.reconciliation.internal import CHECKS, internal
from cells.reconciliation.settings import EngineSettings, ReconciliationSettings
from cells.statements.layouts import CsvLayout
from control.cellctl.session import Session
from router.client.bootstrap import xds_bootstrap
from tests.integration.bank_side import write_attempts, write_statement
from tests.integration.test_control import cellctl, document
from tests.property.bank_day import POLICY, World

pytestmark = pytest.mark.mesh

DAY = date(2026, 11, 23)
_WAIT_S = 60.0


def settings_of(session: Session, folder: Path, channel: str) -> ReconciliationSettings:
    tls = session.tls("operator")
    bootstrap = folder / "xds.json"
    address = session.places.control
    bootstrap.write_text(json.dumps(xds_bootstrap(address, tls, "client-reconciler")))
    policy = replace(
        POLICY, name=channel, inbox=str(folder / "{channel}-{day}.csv"), layout=CsvLayout()
    )
    return ReconciliationSettings(
        name="reconciler-1",
        database_url=session.state.database_url,
        work=str(folder / "work"),
        channels=(policy,),
        statements=str(folder / "statements"),
        xds_bootstrap=str(bootstrap),
        tls=tls,
        engine=EngineSettings(memory_limit_mb=200, threads=1),
        poll_interval_s=0.2,
    )


@asynccontextmanager
async def reconciler(settings: ReconciliationSettings, folder: Path) -> AsyncIterator[None]:
    path = folder / "settings.json"
    path.write_bytes(TypeAdapter(ReconciliationSettings).dump_json(settings))
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cells.reconciliation", str(path), stdout=log, stderr=log
        )
    try:
        yield
        assert process.returncode is None, (folder / "log").read_text()[-2000:]
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def rows(engine: AsyncEngine, sql: str) -> list[Any]:
    async with engine.connect() as connection:
        return list((await connection.execute(text(sql))).all())


async def until(engine: AsyncEngine, sql: str, folder: Path) -> None:
    end = time.monotonic() + _WAIT_S
    while not await rows(engine, sql):
        assert time.monotonic() < end, (folder / "log").read_text()[-3000:]
        await asyncio.sleep(0.2)


async def counted(engine: AsyncEngine) -> Counter[str]:
    """How often each check finds something: other tests have left what is theirs."""
    return Counter({finding.check: finding.total for finding in await internal(engine)})


async def grown(engine: AsyncEngine, before: Counter[str]) -> set[str]:
    """Of the reconciler's own checks and the ledger's, those that find more than before."""
    ours = {check.name for check in CHECKS} | {"adjustment_has_its_posting", "posting_sums_to_zero"}
    now = await counted(engine)
    return {name for name in ours if now[name] > before[name]}


async def test_breaks_become_postings_once_by_rule_and_by_two_people(
    session: Session, tmp_path: Path
) -> None:
    world = World(21)
    for _ in range(30):
        world.good()
    for error in ("fee", "amount", "duplicate", "unknown"):
        world.inject(error)
    channel = "mesh-bank"
    settings = settings_of(session, tmp_path, channel)
    write_statement(tmp_path / f"{channel}-{DAY}.csv", channel, DAY, world.theirs)
    done = cellctl(session, "identity", "issue", "bob", "--role", "approver", "--role", "viewer")
    assert done.returncode == 0, done.stderr
    ran = f"SELECT 1 FROM reconciliation_runs WHERE channel = '{channel}' AND state = 'done'"
    async with session.database() as engine:
        before = await counted(engine)
        await write_attempts(engine, channel, world.ours)
        document(session, "reconcile", "run", channel, DAY.isoformat(), "--reason", "a test")
        try:
            async with reconciler(settings, tmp_path):
                await until(engine, ran, tmp_path)
                (case,) = document(session, "reconcile", "cases", "--channel", channel)
                name = case["break_id"]
                document(session, "reconcile", "propose", name, "--reason", "they paid twice")
                yes = ("approve", name, "--reason", "seen", "--as", "bob")
                assert document(session, "reconcile", *yes)["break"] == "adjusting"
                adjusted = f"SELECT 1 FROM reconciliation_breaks WHERE break_id = '{name}'"
                await until(engine, f"{adjusted} AND state = 'adjusted'", tmp_path)
                # Done again, it posts nothing again.
                again = ("run", channel, DAY.isoformat(), "--reason", "again")
                assert document(session, "reconcile", *again)[0]["state"] == "waiting"
                await until(engine, ran, tmp_path)
            await _check_the_ledger(engine, channel, name)
            assert not await grown(engine, before)
            report = ("report", channel, DAY.isoformat(), "--into", str(tmp_path / "report"))
            assert cellctl(session, "reconcile", *report).returncode == 0
            assert channel in (tmp_path / "report" / "report.html").read_text()
        finally:
            # The attempts were made without charges: no other test's audit should meet them.
            async with engine.begin() as connection:
                for table in ("attempts", *(f"reconciliation_{name}" for name in _TABLES)):
                    await connection.execute(
                        text(f"DELETE FROM {table} WHERE channel = '{channel}'")
                    )


_TABLES = ("cases", "breaks", "runs")


async def _check_the_ledger(engine: AsyncEngine, channel: str, case: str) -> None:
    """One adjustment a break, with its posting: by rule agreed fees, a fee, an amount; a case."""
    posted = await rows(
        engine,
        "SELECT b.reason, a.amount, a.target, a.approved_by, b.break_id FROM adjustments AS a"
        " JOIN reconciliation_breaks AS b ON b.break_id = a.break_id"
        f" WHERE a.channel = '{channel}'",
    )
    by_reason = {reason: row for reason, *row in posted}
    assert len(posted) == len(by_reason) == 4
    assert by_reason["OTHER_AMOUNT"][:2] == [3, "suspense"]
    assert by_reason["FEE_OF_A_LINE"][:2] == [5, "channel"]
    assert by_reason["AGREED_FEES"][1] == "channel"
    assert by_reason["LISTED_TWICE"][2].endswith("/operator/bob")
    assert by_reason["LISTED_TWICE"][3] == case
    sums = await rows(
        engine,
        "SELECT sum(e.amount) FROM entries AS e JOIN adjustments AS a"
        f" ON a.adjustment_id = e.posting_id WHERE a.channel = '{channel}'",
    )
    assert [int(total) for (total,) in sums] == [0]
