"""A statement's lines, whatever its format. What iterates here believes nothing before the end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import BinaryIO, Protocol

from cells.statements.camt import CamtReading
from cells.statements.csv_format import CsvReading
from cells.statements.fixed_format import FixedReading
from cells.statements.layouts import CamtLayout, CsvLayout, FixedLayout
from cells.statements.model import (
    Claimed,
    FaultReason,
    Limits,
    StatementFault,
    StatementLine,
    Totals,
)

AnyLayout = CsvLayout | FixedLayout | CamtLayout


class Reading(Protocol):
    """One pass over one file; `claimed` and `totals` are whole when the iteration has ended.

    Raises StatementFault where the file is wrong: a total that does not match only at the end, so
    what was iterated before it is not to be believed yet.
    """

    claimed: Claimed
    totals: dict[str, Totals]

    def __iter__(self) -> Iterator[StatementLine]: ...


def reading_of(
    file: BinaryIO, layout: AnyLayout, channel: str, day: date, limits: Limits
) -> Reading:
    match layout:
        case CsvLayout():
            return CsvReading(file, layout, channel, day, limits)
        case FixedLayout():
            return FixedReading(file, layout, channel, day, limits)
        case CamtLayout():
            return CamtReading(file, layout, channel, day, limits)


def read_lines(
    path: Path, layout: AnyLayout, channel: str, day: date, limits: Limits | None = None
) -> Iterator[StatementLine]:
    """The lines of a file. Raises StatementFault, naming file, line and column."""
    limits = limits or Limits()
    try:
        check_size(path, limits)
        with path.open("rb") as file:
            yield from reading_of(file, layout, channel, day, limits)
    except StatementFault as fault:
        fault.file = path.name
        raise


def check_size(path: Path, limits: Limits) -> None:
    size = path.stat().st_size
    if not size:
        raise StatementFault(FaultReason.EMPTY, "the file is empty")
    if size > limits.file_bytes_max:
        raise StatementFault(
            FaultReason.TOO_LARGE, f"{size} bytes; at most {limits.file_bytes_max}"
        )
