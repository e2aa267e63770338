"""Whether what a statement says of itself is what was found in it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

from cells.statements.model import Claimed, ClaimedTotals, FaultReason, StatementFault, Totals


def check_day(claimed: date | None, expected: date) -> None:
    """Before any line is read, where the format puts the day first."""
    if claimed is not None and claimed != expected:
        raise StatementFault(
            FaultReason.WRONG_DAY, f"the file is of {claimed}, {expected} was asked for"
        )


def check_channel(claimed: str, expected: str) -> None:
    if claimed != expected:
        raise StatementFault(
            FaultReason.WRONG_CHANNEL, f"the file is of {claimed[:64]!r}, not of {expected!r}"
        )


def check_claims(claimed: Claimed, counted: Mapping[str, Totals], expected: date) -> None:
    """Raises StatementFault unless all that is claimed was counted. What is not claimed passes."""
    check_day(claimed.clearing_date, expected)
    lines = sum(totals.lines for totals in counted.values())
    if claimed.lines is not None and claimed.lines != lines:
        raise StatementFault(
            FaultReason.WRONG_COUNT, f"the file says {claimed.lines} lines and has {lines}"
        )
    if not claimed.totals:
        return
    for currency in sorted({*claimed.totals, *counted}):
        totals = counted.get(currency, Totals())
        claim = claimed.totals.get(currency)
        if claim is None:
            raise StatementFault(
                FaultReason.WRONG_COUNT, f"{totals.lines} lines of {currency} have no total"
            )
        _check_totals(currency, claim, totals)


def _check_totals(currency: str, claim: ClaimedTotals, totals: Totals) -> None:
    net = totals.credits - totals.debits - totals.fees
    for said, found, what, reason in (
        (claim.lines, totals.lines, "number of lines", FaultReason.WRONG_COUNT),
        (claim.credits, totals.credits, "sum of credits", FaultReason.WRONG_TOTAL),
        (claim.debits, totals.debits, "sum of debits", FaultReason.WRONG_TOTAL),
        (claim.fees, totals.fees, "sum of fees", FaultReason.WRONG_TOTAL),
        (claim.net, net, "net sum", FaultReason.WRONG_TOTAL),
        (claim.hash_total, totals.hash_total, "hash total", FaultReason.WRONG_HASH_TOTAL),
    ):
        if said is not None and said != found:
            raise StatementFault(
                reason, f"{currency}: the file says {said} as {what}, its lines give {found}"
            )
