"""`cellctl reconcile`: the books against the banks', day by day.

Who asks for runs and who decides goes through the control plane's gate; the maker and the checker
of a case must be two people (`--as`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from cellpay.control.v1 import reconciliation_pb2 as pb

from cells.reconciliation.internal import internal as internal_findings
from cells.reconciliation.internal import lines, positions
from cells.reconciliation.report import write_report
from cells.reconciliation.store import RunStore
from cells.verification.model import Severity
from control.cellctl.options import DATA, DEFAULT_DATA, JSON, REASON
from control.cellctl.session import Session
from control.cellctl.show import console, decimal_amount, print_json, table

app = typer.Typer(help="The books against the banks', day by day.", no_args_is_help=True)

CHANNEL = Annotated[str, typer.Option("--channel", help="Only this one.")]
DAY = Annotated[str, typer.Option("--day", help="Only this clearing date.")]
_PAGE = 500
_TIMEOUT_S = 15
# A break of so many days is shown as an alarm.
_ALARM_DAYS = 3


@app.command()
def run(
    channel: str, day: str, reason: REASON, data: DATA = DEFAULT_DATA, as_json: JSON = False
) -> None:
    """Asks for a day; one that is done or quarantined is fetched and matched anew."""

    async def ask() -> pb.ReconciliationRun:
        async with Session.open(data).reconciliation() as service:
            request = pb.RequestRunRequest(channel=channel, clearing_date=day, reason=reason)
            return await service.RequestRun(request, timeout=_TIMEOUT_S)

    _show_runs([asyncio.run(ask())], as_json)


@app.command()
def status(channel: CHANNEL = "", data: DATA = DEFAULT_DATA, as_json: JSON = False) -> None:
    """Runs, newest day first."""

    async def fetch() -> list[pb.ReconciliationRun]:
        async with Session.open(data).reconciliation() as service:
            request = pb.ListRunsRequest(channel=channel, page_size=_PAGE)
            return list((await service.ListRuns(request, timeout=_TIMEOUT_S)).runs)

    _show_runs(asyncio.run(fetch()), as_json)


@app.command()
def breaks(
    channel: CHANNEL = "",
    day: DAY = "",
    state: Annotated[str, typer.Option(help="open, case, adjusted, matched_later, …")] = "",
    data: DATA = DEFAULT_DATA,
    as_json: JSON = False,
) -> None:
    """Breaks, oldest first."""

    async def page(service: Any, token: str) -> tuple[list[pb.ReconciliationBreak], str]:
        request = pb.ListBreaksRequest(
            channel=channel, clearing_date=day, state=state, page_size=_PAGE, page_token=token
        )
        listed = await service.ListBreaks(request, timeout=_TIMEOUT_S)
        return list(listed.breaks), listed.next_page_token

    documents = [_break_document(item) for item in asyncio.run(_all(data, page))]
    if as_json:
        print_json(documents)
        return
    columns = ("break_id", "found_on", "channel", "class", "reason", "amount", "state")
    table("breaks", columns, [[document[name] for name in columns] for document in documents])


@app.command()
def cases(
    channel: CHANNEL = "",
    decided: Annotated[bool, typer.Option("--decided", help="The decided ones too.")] = False,
    data: DATA = DEFAULT_DATA,
    as_json: JSON = False,
) -> None:
    """Breaks that people decide, oldest first."""

    async def page(service: Any, token: str) -> tuple[list[pb.ReconciliationCase], str]:
        request = pb.ListCasesRequest(
            channel=channel, decided=decided, page_size=_PAGE, page_token=token
        )
        listed = await service.ListCases(request, timeout=_TIMEOUT_S)
        return list(listed.cases), listed.next_page_token

    documents = [_case_document(item) for item in asyncio.run(_all(data, page))]
    if as_json:
        print_json(documents)
        return
    columns = ("break_id", "found_on", "class", "amount", "case", "proposal", "maker", "checker")
    table("cases", columns, [[document[name] for name in columns] for document in documents])


@app.command()
def propose(
    break_id: str,
    reason: REASON,
    dismiss: Annotated[bool, typer.Option("--dismiss", help="Post nothing.")] = False,
    data: DATA = DEFAULT_DATA,
    as_json: JSON = False,
) -> None:
    """The maker: the difference is to be posted (or, with --dismiss, nothing is)."""
    kinds = pb.ProposeResolutionRequest
    resolution = kinds.RESOLUTION_DISMISS if dismiss else kinds.RESOLUTION_ADJUST
    request = kinds(break_id=break_id, resolution=resolution, reason=reason)

    async def ask() -> pb.ReconciliationCase:
        async with Session.open(data).reconciliation() as service:
            return await service.ProposeResolution(request, timeout=_TIMEOUT_S)

    _show_case(asyncio.run(ask()), as_json)


@app.command()
def approve(
    break_id: str, reason: REASON, data: DATA = DEFAULT_DATA, as_json: JSON = False
) -> None:
    """The checker says yes to what another one proposed."""
    _decide(break_id, reason, data, as_json, approved=True)


@app.command()
def reject(break_id: str, reason: REASON, data: DATA = DEFAULT_DATA, as_json: JSON = False) -> None:
    """The checker says no: the case waits for another proposal."""
    _decide(break_id, reason, data, as_json, approved=False)


def _decide(break_id: str, reason: str, data: Path, as_json: bool, *, approved: bool) -> None:
    request = pb.DecideCaseRequest(break_id=break_id, approve=approved, reason=reason)

    async def ask() -> pb.ReconciliationCase:
        async with Session.open(data).reconciliation() as service:
            return await service.DecideCase(request, timeout=_TIMEOUT_S)

    _show_case(asyncio.run(ask()), as_json)


@app.command()
def report(
    channel: str,
    day: str,
    into: Annotated[Path, typer.Option(help="The folder to write.")] = Path("reconciliation"),
    data: DATA = DEFAULT_DATA,
) -> None:
    """report.html, breaks.csv and guesses.csv of a day, as the books are now."""

    async def write() -> bool:
        async with Session.open(data).database() as engine:
            store = RunStore(engine)
            found = await store.run(channel, day)
            if found is None:
                return False
            today = await store.breaks_of(channel, day)
            unresolved = await store.unresolved(channel, day)
        write_report(into, found, today, unresolved, _ALARM_DAYS)
        return True

    if not asyncio.run(write()):
        console.print(f"{channel} has no run of {day}", markup=False)
        raise typer.Exit(1)
    console.print(f"{into / 'report.html'}", markup=False)


@app.command()
def internal(data: DATA = DEFAULT_DATA, as_json: JSON = False) -> None:
    """Our own books against each other, and what each bank owes us, three ways; exits 1 when
    something is broken."""

    async def look() -> tuple[Any, Any]:
        async with Session.open(data).database() as engine:
            return await internal_findings(engine), await positions(engine)

    findings, found = asyncio.run(look())
    if as_json:
        print_json({
            "findings": [asdict(item) for item in findings],
            "positions": [asdict(item) for item in found],
        })  # fmt: skip
    else:
        for line in lines(findings, found):
            console.print(line, markup=False)
    if any(item.severity == Severity.BROKEN for item in findings):
        raise typer.Exit(1)


async def _all(
    data: Path, page: Callable[[Any, str], Awaitable[tuple[list[Any], str]]]
) -> list[Any]:
    found: list[Any] = []
    token = ""
    async with Session.open(data).reconciliation() as service:
        while True:
            items, token = await page(service, token)
            found += items
            if not token:
                return found


def _show_runs(runs: list[pb.ReconciliationRun], as_json: bool) -> None:
    documents = [
        {
            "channel": item.channel, "day": item.clearing_date, "state": item.state,
            "lines": item.lines, "open": item.open, "cases": item.cases,
            "adjusted": item.adjusted, "matched_later": item.matched_later,
            "why": item.reason, "touched": item.touch_time.ToJsonString(),
        }
        for item in runs
    ]  # fmt: skip
    if as_json:
        print_json(documents)
        return
    columns = (
        "channel", "day", "state", "lines", "open", "cases", "adjusted", "matched_later", "why",
    )  # fmt: skip
    table("runs", columns, [[document[name] for name in columns] for document in documents])


def _show_case(case: pb.ReconciliationCase, as_json: bool) -> None:
    document = _case_document(case)
    if as_json:
        print_json(document)
    else:
        console.print(
            "  ".join(f"{name} {value}" for name, value in document.items()), markup=False
        )


def _break_document(item: pb.ReconciliationBreak) -> dict[str, Any]:
    amount = decimal_amount(item.amount.minor_units, item.amount.currency)
    return {
        "break_id": item.break_id, "found_on": item.clearing_date, "channel": item.channel,
        "class": item.break_class, "reason": item.reason,
        "amount": f"{amount} {item.amount.currency}", "state": item.state,
        "attempt_id": item.attempt_id, "note": item.note, "resolved_on": item.resolved_on,
        "resolution": item.resolution, "adjustment_id": item.adjustment_id,
    }  # fmt: skip


def _case_document(item: pb.ReconciliationCase) -> dict[str, Any]:
    of = _break_document(item.of_break)
    return {
        **{name: of[name] for name in ("break_id", "found_on", "channel", "class", "amount")},
        "case": item.state, "proposal": item.proposal, "maker": item.maker,
        "maker_reason": item.maker_reason, "checker": item.checker,
        "checker_reason": item.checker_reason, "break": of["state"],
    }  # fmt: skip
