"""A bank of the kind iso8583 as configured (ChannelSettings.options)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from cells.channels.iso8583.dialect import DOCUMENT, Dialect, MacAlgorithm

Seconds = Annotated[float, Field(gt=0, le=3_600)]


@DOCUMENT
@dataclass(frozen=True, slots=True)
class IsoOptions:
    host: str
    port: Annotated[int, Field(ge=1, le=65_535)]
    dialect: Dialect = field(default_factory=Dialect)
    # The zone master key in hex digits, alone in a file that only the cell may read.
    zone_master_key_file: Path | None = None
    connect_timeout_s: Seconds = 5.0
    # Answers to sign-on, echo and key requests.
    network_timeout_s: Seconds = 10.0
    # An echo is sent this often; it also finds a connection that died without a word.
    echo_s: Seconds = 30.0
    # Between connections: it grows twofold from the first to the last, with full jitter.
    backoff_first_s: Seconds = 0.2
    backoff_last_s: Seconds = 15.0
    # A request waits this long for a connection before it is called NOT_SENT.
    ready_wait_s: Annotated[float, Field(ge=0, le=60)] = 1.0
    # A reversal without an answer is repeated this often.
    repeat_s: Seconds = 5.0
    # Requests under way at once; more are NOT_SENT.
    in_flight_max: Annotated[int, Field(ge=1, le=100_000)] = 4_096
    # Requests that nobody waits for any more, whose late answers would still be known.
    late_max: Annotated[int, Field(ge=1, le=900_000)] = 100_000

    def __post_init__(self) -> None:
        sealed = self.dialect.mac is not MacAlgorithm.NONE
        if sealed and (self.dialect.keys is None or self.zone_master_key_file is None):
            raise ValueError("a MAC needs `dialect.keys` and `zone_master_key_file`")


_ADAPTER = TypeAdapter(IsoOptions)


def options_of(options: Mapping[str, object]) -> IsoOptions:
    """Raises pydantic.ValidationError for what it does not know."""
    return _ADAPTER.validate_python(dict(options))
