"""The day's report for a finance person: one HTML page that prints, and CSV files beside it.

What stands in it was written by banks and merchants: in HTML every text is escaped, and in CSV no
cell begins with what a spreadsheet takes for a formula.
"""

from __future__ import annotations

import csv
import html
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from iso4217 import Currency

from cells.reconciliation.model import Break, BreakClass, BreakState, Reason, Run

_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")
# Rows that the page shows; the CSV has them all.
_SHOWN_MAX = 500
_AGES = ((0, "of the day"), (1, "1 day"), (2, "2 to 3 days"), (4, "4 to 7 days"), (8, "older"))
_EXPLAINED = {
    BreakClass.LONG: "they have it, we do not",
    BreakClass.SHORT: "we have it, they do not",
    BreakClass.AMOUNT: "both have it, in another amount",
    BreakClass.STATUS: "both have it, one says it had no effect or we do not know",
    BreakClass.DUPLICATE: "they have it more than once",
    BreakClass.FEE: "another fee than agreed",
}
_BREAK_COLUMNS = (
    "found_on", "break_id", "class", "reason", "state", "attempt", "bank_reference", "amount",
    "currency", "age_days", "note", "resolved_on", "resolution", "adjustment",
)  # fmt: skip
_GUESS_COLUMNS = ("attempt", "line", "amount", "currency")
_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:72rem;color:#1b1b1b}
h1{font-size:1.5rem;margin-bottom:0}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%;margin:.5rem 0}
th,td{border-bottom:1px solid #ccc;padding:.25rem .5rem;text-align:left;vertical-align:top}
th{border-bottom:2px solid #888}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.alarm{color:#a40000;font-weight:600}.small{color:#555;font-size:12px;word-break:break-all}
.sign td{height:3rem;width:33%}
@media print{body{margin:0;font-size:11px}h2{break-after:avoid}tr{break-inside:avoid}}
"""


def amount_text(amount: int, currency: str) -> str:
    """Exact: minor units with the currency's exponent."""
    try:
        exponent = Currency(currency).exponent or 0
    except ValueError:
        exponent = 0
    sign, digits = ("-" if amount < 0 else ""), str(abs(amount)).rjust(exponent + 1, "0")
    return f"{sign}{digits[:-exponent]}.{digits[-exponent:]}" if exponent else sign + digits


def csv_cell(value: object) -> str:
    """A spreadsheet must not run what a bank wrote (CWE-1236)."""
    text = str(value)
    if _NUMBER.fullmatch(text) or not text.lstrip(" ").startswith(_FORMULA):
        return text
    return "'" + text


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([csv_cell(value) for value in row])
    return out.getvalue()


def break_rows(day: date, rows: Iterable[Break]) -> list[list[object]]:
    return [
        [
            row.clearing_date, row.break_id, row.break_class, row.reason, row.state,
            row.attempt_id, _theirs(row).get("bank_reference", ""),
            amount_text(row.amount, row.currency), row.currency, _age(day, row), row.note,
            row.resolved_on, row.resolution, row.adjustment_id,
        ]
        for row in rows
    ]  # fmt: skip


def _theirs(row: Break) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(row.theirs) if row.theirs else {}
    return found


def _age(day: date, row: Break) -> int:
    return (day - date.fromisoformat(row.clearing_date)).days


def page(run: Run, today: Sequence[Break], unresolved: Sequence[Break], alarm_days: int) -> str:
    """`unresolved`: of the day and of all before it."""
    day = date.fromisoformat(run.clearing_date)
    sums: list[dict[str, Any]] = json.loads(run.sums)
    guesses: list[dict[str, Any]] = json.loads(run.guesses)
    real = [row for row in today if row.reason != Reason.AGREED_FEES]
    waiting = [row for row in unresolved if row.reason != Reason.AGREED_FEES]
    title = f"Reconciliation of {run.channel}, {run.clearing_date}"
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_e(title)}</title>",
        f"<style>{_STYLE}</style><h1>{_e(title)}</h1>",
        f"<p class=small>statement SHA-256 {_e(run.statement_sha256)}, {run.lines} lines;"
        f" run version {run.version}</p>",
        _verdict(real, waiting, day, alarm_days),
        "<h2>Totals</h2>",
        _table(
            ("currency", "", "count", "amount"),
            [row for of in sums for row in _sums_rows(of)],
            numbers=2,
        ),
        "<h2>Breaks found on this day</h2>",
        _table(
            ("class", "meaning", "currency", "count", "amount", "still open"),
            _by_class(real), numbers=3,
        ),
        "<h2>Unresolved, by age</h2>",
        _table(("class", "age", "currency", "count", "amount"), _by_age(day, waiting), numbers=3),
        "<h2>Fees</h2>",
        _table(
            ("currency", "agreed", "charged", "difference", "posted by rule"),
            [_fee_row(of, today) for of in sums], numbers=1,
        ),
        _guessed(guesses),
        "<h2>Each break</h2>",
        _breaks(day, real, [row for row in waiting if row.clearing_date != run.clearing_date]),
        _signatures(),
    ]  # fmt: skip
    return "\n".join(parts) + "</html>\n"


def _verdict(found: Sequence[Break], waiting: Sequence[Break], day: date, alarm_days: int) -> str:
    old = [row for row in waiting if _age(day, row) >= alarm_days]
    cases = sum(row.state == BreakState.CASE for row in waiting)
    text = (
        f"{len(found)} breaks were found on this day; {len(waiting)} of this and earlier days are"
        f" unresolved, {cases} of them wait for a person."
    )
    alarm = f" <span class=alarm>{len(old)} are {alarm_days} days old or older.</span>"
    return f"<p>{_e(text)}{alarm if old else ''}</p>"


