"""`cellctl risk list …`: values put on a list, taken off it, looked up."""

from __future__ import annotations

import asyncio
import json
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from cellpay.control.v1 import policies_pb2 as pb

from control.cellctl.options import DATA, DEFAULT_DATA, JSON, REASON
from control.cellctl.policies import change_policy
from control.cellctl.session import Session
from control.cellctl.show import console, print_json, table
from router.policies.model import PolicyKind
from router.policies.rules import InvalidPolicy, parse
from router.risk.lists import Entry, Holds, Lists, RiskList

app = typer.Typer(help="Lists that rules ask.", no_args_is_help=True, add_completion=False)

NAME = Annotated[str, typer.Argument(help="The list's.")]
VALUES = Annotated[list[str], typer.Argument(help="One or several.")]
_KIND = PolicyKind.RISK_LISTS
_TIMEOUT_S = 10.0
_DURATION = re.compile(r"(\d{1,5})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@app.command()
def add(
    name: NAME,
    values: VALUES,
    reason: REASON,
    data: DATA = DEFAULT_DATA,
    until: Annotated[
        str, typer.Option("--until", help="2026-12-31T00:00:00Z, or 30m, 12h, 7d from now.")
    ] = "",
    note: Annotated[str, typer.Option("--note", help="Kept with the entry: which case.")] = "",
    holds: Annotated[
        Holds | None, typer.Option("--holds", help="Of a new list: values, or IP addresses.")
    ] = None,
) -> None:
    """Puts values on a list, which is made if it is not there; one that stands there gets the new
    end and note."""
    end = moment_of(until).isoformat() if until else None

    def change(document: dict[str, Any]) -> dict[str, Any]:
        kept = [item for item in document.get("entries", []) if item["value"] not in values]
        entry: dict[str, Any] = {"until": end} if end else {}
        entry |= {"note": note} if note else {}
        document["entries"] = [*kept, *({"value": value, **entry} for value in values)]
        return document | ({"holds": holds.value} if holds else {})

    _changed(data, name, change, reason)


@app.command()
def remove(
    name: NAME,
    reason: REASON,
    values: Annotated[list[str] | None, typer.Argument(help="One or several.")] = None,
    data: DATA = DEFAULT_DATA,
    expired: Annotated[bool, typer.Option("--expired", help="All whose time has passed.")] = False,
) -> None:
    """Takes values off a list, which stays, empty or not."""
    gone = set(values or ())
    if not gone and not expired:
        raise typer.BadParameter("name values, or --expired", param_hint="VALUES")

    def change(document: dict[str, Any]) -> dict[str, Any]:
        entries = document.get("entries", [])
        missing = gone - {item["value"] for item in entries}
        if missing:
            raise typer.BadParameter(f"{', '.join(sorted(missing))} is not on it")
        document["entries"] = [
            item
            for item in entries
            if item["value"] not in gone and not (expired and _has_ended(item))
        ]
        return document

    _changed(data, name, change, reason)


@app.command()
def show(
    name: NAME,
    value: Annotated[str, typer.Argument(help="Is this one on it now? Ends with 1 if not.")] = "",
    data: DATA = DEFAULT_DATA,
    as_json: JSON = False,
) -> None:
    """What stands on a list, or whether a value does, as a rule would see it."""

    async def fetch() -> pb.Policy:
        async with Session.open(data).policies() as policies:
            request = pb.GetPolicyRequest(kind=_KIND, name=name)
            return await policies.GetPolicy(request, timeout=_TIMEOUT_S)

    document = _parsed(asyncio.run(fetch()).document)
    if value:
        is_on = Lists({name: document}, lambda: time.time() * 1000).contains(name, value)
        console.print(f"{value} is {'' if is_on else 'not '}on {name}", markup=False)
        raise typer.Exit(0 if is_on else 1)
    rows = [_row(item) for item in document.entries]
    if as_json:
        columns = ("value", "until", "note")
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        table(f"{name}: {document.holds}", ("value", "until", "note"), rows)


def moment_of(text: str) -> datetime:
    """A time with its offset, or a duration from now. Raises BadParameter."""
    length = duration_of(text)
    if length is not None:
        try:
            return datetime.now(UTC) + length
        except OverflowError:
            raise typer.BadParameter(f"{text} is too long") from None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text} is no time and no duration such as 12h") from None
    if moment.tzinfo is None:
        raise typer.BadParameter(f"{text} needs its offset from UTC: {text}Z")
    return moment


def duration_of(text: str) -> timedelta | None:
    """None: it is none."""
    match = _DURATION.fullmatch(text)
    return timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else None


def _changed(data: Any, name: str, change: Any, reason: str) -> None:
    done = asyncio.run(change_policy(Session.open(data), _KIND, name, change, reason))
    count = len(json.loads(done.document)["entries"])
    console.print(f"{name}: {count} entries, at revision {done.revision}")


def _parsed(document: str) -> RiskList:
    try:
        found = parse(_KIND, document)
    except InvalidPolicy as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from None
    assert isinstance(found, RiskList)
    return found


def _row(item: Entry) -> tuple[str, str, str]:
    ended = item.until is not None and item.until <= datetime.now(UTC)
    until = item.until.isoformat(timespec="seconds") if item.until else ""
    return item.value, f"{until} (over)" if ended else until, item.note


def _has_ended(item: dict[str, Any]) -> bool:
    until = item.get("until")
    return until is not None and datetime.fromisoformat(until) <= datetime.now(UTC)
