"""`cellctl route-decision`: why a charge or payout went to which bank, and would it again?"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import grpc
import typer
from sqlalchemy import column, select, table
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine

from cells.choice.document import NoDecision, Replay, decode, document_of, replay, under
from cells.choice.model import Decision, Exclusion
from cells.choice.terms import Terms, terms_of
from control.cellctl import show
from control.cellctl.failures import NoMesh
from control.cellctl.session import Session
from control.policies.history import changes_of, laid_over, states
from router.errors import Refusal, Violation, bad_request
from router.ids import Kind, kind_of_id, slot_of_id
from router.policies.model import POLICIES_PREFIX
from router.policies.rules import InvalidPolicy, PolicySet, take
from router.store.model import AUDIT_PREFIX, Store

_KINDS = (Kind.CHARGE, Kind.PAYOUT)
_WHY: Mapping[Exclusion, str] = {
    Exclusion.BLOCKED: "blocked by its policy",
    Exclusion.TAKING: "not for this kind of movement",
    Exclusion.INSTRUMENT: "takes no such instrument",
    Exclusion.SCHEME: "does not take the card's scheme",
    Exclusion.CURRENCY: "does not take the currency",
    Exclusion.UNPRICED: "no fee table fits",
    Exclusion.MUST_USE: "another channel must be used",
    Exclusion.BANK: "not for instruments of this bank",
    Exclusion.MERCHANT: "not for this merchant",
    Exclusion.AMOUNT_LOW: "the amount is below what it takes",
    Exclusion.AMOUNT_HIGH: "the amount is above what it takes",
    Exclusion.CLOSED_NOW: "closed at that hour",
    Exclusion.QUOTA_MINUTE: "its quota of the minute was used up",
    Exclusion.QUOTA_DAY: "its quota of the day was used up",
    Exclusion.QUOTA_AMOUNT: "the amount would exceed its quota of the day",
    Exclusion.BREAKER_OPEN: "its breaker was open",
    Exclusion.NOT_DRAWN: "others looked better (channels_max)",
}


class Decisions(Protocol):
    """Where decisions are kept: one an attempt of a charge or payout."""

    async def find(self, owner_id: str) -> str:
        """The decision's JSON. Raises Refusal."""
        ...


@dataclass(frozen=True)
class FileDecisions:
    path: Path

    async def find(self, owner_id: str) -> str:
        if str(self.path) == "-":
            return sys.stdin.read()
        return self.path.read_text(encoding="utf-8")


@dataclass(frozen=True)
class DatabaseDecisions:
    engine: AsyncEngine

    async def find(self, owner_id: str) -> str:
        slot = _slot(owner_id)
        row = table("decisions", *map(column, ("slot", "owner_id", "document", "created_at")))
        # Each attempt has its own; the last one is of where it is now.
        query = (
            select(row.c.document)
            .where(row.c.slot == slot, row.c.owner_id == owner_id)
            .order_by(row.c.created_at.desc())
            .limit(1)
        )
        try:
            async with self.engine.connect() as connection:
                found = (await connection.execute(query)).scalar_one_or_none()
        except ProgrammingError as error:
            why = "this mesh keeps no decisions"
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "NO_DECISIONS", why) from error
        if not found:
            raise Refusal(
                grpc.StatusCode.NOT_FOUND, "DECISION_NOT_FOUND", f"there is none of {owner_id}"
            )
        return found if isinstance(found, str) else json.dumps(found)


def _slot(owner_id: str) -> int:
    try:
        kind, slot = kind_of_id(owner_id), slot_of_id(owner_id)
    except ValueError as error:
        raise bad_request([Violation("id", str(error))]) from None
    if kind not in _KINDS:
        raise bad_request([Violation("id", "must be of a charge (chg_) or a payout (pyo_)")])
    return slot