def _sums_rows(of: Mapping[str, Any]) -> list[tuple[object, ...]]:
    currency = of["currency"]
    named = (
        ("we expect", "ours"), ("the bank booked", "theirs"),
        ("matched exactly", "matched_exactly"), ("matched in batches", "matched_in_batches"),
        ("matched by amount and time (a guess)", "matched_heuristically"),
    )  # fmt: skip
    rows: list[tuple[object, ...]] = [
        (currency, label, of[name], amount_text(of[f"{name}_amount"], currency))
        for label, name in named
    ]
    difference = of["theirs_amount"] - of["ours_amount"]
    rows.append((currency, "the bank's less ours", "", amount_text(difference, currency)))
    return rows


def _grouped(
    keyed: Iterable[tuple[tuple[str, ...], Break]],
) -> dict[tuple[str, ...], list[Break]]:
    groups: dict[tuple[str, ...], list[Break]] = {}
    for key, row in keyed:
        groups.setdefault(key, []).append(row)
    return dict(sorted(groups.items()))


def _by_class(rows: Sequence[Break]) -> list[tuple[object, ...]]:
    groups = _grouped(((row.break_class, row.currency), row) for row in rows)
    return [
        (
            kind, _EXPLAINED[BreakClass(kind)], currency, len(of),
            amount_text(sum(row.amount for row in of), currency),
            sum(row.state in {BreakState.OPEN, BreakState.CASE} for row in of),
        )
        for (kind, currency), of in groups.items()
    ]  # fmt: skip


def _by_age(day: date, rows: Sequence[Break]) -> list[tuple[object, ...]]:
    def band(row: Break) -> str:
        return max(
            index for index, (days, _) in enumerate(_AGES) if days <= _age(day, row)
        ).__str__()

    groups = _grouped(((row.break_class, band(row), row.currency), row) for row in rows)
    return [
        (kind, _AGES[int(index)][1], currency, len(of),
         amount_text(sum(row.amount for row in of), currency))
        for (kind, index, currency), of in groups.items()
    ]  # fmt: skip


def _fee_row(of: Mapping[str, Any], today: Iterable[Break]) -> tuple[object, ...]:
    currency = of["currency"]
    posted = -sum(
        row.amount
        for row in today
        if row.reason == Reason.AGREED_FEES and row.currency == currency
        and row.state == BreakState.ADJUSTED
    )  # fmt: skip
    figures = (
        of["fees_expected"], of["fees_charged"], of["fees_charged"] - of["fees_expected"], posted,
    )  # fmt: skip
    return (currency, *(amount_text(figure, currency) for figure in figures))


def _guessed(guesses: Sequence[Mapping[str, Any]]) -> str:
    if not guesses:
        return ""
    rows = [
        (item["attempt_id"], item["line_no"], amount_text(item["amount"], item["currency"]),
         item["currency"])
        for item in guesses[:_SHOWN_MAX]
    ]  # fmt: skip
    return (
        "<h2>Matched by guess</h2><p>These lines carry no reference of ours. Each was the only one"
        " of its amount near that time; look them over.</p>"
        + _table(_GUESS_COLUMNS, rows, numbers=1)
    )


def _breaks(day: date, found: Sequence[Break], earlier: Sequence[Break]) -> str:
    rows = break_rows(day, [*found, *earlier])
    more = len(rows) - _SHOWN_MAX
    note = f"<p>… and {more} more in breaks.csv</p>" if more > 0 else ""
    kept = [row[:11] for row in rows[:_SHOWN_MAX]]
    return _table(_BREAK_COLUMNS[:11], kept, numbers=0, small=True) + note


def _signatures() -> str:
    cells = "".join(
        f"<td>{who}<br><br>name, date, signature</td>"
        for who in ("Prepared by", "Checked by", "Approved by")
    )
    return f"<h2>Sign-off</h2><table class=sign><tr>{cells}</tr></table>"


def _table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: int, small: bool = False
) -> str:
    """The last `numbers` columns, and what looks like a number, stand to the right."""

    def cell(tag: str, value: object, place: int) -> str:
        right = place >= len(columns) - numbers or _NUMBER.fullmatch(str(value))
        kind = " class=n" if right else " class=small" if small and tag == "td" else ""
        return f"<{tag}{kind}>{_e(value)}</{tag}>"

    lines = [
        "<tr>" + "".join(cell("td", value, place) for place, value in enumerate(row)) + "</tr>"
        for row in rows
    ]
    if not lines:
        return "<p>none</p>"
    head = "".join(cell("th", name.replace("_", " "), place) for place, name in enumerate(columns))
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _e(value: object) -> str:
    return html.escape(str(value), quote=True)


def write_report(
    folder: Path, run: Run, today: Sequence[Break], unresolved: Sequence[Break], alarm_days: int
) -> None:
    """report.html, breaks.csv, guesses.csv; each whole or absent."""
    day = date.fromisoformat(run.clearing_date)
    earlier = [row for row in unresolved if row.clearing_date != run.clearing_date]
    real = [row for row in today if row.reason != Reason.AGREED_FEES]
    guesses = [
        (item["attempt_id"], item["line_no"], amount_text(item["amount"], item["currency"]),
         item["currency"])
        for item in json.loads(run.guesses)
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("report.html", page(run, today, unresolved, alarm_days)),
        ("breaks.csv", csv_text(_BREAK_COLUMNS, break_rows(day, [*real, *earlier]))),
        ("guesses.csv", csv_text(_GUESS_COLUMNS, guesses)),
    ):
        half = folder / f".{name}.{os.getpid()}"
        half.write_text(text, encoding="utf-8", newline="")
        half.replace(folder / name)
