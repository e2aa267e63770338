"""Banks misbehave, and a region dies while requests to them are under way.

At the end each bank's own book and ours agree to the cent, nobody was charged twice, and the audit
finds nothing broken.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from cellpay.control.v1 import control_pb2 as pb
from sqlalchemy import text

from cells.verification.model import lines
from control.cellctl.session import Session
from control.mesh import launcher
from router.client import Mesh
from tests.chaos.outside import Outside, reached
from tests.chaos.test_stories import audited, cells, come_back, operate
from tests.conformance.process import BankProcess

pytestmark = pytest.mark.chaos

_CLIENTS = 24
_WARM_UP_S = 1.5
# What a bad day brings, in parts of all requests. Most questions are lost, so that time runs out.
_BAD_DAY: tuple[dict[str, Any], ...] = (
    {"action": "lose", "probability": 0.7, "operations": ["query"]},
    {"action": "lose", "probability": 0.06},
    {"action": "silent", "probability": 0.06},
    {"action": "late", "after_ms": 2500, "probability": 0.03},
    {"action": "delay", "after_ms": 2500, "probability": 0.03},
    {"action": "duplicate", "after_ms": 50, "probability": 0.05},
    {"action": "disconnect", "probability": 0.01},
    {"action": "decline", "code": "51", "probability": 0.05},
    {"action": "decline", "code": "91", "probability": 0.05, "operations": ["authorise", "payout"]},
)


async def lying(session: Session) -> Counter[str]:
    """What lies with each bank, by our books."""
    async with session.database() as engine, engine.connect() as connection:
        rows = await connection.execute(
            text(
                "SELECT user_id, sum(balance) FROM accounts WHERE purpose = 'channel'"
                " GROUP BY user_id"
            )
        )
        return Counter({str(channel): int(total) for channel, total in rows})


async def agree(
    session: Session, banks: Mapping[str, BankProcess], before: Counter[str]
) -> Counter[str]:
    """Our accounts with the banks against their books, in sum and one by one."""
    counts: Counter[str] = Counter()
    now = await lying(session)
    async with session.database() as engine, engine.connect() as connection:
        rows = await connection.execute(
            text("SELECT attempt_id, owner_id, channel, operation, state FROM attempts")
        )
        attempts = {row.attempt_id: row for row in rows}
    taken: Counter[str] = Counter()
    for name, bank in banks.items():
        totals = await bank.totals()
        assert now[name] - before[name] == -totals["taken"], name
        for held in await bank.holdings():
            if held["operation"] == "query":
                # One that it refused; a question is no attempt.
                continue
            attempt = attempts[held["reference"]]
            assert attempt.channel == name
            counts[f"{attempt.operation} {attempt.state}"] += 1
            if attempt.operation in {"authorise", "payout", "refund"}:
                effect = held["status"] == "approved"
                taken[attempt.owner_id] += effect
                assert (attempt.state == "approved") == effect, (attempt, held)
    assert max(taken.values()) == 1, "somebody was charged, refunded or paid twice"
    return counts


async def test_banks_time_out_while_a_region_dies_and_all_books_agree(
    session: Session, mesh: Mesh, bank_ports: Mapping[str, Mapping[str, int]]
) -> None:
    outside = Outside(mesh, "outside")
    await outside.begin()
    stop = asyncio.Event()
    before = await lying(session)
    async with reached(bank_ports) as banks:
        for number, bank in enumerate(banks.values()):
            # What other tests did there is theirs.
            await bank.forget()
            await bank.behave(*_BAD_DAY, seed=number)
        async with asyncio.TaskGroup() as group:
            group.create_task(outside.work(_CLIENTS, stop))
            await asyncio.sleep(_WARM_UP_S)
            for name in ("cell-b", "relay-b"):
                launcher.kill(session.data, name, signal.SIGKILL)
            operation = await operate(
                session, kind=pb.Operation.KIND_FAILOVER, cell="b", force=True
            )
            assert operation.step == pb.Operation.STEP_DONE
            assert not (await cells(session))["b"].slots
            await asyncio.sleep(_WARM_UP_S)
            stop.set()
        for bank in banks.values():
            await bank.behave()
        await outside.resolve()
        report = await audited(session)
        assert report.ok, "\n".join(lines(report))
        assert report.figures.attempts_open == 0
        await outside.check()
        counts = await agree(session, banks, before)
    await come_back(session, "b")
    for kind in ("charge", "refund", "payout"):
        assert outside.counts[kind] > 0, outside.counts
    assert counts["authorise reversed"] + counts["void approved"] > 0, counts