def route_decision(
    owner_id: Annotated[str, typer.Argument(metavar="ID", help="Of a charge or a payout.")],
    data: Annotated[
        Path, typer.Option("--data", envvar="CELLPAY_DATA", help="The mesh's directory.")
    ] = Path(".cellpay"),
    from_file: Annotated[
        Path | None, typer.Option("--from-file", help="The decision's JSON; - standard input.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--replay", help="Decide again; exits 1 if it is not the same.")
    ] = False,
    with_policy: Annotated[
        Path | None,
        typer.Option(help='What other policies would have chosen: {"channels/NAME": {…} or null}.'),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Why it went to which bank: what each was worth, and why the others were left out."""
    overlay = json.loads(with_policy.read_text(encoding="utf-8")) if with_policy else None
    if overlay is not None and not isinstance(overlay, dict):
        raise bad_request([Violation("with_policy", "must be an object of kind/name → document")])
    try:
        found = asyncio.run(_explain(owner_id, data, from_file, again, overlay))
    except NoDecision as error:
        raise bad_request([Violation("decision", str(error))]) from None
    except InvalidPolicy as error:
        raise bad_request(error.violations) from None
    if as_json:
        show.print_json(_document(found))
    else:
        _print(found)
    if found.replayed is not None and not found.replayed.is_same:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Explanation:
    decision: Decision
    replayed: Replay | None
    other: Replay | None


async def _explain(
    owner_id: str,
    data: Path,
    from_file: Path | None,
    again: bool,
    overlay: dict[str, object] | None,
) -> Explanation:
    if from_file is not None:
        text = await FileDecisions(from_file).find(owner_id)
    else:
        async with Session.open(data).database() as engine:
            text = await DatabaseDecisions(engine).find(owner_id)
    decision = decode(text)
    if decision.facts.owner_id != owner_id:
        raise bad_request([Violation("id", f"the decision is of {decision.facts.owner_id}")])
    if not again and overlay is None:
        return Explanation(decision, None, None)
    was = await _was_in_force(data, decision, needed=again)
    replayed = replay(decision, terms_of(was, decision.cell)) if again else None
    other = None
    if overlay is not None:
        other = under(decision, terms_of(laid_over(was, overlay), decision.cell))
    return Explanation(decision, replayed, other)


async def _was_in_force(data: Path, decision: Decision, *, needed: bool) -> PolicySet:
    """The policies that the decision was made under; if nobody knows them any more, none."""
    try:
        async with Session.open(data).store() as store:
            found = await policies_of(store, decision)
    except NoMesh:
        if needed:
            raise
        return PolicySet()
    if found is None and needed:
        why = "neither etcd nor the audit log holds the policies that it was made under"
        raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "POLICIES_UNKNOWN", why)
    return found or PolicySet()


async def policies_of(store: Store, decision: Decision) -> PolicySet | None:
    """In force now, or once: the audit log has every change of theirs."""
    listing = await store.list(POLICIES_PREFIX)
    stored = {key: (item.value, item.revision) for key, item in listing.items.items()}
    now = take(PolicySet(), stored)
    if _is_of(terms_of(now, decision.cell), decision):
        return now
    records = await store.list(AUDIT_PREFIX)
    once = states(changes_of(list(records.items.values())))
    return next((item for item in once if _is_of(terms_of(item, decision.cell), decision)), None)


def _is_of(terms: Terms, decision: Decision) -> bool:
    return terms.digest == decision.policy


def _document(found: Explanation) -> dict[str, Any]:
    document: dict[str, Any] = {"decision": document_of(found.decision)}
    for name, one in (("replay", found.replayed), ("with_policy", found.other)):
        if one is not None:
            document[name] = {
                "same": one.is_same,
                "differences": list(one.differences),
                "decision": document_of(one.decision),
            }
    return document


def _print(found: Explanation) -> None:
    show_decision(found.decision)
    if found.replayed is not None:
        show.console.print()
        if found.replayed.is_same:
            show.console.print("decided again from what it holds: the same")
        else:
            show.console.print("decided again from what it holds: NOT the same")
            _print_differences(found.replayed)
    if found.other is not None:
        show.console.print("\nunder the other policies:")
        show_decision(found.other.decision)
        _print_differences(found.other)


def _print_differences(of: Replay) -> None:
    for line in of.differences:
        show.console.print(f"  {line}", markup=False)


def show_decision(decision: Decision) -> None:
    facts = decision.facts
    what = " ".join(item for item in (facts.scheme, facts.instrument, facts.bank) if item)
    amount = show.decimal_amount(facts.amount, facts.currency)
    show.console.print(
        f"{facts.owner_id}  {facts.taking} of {amount} {facts.currency}, {what}, "
        f"merchant {facts.merchant or '-'}",
        markup=False,
    )
    show.console.print(
        f"policies of cell {decision.cell or '-'} {decision.policy}, revision {decision.revision}"
    )
    if decision.ranked:
        show.table(
            "asked in this order, the next one after a clean failure", _COLUMNS, _rows(decision)
        )
    else:
        show.console.print("nobody may be asked")
    left_out: dict[str, list[str]] = {}
    for item in decision.excluded:
        left_out.setdefault(f"{item.reason}: {_WHY[item.reason]}", []).append(item.channel)
    if left_out:
        rows = [(reason, ", ".join(names)) for reason, names in left_out.items()]
        show.table("left out", ("why", "channels"), rows)


_COLUMNS = ("", "channel", "worth", "drawn", "believed", "seen", "fee", "tier", "ms", "bonus")


def _rows(decision: Decision) -> list[tuple[object, ...]]:
    currency = decision.facts.currency
    rows: list[tuple[object, ...]] = []
    for place, item in enumerate(decision.ranked, 1):
        known = decision.snapshot.standings[item.channel]
        rows.append(
            (
                place,
                item.channel,
                f"{item.utility:,.2f}",
                f"{item.drawn:.1%}",
                f"{known.alpha / (known.alpha + known.beta):.1%}",
                f"{known.weight:.0f} {known.level}",
                show.decimal_amount(item.fee + item.attempt_fee, currency),
                item.tier + 1,
                f"{known.latency_ms:.0f}",
                f"{item.bonus:,.2f}" if item.bonus else "",
            )
        )
    return rows
