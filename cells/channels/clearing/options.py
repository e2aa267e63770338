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
    # Connecting takes no longer, so that what was not sent is known as such.
    connect_timeout_s: Seconds = 3.0
    connections_max: Annotated[int, Field(ge=1, le=10_000)] = 100
    # A VOID without an answer is repeated this often.
    repeat_s: Seconds = 2.0


_ADAPTER = TypeAdapter(ClearingOptions)


def options_of(options: Mapping[str, object]) -> ClearingOptions:
    """Raises pydantic.ValidationError for what it does not know."""
    return _ADAPTER.validate_python(dict(options))
