"""The tongues that a simulated bank can speak: a line each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from banks import iso8583
from banks.bank import Bank
from banks.batch import batch
from banks.clearing import clearing

# Serves while it is open; gives the ports (by name) that the process prints.
Tongue = Callable[[Bank, Mapping[str, object]], AbstractAsyncContextManager[Mapping[str, int]]]


@asynccontextmanager
async def _mute(bank: Bank, options: Mapping[str, object]) -> AsyncIterator[Mapping[str, int]]:
    """No tongue: a book with a control API, for statements made of `POST /ask`."""
    yield {}


KINDS: dict[str, Tongue] = {
    "batch": batch,
    "clearing": clearing,
    "iso8583": iso8583.serving,
    "mute": _mute,
}
