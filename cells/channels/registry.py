"""Which folder speaks a channel's tongue. A new kind is a folder, a line here, and a line in
tests/conformance/cases.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from cells.channels.batch.channel import open_channel as open_batch
from cells.channels.clearing.channel import open_channel as open_clearing
from cells.channels.interface import Channel, Listener, StatementSource
from cells.channels.iso8583.channel import open_channel as open_iso8583
from cells.channels.model import ChannelSettings


class Opener(Protocol):
    """Reads the kind's options, raising ValueError for what it does not know. Connects nowhere."""

    def __call__(
        self, settings: ChannelSettings, listener: Listener, statements: StatementSource | None
    ) -> Channel: ...


class UnknownKind(ValueError):
    """A channel is configured with a kind that nobody speaks."""


KINDS: Mapping[str, Opener] = {
    "batch": open_batch,
    "clearing": open_clearing,
    "iso8583": open_iso8583,
}


def open_channel(
    settings: ChannelSettings, listener: Listener, statements: StatementSource | None = None
) -> Channel:
    """A channel as configured; `run` connects it. Raises ValueError."""
    opener = KINDS.get(settings.kind)
    if opener is None:
        known = ", ".join(sorted(KINDS))
        raise UnknownKind(f"channel {settings.name}: no kind {settings.kind!r}; there are {known}")
    return opener(settings, listener, statements)
