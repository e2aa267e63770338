"""A clearing house as configured (ChannelSettings.options)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, with_config

from cells.channels.model import AnswerReason, Operation

Seconds = Annotated[float, Field(gt=0, le=3_600)]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class ClearingOptions:
    # https only.
    base_url: Annotated[str, Field(pattern=r"^https://[^/?#]+(/[^?#]*)?$")]
    participant: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
    # How they know our key, and its file (PEM, Ed25519 or RSA).
    key_id: str
    key_file: Path
    # Their keys by the ID that they send.
    bank_keys: Mapping[str, Path]
    # Of their certificate; without, the system's. Certificate and key are ours, for mutual TLS.
    ca: str = ""
    certificate: str = ""
    certificate_key: str = ""
    # Where they call us back (cells.channels.callbacks); empty: they are only asked.
    callback_url: str = ""
    # Codes of theirs beside the usual ones (rules.CODES).
    codes: Mapping[str, AnswerReason] = field(default_factory=dict)
    operations: frozenset[Operation] = frozenset(Operation)
    # In minor units; more is not sent.
    amount_max: Annotated[int, Field(gt=0, lt=2**63)] = 999_999_999_999
    # An answer that comes this long after its request was given up is still heard.
    late_s: Annotated[float, Field(ge=0, le=600)] = 30.0
    # Requests under way, those that nobody waits for among them; more are NOT_SENT.
    in_flight_max: Annotated[int, Field(ge=1)] = 4_096
    # Connecting takes no longer, so that what was not sent is known as such.
    connect_timeout_s: Seconds = 3.0
    # A request that finds no connection tries again for so long, half its own time at the most: not
    # a byte of it has left.
    ready_wait_s: Annotated[float, Field(ge=0, le=60)] = 1.0
    connections_max: Annotated[int, Field(ge=1, le=10_000)] = 100
    # A VOID without an answer is repeated this often.
    repeat_s: Seconds = 2.0


_ADAPTER = TypeAdapter(ClearingOptions)


def options_of(options: Mapping[str, object]) -> ClearingOptions:
    """Raises pydantic.ValidationError for what it does not know."""
    return _ADAPTER.validate_python(dict(options))
