"""Getting a day's statement from a bank, into a file that is there whole or not at all.

What is fetched again after a broken connection goes on where it broke, if the bank still has the
same file; a file that has changed meanwhile is begun anew. One name a channel and day, so that
fetching twice is fetching once.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Protocol

import structlog
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from cells.channels.interface import StatementFile, StatementMissing
from cells.statements.layouts import Layout
from cells.statements.model import FaultReason, StatementFault

log = structlog.get_logger(__name__)

_STRICT = ConfigDict(extra="forbid")
_PLACE = re.compile(r"\{([^{}]*)\}")


@checked(frozen=True, slots=True, config=_STRICT)
class Retrying:
    """How a transfer that breaks is tried again."""

    attempts_max: int = 5
    # First delay; doubles to the cap, with jitter.
    backoff_base_s: float = 0.5
    backoff_cap_s: float = 30.0
    # Without a byte for so long, the connection counts as broken.
    silence_max_s: float = 20.0
    bytes_max: int = 8 * 1024**3
    # Written down at once: what a broken connection loses at the most.
    block_bytes: Annotated[int, Field(ge=1)] = 256 * 1024


@checked(frozen=True, slots=True, config=_STRICT)
class HttpsSource:
    transport: Literal["https"]
    # `{channel}` and `{day}` are filled in; `{day:%Y%m%d}` as strftime has it.
    url: str
    # PEM files. Without `ca` the system's authorities count; the other two are for mutual TLS.
    ca: str = ""
    certificate: str = ""
    key: str = ""
    # A file that holds a bearer token.
    token_file: str = ""
    retrying: Retrying = Retrying()

    def __post_init__(self) -> None:
        if not self.url.startswith("https://"):
            raise ValueError("statements come over https only")


@checked(frozen=True, slots=True, config=_STRICT)
class SftpSource:
    transport: Literal["sftp"]
    host: str
    user: str
    # The bank's host key, pinned: a line as in `ssh_host_ed25519_key.pub`.
    host_key: str
    # Our private key's file.
    client_key: str
    # With the same places as a URL.
    path: str
    port: int = 22
    # Of a file beside it that holds its SHA-256 in hexadecimal, when the bank writes one.
    checksum_suffix: str = ""
    retrying: Retrying = Retrying()


@checked(frozen=True, slots=True, config=_STRICT)
class StatementSettings:
    """How a channel's statements come, and how they are written."""

    source: Annotated[HttpsSource | SftpSource, Field(discriminator="transport")]
    layout: Layout


STATEMENTS: TypeAdapter[StatementSettings] = TypeAdapter(StatementSettings)


class TransferBroken(Exception):
    """The connection broke or the bank is busy: it goes on with another attempt."""


class Source(Protocol):
    """HTTPS and SFTP. `download` goes on with `part` where its mark still fits; repeatable."""

    async def download(self, channel: str, day: date, part: Part) -> None: ...


@dataclass(frozen=True, slots=True)
class Part:
    """A file on its way: what is there already, and of which edition at the bank."""

    path: Path
    bytes_max: int

    @property
    def _note(self) -> Path:
        return self.path.with_name(self.path.name + ".mark")

    def mark(self) -> str:
        """The edition (ETag, or size and time) that the bytes are of; empty: none."""
        try:
            return str(json.loads(self._note.read_text(encoding="utf-8"))) if self.size() else ""
        except (FileNotFoundError, ValueError):
            return ""

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def begin(self, mark: str) -> None:
        self.path.unlink(missing_ok=True)
        self._note.write_text(json.dumps(mark), encoding="utf-8")
        self.path.touch()

    def append(self, data: bytes, size: int) -> int:
        """The size after it. Raises StatementFault when the file gets larger than any may be."""
        if size + len(data) > self.bytes_max:
            self.discard()
            raise StatementFault(
                FaultReason.TOO_LARGE, f"more than {self.bytes_max} bytes", file=self.path.name
            )
        with self.path.open("ab") as file:
            file.write(data)
        return size + len(data)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


async def fetch(
    source: Source,
    retrying: Retrying,
    channel: str,
    day: date,
    format_: str,
    into: Path,
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> StatementFile:
    """The statement as a file in `into`. Raises StatementMissing, or StatementFault (TOO_LARGE)."""
    await asyncio.to_thread(lambda: into.mkdir(parents=True, exist_ok=True))
    name = f"{channel}-{day.isoformat()}.{format_}"
    part = Part(into / f".{name}.part", retrying.bytes_max)
    for attempt in range(1, retrying.attempts_max + 1):
        try:
            await source.download(channel, day, part)
        except TransferBroken as error:
            log.warning(
                "a statement's transfer broke", channel=channel, day=str(day), attempt=attempt,
                has_bytes=part.size(), error=str(error),
            )  # fmt: skip
            if attempt == retrying.attempts_max:
                raise StatementMissing(f"{channel} {day}: {error}") from error
            await sleep(_spread(attempt, retrying))
        else:
            whole = into / name
            part.path.replace(whole)
            part.discard()
            return StatementFile(channel, day, format_, whole)
    raise AssertionError("attempts_max is at least 1")


def fill(template: str, channel: str, day: date) -> str:
    """`{channel}` and `{day:%Y%m%d}`; nothing else of a template is looked at, so that it cannot
    reach into objects as str.format would."""

    def value(found: re.Match[str]) -> str:
        name, _, form = found.group(1).partition(":")
        if name == "channel":
            return channel
        if name == "day":
            return day.strftime(form or "%Y-%m-%d")
        raise ValueError(f"{{{name}}} is neither {{channel}} nor {{day}}")

    return _PLACE.sub(value, template)


def _spread(attempt: int, retrying: Retrying) -> float:
    delay = min(retrying.backoff_cap_s, retrying.backoff_base_s * 2.0 ** (attempt - 1))
    return random.uniform(0.5, 1.0) * delay


async def fetch_statement(
    settings: StatementSettings, channel: str, day: date, into: Path
) -> StatementFile:
    """What a channel's fetch_statement is made of."""
    from cells.statements.https import HttpsStatements
    from cells.statements.sftp import SftpStatements

    source: Source
    match settings.source:
        case HttpsSource() as https:
            source = HttpsStatements(https)
        case SftpSource() as sftp:
            source = SftpStatements(sftp)
    return await fetch(source, settings.source.retrying, channel, day, settings.layout.format, into)
