"""`cellctl risk replay` and `records`: what other rules would have decided, and the records."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from control.cellctl.options import DATA, DEFAULT_DATA, JSON
from control.cellctl.risk.documents import files_of, risk_policies, show_violations
from control.cellctl.risk.lists import duration_of, moment_of
from control.cellctl.session import Session
from control.cellctl.show import console, decimal_amount, errors, print_json, table
from control.risk.files import RiskFile
from control.risk.records import NoRecords, Span, from_lines, from_stream
from control.risk.replay import Outcome, Replay, document_of, types_with
from router.errors import Violation
from router.policies.model import PolicyKind
from router.policies.risk import Rulebook, rulebook_of
from router.policies.rules import InvalidPolicy, Policy, PolicySet, parse, policy_key
from router.risk.facts import Type
from router.risk.lists import Lists
from router.risk.record import Record, encode
from router.risk.ruleset import faults

FROM = Annotated[
    str, typer.Option("--from", help="2026-11-24T00:00:00Z, or 24h: so long ago. Absent: all.")
]
TO = Annotated[str, typer.Option("--to", help="The same; absent: now.")]
RECORDS = Annotated[
    Path | None,
    typer.Option("--records", exists=True, dir_okay=False, help="A file of records, not NATS."),
]
# A replay is for a person to read.
_EXAMPLES_MAX = 1000


def register(app: typer.Typer) -> None:
    app.command()(replay)
    app.command()(records)


def replay(
    rules: Annotated[
        list[Path],
        typer.Option("--rules", exists=True, help="Rules, and lists and features that they need."),
    ],
    data: DATA = DEFAULT_DATA,
    begin: FROM = "",
    end: TO = "",
    from_file: RECORDS = None,
    examples: Annotated[int, typer.Option(min=0, max=_EXAMPLES_MAX, help="Of each change.")] = 5,
    as_json: JSON = False,
) -> None:
    """Runs rules over recorded requests, as if the files had been applied, and prints what would
    change. It changes nothing; with --records it needs no mesh."""
    files = files_of(rules)
    span = _span(begin, end)
    try:
        if from_file is not None:
            book = rulebook_of(_laid_over({}, files))
            types = types_with(book.types(), from_lines(from_file, span))
        else:
            book = rulebook_of(_laid_over(asyncio.run(_of_mesh(data)), files))
            types = book.types()
        under = _under(book, types, files, examples)
        asyncio.run(_each(data, from_file, span, under.add))
    except NoRecords as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(1) from None
    if as_json:
        print_json(document_of(under.outcome))
    else:
        show_outcome(under.outcome)


def records(data: DATA = DEFAULT_DATA, begin: FROM = "", end: TO = "") -> None:
    """Prints recorded requests, a JSON line each: a file for `replay --records`."""

    def print_one(record: Record) -> None:
        print(encode([record]).decode())

    try:
        asyncio.run(_each(data, None, _span(begin, end), print_one))
    except NoRecords as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(1) from None


def _under(
    book: Rulebook, types: Mapping[str, Type], files: Sequence[RiskFile], examples: int
) -> Replay:
    wrong = False
    for file in files:
        if file.kind != PolicyKind.RISK_RULES:
            continue
        for fault in faults(book.rules[file.name], types, book.list_names()):
            where = f"line {fault.line}, column {fault.column}: " if fault.line else ""
            show_violations(file, [Violation(fault.field, f"{where}{fault.message}")])
            wrong = True
    if wrong:
        raise typer.Exit(1)
    lists = Lists(book.lists, lambda: time.time() * 1000)
    return Replay(book.all_rules(), types, lists, now=datetime.now(UTC), examples_max=examples)


async def _each(
    data: Path, from_file: Path | None, span: Span, take: Callable[[Record], Any]
) -> None:
    if from_file is not None:
        for record in from_lines(from_file, span):
            take(record)
        return
    url, tls = Session.open(data).nats()
    async for record in from_stream(url, span, tls):
        take(record)


async def _of_mesh(data: Path) -> dict[str, Policy]:
    found: dict[str, Policy] = {}
    for item in await risk_policies(Session.open(data)):
        if item.document and not item.alarm:
            kind = PolicyKind(item.kind)
            policy = Policy(kind, item.name, item.revision, parse(kind, item.document))
            found[policy_key(item.kind, item.name)] = policy
    return found


def _laid_over(policies: Mapping[str, Policy], files: Sequence[RiskFile]) -> PolicySet:
    """As if the files had been applied."""
    found = dict(policies)
    for file in files:
        try:
            document = parse(file.kind, file.document)
        except InvalidPolicy as error:
            show_violations(file, error.violations)
            raise typer.Exit(1) from None
        found[policy_key(file.kind, file.name)] = Policy(file.kind, file.name, 0, document)
    return PolicySet(found)


def _span(begin: str, end: str) -> Span:
    return Span(_moment(begin), _moment(end))


def _moment(text: str) -> datetime | None:
    if not text:
        return None
    length = duration_of(text)
    return datetime.now(UTC) - length if length is not None else moment_of(text)


def show_outcome(found: Outcome) -> None:
    if not found.records:
        console.print("no records in this time")
        return
    console.print(
        f"{found.records} records, {_time(found.first_ms)} to {_time(found.last_ms)}:"
        f" {found.changed} would end otherwise"
    )
    amounts: dict[tuple[str, str], list[str]] = {}
    for (was, now, currency), amount in sorted(found.amounts.items()):
        amounts.setdefault((was, now), []).append(f"{decimal_amount(amount, currency)} {currency}")
    table(
        "actions",
        ("was", "would be", "requests", "amount"),
        [
            (was, now if now != was else "the same", count, ", ".join(amounts[was, now]))
            for (was, now), count in sorted(found.actions.items())
        ],
    )
    table(
        "rules",
        ("rule", "matched", "would match", "more", "fewer"),
        [
            (name, item.was, item.now, item.gained, item.lost)
            for name, item in sorted(found.rules.items())
            if item.was or item.now
        ],
    )
    silent = sorted(name for name, item in found.rules.items() if not (item.was or item.now))
    if silent:
        console.print(f"never matched: {', '.join(silent)}", markup=False)
    rows = [
        (item.decision_id, _time(item.at_ms), item.operation, item.user,
         f"{decimal_amount(item.amount, item.currency)} {item.currency}",
         f"{item.was} → {item.now}", ", ".join(item.now_rules or item.was_rules))
        for _, kept in sorted(found.examples.items())
        for item in kept
    ]  # fmt: skip
    if rows:
        columns = ("decision", "time", "operation", "user", "amount", "change", "rules")
        table("examples", columns, rows)
    for name, count in sorted(found.missing.items()):
        console.print(f"{name} is not in {count} of the records: there it counts as nothing")


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")
