"""What an audit says, for people (`lines`) and for programs (`Report.to_dict`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Severity(StrEnum):
    # An invariant of the design does not hold.
    BROKEN = "broken"
    # Something was begun and has not ended yet; it is wrong only when it stays.
    PENDING = "pending"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `samples` are sentences with IDs; `total` counts all, shown or not."""

    check: str
    invariant: int
    severity: Severity
    total: int
    samples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CurrencyFigures:
    """All money of one currency, in minor units."""

    currency: str
    users: int
    collection: int
    clearing: int
    # What lies with banks (as a debt of theirs, negative), fees and suspense.
    banks: int
    external: int
    held: int
    deposits: int
    withdrawals: int

    @property
    def conserved(self) -> bool:
        inside = self.users + self.collection + self.clearing + self.banks
        return inside == self.deposits - self.withdrawals


@dataclass(frozen=True, slots=True)
class Figures:
    """How much there is of everything. Keys are states, or `purpose/state` for accounts."""

    money: tuple[CurrencyFigures, ...]
    accounts: Mapping[str, int]
    entries: int
    orders: Mapping[str, int]
    payments: int
    refunds: Mapping[str, int]
    movements: Mapping[str, int]
    transfers: Mapping[str, int]
    branches: Mapping[str, int]
    charges: Mapping[str, int]
    charge_refunds: Mapping[str, int]
    payouts: Mapping[str, int]
    # Requests to banks whose end is not known.
    attempts_open: int
    in_doubt: int
    idempotency_records: int
    outbox: int
    outbox_unsent: int
    # By state; None: this database has no such table.
    deliveries: Mapping[str, int] | None


@dataclass(frozen=True, slots=True)
class Report:
    """One audit of the whole mesh, at one moment of the database."""

    # The database's time of the snapshot, ISO 8601.
    audited_at: str
    checks: tuple[str, ...]
    findings: tuple[Finding, ...]
    figures: Figures
    # What was not checked, and why: check or subject → reason.
    skipped: Mapping[str, str]

    @property
    def ok(self) -> bool:
        """No invariant is broken. What is pending may still end."""
        return not self.broken

    @property
    def broken(self) -> tuple[Finding, ...]:
        return tuple(item for item in self.findings if item.severity == Severity.BROKEN)

    @property
    def pending(self) -> tuple[Finding, ...]:
        return tuple(item for item in self.findings if item.severity == Severity.PENDING)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        figures = asdict(self.figures)
        for entry, money in zip(figures["money"], self.figures.money, strict=True):
            entry["conserved"] = money.conserved
        return {
            "ok": self.ok,
            "audited_at": self.audited_at,
            "checks": list(self.checks),
            "findings": [
                asdict(item) | {"severity": str(item.severity), "samples": list(item.samples)}
                for item in self.findings
            ],
            "figures": figures | {"money": list(figures["money"])},
            "skipped": dict(self.skipped),
        }


def lines(report: Report) -> list[str]:
    """The report for people: the verdict, what is wrong, what is under way, the sums."""
    verdict = "the books are sound" if report.ok else "THE BOOKS ARE BROKEN"
    text = [f"{verdict}: {len(report.checks)} checks, {len(report.broken)} broken, "
            f"{len(report.pending)} pending, audited at {report.audited_at}"]  # fmt: skip
    for finding in (*report.broken, *report.pending):
        text.append(
            f"{finding.severity}: {finding.check} (invariant {finding.invariant}): {finding.total}"
        )
        text += [f"  {sample}" for sample in finding.samples]
        if finding.total > len(finding.samples):
            text.append(f"  … and {finding.total - len(finding.samples)} more")
    figures = report.figures
    for money in figures.money:
        sign = "=" if money.conserved else "≠"
        text.append(
            f"{money.currency}: users {money.users} + collection {money.collection}"
            f" + clearing {money.clearing} + banks {money.banks} {sign} deposits {money.deposits}"
            f" - withdrawals {money.withdrawals} (held {money.held})"
        )
    text += [
        f"accounts: {_counts(figures.accounts)}",
        f"orders: {_counts(figures.orders)}; payments: {figures.payments};"
        f" refunds: {_counts(figures.refunds)}",
        f"transfers: {_counts(figures.transfers)}; in doubt: {figures.in_doubt}",
        f"charges: {_counts(figures.charges)}; refunds of them: {_counts(figures.charge_refunds)};"
        f" payouts: {_counts(figures.payouts)}; open requests to banks: {figures.attempts_open}",
        f"outbox: {figures.outbox}, unsent: {figures.outbox_unsent}",
    ]
    if figures.deliveries is not None:
        text.append(f"deliveries: {_counts(figures.deliveries)}")
    text += [f"not checked: {what}: {why}" for what, why in report.skipped.items()]
    return text


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
