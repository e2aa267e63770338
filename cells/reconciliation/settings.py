"""Settings of the reconciler: read once in __main__, passed down in parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from cells.reconciliation.model import BreakClass
from cells.statements.fetch import StatementSettings
from cells.statements.layouts import Layout
from router.client.tls import TlsFiles
from router.documents import read_document


@dataclass(frozen=True, slots=True)
class FeeTier:
    """What a bank keeps of a line: the first tier that fits. Rounded half up, once (pitfall 28)."""

    kinds: tuple[str, ...] = ("purchase",)
    # Minor units; None: of any amount.
    up_to: int | None = None
    basis_points: int = 0
    fixed: int = 0
    at_least: int = 0
    at_most: int | None = None


@dataclass(frozen=True, slots=True)
class ChannelPolicy:
    """How one channel is reconciled."""

    name: str
    # The zone whose midnight (plus `cut_off_minutes`) ends the channel's day.
    time_zone: str = "UTC"
    cut_off_minutes: int = 0
    # How long after its end a day is looked at: attempts under way may end, the bank may write.
    grace_minutes: int = 60
    # How statements come; None: a person or a job puts them where `inbox` says.
    statement: StatementSettings | None = None
    # A path with {channel} and {day}, and how the file there is written.
    inbox: str = ""
    layout: Layout | None = None
    # What was agreed; empty: fees are shown and not checked.
    fees: tuple[FeeTier, ...] = ()
    # One line with the sum of fees instead of a fee in each.
    fees_apart: bool = False


@dataclass(frozen=True, slots=True)
class ClassRule:
    # Up to here (minor units, either way) a break is adjusted without a person; 0: never.
    adjust_max: int = 0
    # Days that a break which may resolve by itself is carried before it is decided.
    carry_days: int = 0


def _rules() -> Mapping[BreakClass, ClassRule]:
    return {
        BreakClass.LONG: ClassRule(adjust_max=0, carry_days=1),
        BreakClass.SHORT: ClassRule(adjust_max=0, carry_days=1),
        BreakClass.AMOUNT: ClassRule(adjust_max=100),
        BreakClass.STATUS: ClassRule(adjust_max=0, carry_days=1),
        BreakClass.DUPLICATE: ClassRule(adjust_max=0),
        BreakClass.FEE: ClassRule(adjust_max=100),
    }


@dataclass(frozen=True, slots=True)
class Limits:
    """What may happen without a person."""

    rules: Mapping[BreakClass, ClassRule] = field(default_factory=_rules)
    # Of all that is adjusted by rule for a channel, a day and a currency, added up without signs.
    adjust_day_max: int = 10_000
    # A break that nobody has resolved for so long is an alarm at every run.
    alarm_days: int = 3
    # Matching without a reference: the same amount, within this time, one candidate each way.
    guess_window_s: int = 600
    guess_amount_max: int = 100_000
    # More differences than this part of the rows, and than the number, are no breaks: the
    # statement is partial, or of another day.
    implausible_ratio: float = 0.05
    implausible_min: int = 1_000
    # Lines with another fee than agreed that are breaks of their own; more are one for each kind.
    fee_breaks_max: int = 1_000


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """DuckDB: two thirds of what the process may have in all, so that it stays below 2 GiB."""

    memory_limit_mb: int = 1_000
    threads: int = 2


@dataclass(frozen=True, slots=True)
class ReconciliationSettings:
    name: str
    database_url: str
    # For rows on disk while a day is matched (about 150 bytes a row and side), and for reports.
    work: str
    channels: tuple[ChannelPolicy, ...]
    # The shelf of statements (cells/statements/intake.py).
    statements: str
    # How to reach the slots' homes; empty: adjustments wait.
    xds_bootstrap: str = ""
    tls: TlsFiles | None = None
    limits: Limits = field(default_factory=Limits)
    engine: EngineSettings = field(default_factory=EngineSettings)
    # How often it looks for work.
    poll_interval_s: float = 5.0
    # Without an operator's word, days back from yesterday that a run is begun for.
    days_back: int = 7
    # A bank says the clearing date of an attempt within so many days of it.
    clearing_lag_days: int = 4


def read_settings(path: Path) -> ReconciliationSettings:
    return TypeAdapter(ReconciliationSettings).validate_json(read_document(path))
