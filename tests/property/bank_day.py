"""A made-up truth of two days: our attempts, the bank's lines, and what must be found between them.

Shares nothing with the matching.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cells.channels.model import short_reference
from cells.reconciliation.model import BreakClass, Ours, Theirs
from cells.reconciliation.rules import fee_of
from cells.reconciliation.settings import ChannelPolicy, FeeTier
from router.ids import Kind, mint

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
FEES = (FeeTier(("purchase",), basis_points=38, at_least=1, at_most=2_000),)
POLICY = ChannelPolicy("north", fees=FEES)

ERRORS = (
    "missing", "extra", "amount", "currency", "rejected", "refused_by_us", "unknown", "duplicate",
    "shifted", "fee", "merged", "merged_wrong", "no_reference", "short_only", "void_by_original",
    "silent_reversal", "half_reversal", "declined_listed_rejected",
)  # fmt: skip


@dataclass
class World:
    """Both sides of two days, and what reconciliation must say of the first."""

    seed: int
    ours: list[Ours] = field(default_factory=list)
    theirs: list[Theirs] = field(default_factory=list)
    tomorrow: list[Theirs] = field(default_factory=list)
    expected: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    expected_tomorrow: set[str] = field(default_factory=set)
    guessed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.numbers = itertools.count(1)

    def attempt(self, **changes: Any) -> Ours:
        number = next(self.numbers)
        kind = self.random.choice(["purchase"] * 6 + ["refund", "payout"])
        # Amounts are unlike, so that a guess has one candidate.
        amount = (1_000 + number * 7) * (1 if kind == "purchase" else -1)
        slot = self.random.randrange(1024)
        attempt_id = mint(Kind.ATTEMPT, slot, unix_ms=0, random_80=number + (self.seed << 20))
        at = NOON + timedelta(seconds=self.random.randrange(-40_000, 40_000))
        ours = Ours(
            attempt_id, f"chg{number}", "", short_reference(attempt_id), f"B{number:09d}", kind,
            amount, "CNY", "line", "approved", at,
        )  # fmt: skip
        return ours._replace(**changes)

    def line_of(self, ours: Ours, **changes: Any) -> Theirs:
        fee = fee_of(ours.amount, ours.kind, FEES)
        at = (
            ours.happened_at + timedelta(seconds=self.random.randrange(30))
            if ours.happened_at
            else None
        )
        line = Theirs(
            0, ours.attempt_id, ours.short_reference, ours.bank_reference, ours.kind, ours.amount,
            fee, ours.currency, "booked", at,
        )  # fmt: skip
        return line._replace(**changes)

    def good(self) -> None:
        ours = self.attempt()
        self.ours.append(ours)
        self.theirs.append(self.line_of(ours))

    def expect(self, kind: BreakClass, ours: Ours | None, amount: int) -> None:
        self.expected[kind, ours.attempt_id if ours else "", amount] += 1

    def inject(self, error: str) -> None:
        ours = self.attempt()
        line = self.line_of(ours)
        match error:
            case "missing":
                self.ours.append(ours)
                self.expect(BreakClass.SHORT, ours, -ours.amount)
            case "extra":
                self.theirs.append(line)
                self.expect(BreakClass.LONG, None, ours.amount)
            case "amount":
                self.ours.append(ours)
                self.theirs.append(line._replace(amount=line.amount + 3, fee=line.fee))
                self.expect(BreakClass.AMOUNT, ours, 3)
                self._fee(self.theirs[-1])
            case "currency":
                self.ours.append(ours)
                self.theirs.append(line._replace(currency="USD"))
                self.expect(BreakClass.AMOUNT, ours, -ours.amount)
            case "rejected":
                self.ours.append(ours)
                self.theirs.append(line._replace(status="rejected"))
                self.expect(BreakClass.STATUS, ours, -ours.amount)
            case "refused_by_us":
                self.ours.append(ours._replace(expect="nothing", state="declined"))
                self.theirs.append(line)
                self.expect(BreakClass.STATUS, ours, ours.amount)
            case "unknown":
                self.ours.append(ours._replace(expect="unknown", state="unknown"))
                self.expect(BreakClass.STATUS, ours, 0)
            case "duplicate":
                self.ours.append(ours)
                self.theirs += [line, line]
                self.expect(BreakClass.DUPLICATE, ours, ours.amount)
            case "shifted":
                self.ours.append(ours)
                self.tomorrow.append(line)
                self.expect(BreakClass.SHORT, ours, -ours.amount)
                self.expected_tomorrow.add(ours.attempt_id)
            case "fee":
                self.ours.append(ours)
                self.theirs.append(line._replace(fee=line.fee + 5))
                self.expect(BreakClass.FEE, None, -5)
            case _:
                self._inject_more(error, ours, line)

    def _inject_more(self, error: str, ours: Ours, line: Theirs) -> None:
        match error:
            case "merged" | "merged_wrong":
                batch = f"BATCH{next(self.numbers)}"
                items = [self.attempt(kind="payout", bank_reference=batch) for _ in range(4)]
                items = [item._replace(amount=-abs(item.amount)) for item in items]
                total = sum(item.amount for item in items)
                wrong = 11 if error == "merged_wrong" else 0
                self.ours += items
                self.theirs.append(
                    self.line_of(items[0])._replace(
                        reference=batch, short_reference="", bank_reference="", kind="batch",
                        amount=total + wrong, fee=0,
                    )
                )  # fmt: skip
                if wrong:
                    self.expect(BreakClass.AMOUNT, None, wrong)
            case "no_reference":
                self.ours.append(ours._replace(bank_reference=""))
                self.theirs.append(line._replace(reference="", short_reference=""))
                self.guessed.add(ours.attempt_id)
            case "short_only":
                self.ours.append(ours)
                self.theirs.append(line._replace(reference=""))
            case "void_by_original" | "silent_reversal" | "half_reversal":
                self._reversal(error)
            case "declined_listed_rejected":
                self.ours.append(ours._replace(expect="nothing", state="declined"))
                self.theirs.append(line._replace(status="rejected"))
            case _:
                raise AssertionError(error)

    def _reversal(self, error: str) -> None:
        bought = self.attempt(kind="purchase", expect="pair", state="reversed")
        bought = bought._replace(amount=abs(bought.amount))
        void = self.attempt(kind="void", original_id=bought.attempt_id, amount=-bought.amount)
        self.ours += [bought, void]
        if error != "silent_reversal":
            self.theirs.append(self.line_of(bought))
        if error == "void_by_original":
            named = self.line_of(void)._replace(reference=bought.attempt_id, short_reference="")
            self.theirs.append(named)
        if error == "half_reversal":
            self.expect(BreakClass.SHORT, void, bought.amount)

    def _fee(self, line: Theirs) -> None:
        """A wrong amount may change the fee that was agreed for it."""
        agreed = fee_of(line.amount, line.kind, FEES)
        if agreed != line.fee:
            self.expect(BreakClass.FEE, None, agreed - line.fee)


def numbered(rows: Iterable[Theirs]) -> list[Theirs]:
    return [row._replace(line_no=number) for number, row in enumerate(rows, start=1)]
