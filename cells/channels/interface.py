"""The one interface that every adapter has. tests/conformance holds all of them to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Protocol

from cells.channels.model import Answer, Heard, Operation, Request


@dataclass(frozen=True, slots=True)
class StatementFile:
    """A day's statement as the bank gave it: bytes on disk, not yet believed."""

    channel: str
    clearing_date: date
    # csv, fixed or camt.053.
    format: str
    path: Path


class StatementMissing(Exception):
    """The bank has none for that day, yet; or does not answer. To be asked again later."""


class Channel(Protocol):
    """A connection to one bank. Many requests may be under way at once.

    Never raises for what a bank does or fails to do: that is an Answer. A request that may have
    left and has no answer in time is UNKNOWN; one that surely has not left is FAILED / NOT_SENT.
    Cancelling `perform` leaves the request as it is, at the bank.
    """

    @property
    def name(self) -> str: ...

    @property
    def operations(self) -> frozenset[Operation]:
        """What it can do; the rest is answered FAILED / UNSUPPORTED, unsent.

        But a QUERY speaks of its original: one that was not asked (UNSUPPORTED, NOT_SENT) leaves
        that as UNKNOWN as it was.
        """
        ...

    async def run(self) -> None:
        """Keeps the connection, signs on, echoes, changes keys; for ever, until it is cancelled."""
        ...

    async def perform(self, request: Request, timeout_s: float) -> Answer:
        """Asks the bank. Repeating a request repeats its reference, so it has one effect.

        A VOID that has no answer is repeated by the adapter (ISO 8583's repeats) within the time.
        """
        ...

    async def fetch_statement(self, day: date, into: Path) -> StatementFile:
        """The statement of a clearing date, as a file in `into`. Raises StatementMissing."""
        ...


# Of kinds whose tongue has no statements: who fetches the day's file from where the bank lays it.
# Raises StatementMissing.
StatementSource = Callable[[date, Path], Awaitable[StatementFile]]

# Where late answers and callbacks go. Called from the event loop; must not block.
Listener = Callable[[Heard], None]
