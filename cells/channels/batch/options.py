"""A bank that takes files, as configured (ChannelSettings.options)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from cells.channels.batch.fixed import FixedBatchLayout

Seconds = Annotated[float, Field(gt=0, le=86_400)]
_STRICT = ConfigDict(extra="forbid")


@checked(frozen=True, slots=True, config=_STRICT)
class HttpsMailbox:
    """PUT {url}/files/NAME; GET {url}/results/SENDER lists them, GET and DELETE one below it."""

    transport: Literal["https"]
    url: Annotated[str, Field(pattern=r"^https://[^/?#]+(/[^?#]*)?$")]
    ca: str = ""
    certificate: str = ""
    certificate_key: str = ""
    # A file that holds a bearer token.
    token_file: str = ""


@checked(frozen=True, slots=True, config=_STRICT)
class SftpMailbox:
    """Files go to `inbox`; results lie in `results`/SENDER and are removed when they are read."""

    transport: Literal["sftp"]
    host: str
    user: str
    # The bank's host key, pinned: a line as in `ssh_host_ed25519_key.pub`.
    host_key: str
    client_key: str
    port: int = 22
    inbox: str = "inbox"
    results: str = "results"


@checked(frozen=True, slots=True, config=_STRICT)
class PainLayout:
    format: Literal["pain.001"]


@checked(frozen=True, slots=True, config=_STRICT)
class DebtorSettings:
    name: str
    account: str
    bank: str


@checked(frozen=True, slots=True, config=_STRICT)
class BatchOptions:
    mailbox: Annotated[HttpsMailbox | SftpMailbox, Field(discriminator="transport")]
    layout: Annotated[PainLayout | FixedBatchLayout, Field(discriminator="format")]
    debtor: DebtorSettings
    # Whose results these are: one a process that delivers (a cell and its worker), never shared.
    sender: Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,12}$")]
    # Payouts are gathered for so long; then a file goes.
    window_s: Seconds = 30.0
    items_max: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    # Payouts that may wait for a file; more are NOT_SENT.
    gathered_max: Annotated[int, Field(ge=1)] = 100_000
    # How often the bank is asked for results.
    poll_s: Seconds = 10.0
    # One connection's steps.
    transfer_timeout_s: Seconds = 30.0
    backoff_first_s: Seconds = 0.5
    backoff_last_s: Seconds = 60.0
    # Payouts whose amounts are remembered, to compare with results.
    remembered_max: Annotated[int, Field(ge=1)] = 1_000_000


_ADAPTER = TypeAdapter(BatchOptions)


def options_of(options: Mapping[str, object]) -> BatchOptions:
    """Raises pydantic.ValidationError for what it does not know."""
    return _ADAPTER.validate_python(dict(options))
