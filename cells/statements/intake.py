"""A statement is believed whole or quarantined whole, once for each channel and clearing date.

On disk, below one root; every step ends in a rename, so whatever dies in between is begun again:

    believed/<channel>/<day>/     statement.json, lines.parquet, original
    quarantine/<channel>/<day>-<hash>/   reason.json, original
    seen/<hash>                   of which channel and day these bytes were

The bank keeps its statements: a lost disk is fetched and taken in again, with the same result.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp

from pydantic import TypeAdapter

from cells.channels.interface import StatementFile
from cells.statements.columns import Resources, convert
from cells.statements.model import FaultReason, Limits, StatementFault, Totals
from cells.statements.reading import AnyLayout

_CHANNEL = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
_BLOCK_BYTES = 4 * 1024**2


@dataclass(frozen=True, slots=True)
class Believed:
    """A statement that reconciliation may read: `folder`/lines.parquet holds columns.COLUMNS."""

    channel: str
    clearing_date: date
    sha256: str
    statement_id: str
    lines: int
    totals: Mapping[str, Totals]
    folder: Path

    @property
    def parquet(self) -> Path:
        return self.folder / "lines.parquet"


@dataclass(frozen=True, slots=True)
class _Record:
    sha256: str
    statement_id: str
    totals: dict[str, Totals]


@dataclass(frozen=True, slots=True)
class _Seen:
    channel: str
    clearing_date: date


_RECORD = TypeAdapter(_Record)
_SEEN = TypeAdapter(_Seen)


class Shelf:
    """One process at a time takes in a channel's day; others find what it has made."""

    def __init__(
        self, root: Path, limits: Limits | None = None, resources: Resources | None = None
    ) -> None:
        self._root = root
        self._limits = limits or Limits()
        self._resources = resources or Resources()

    def find(self, channel: str, day: date) -> Believed | None:
        folder = self._believed(channel, day)
        try:
            record = _RECORD.validate_json((folder / "statement.json").read_bytes())
        except FileNotFoundError:
            return None
        lines = sum(totals.lines for totals in record.totals.values())
        return Believed(
            channel, day, record.sha256, record.statement_id, lines, record.totals, folder
        )

    def take_in(self, statement: StatementFile, layout: AnyLayout) -> Believed:
        """Believes the file or quarantines it and raises StatementFault. The same again finds the
        first. The file is copied; whoever fetched it may delete it."""
        channel, day = statement.channel, statement.clearing_date
        folder = self._believed(channel, day)
        digest = _hash_of(statement.path)
        try:
            found = self.find(channel, day)
            if found is not None:
                if found.sha256 == digest:
                    return found
                raise StatementFault(
                    FaultReason.ANOTHER_EDITION,
                    f"{channel} has another statement of {day} already ({found.sha256[:12]})",
                )
            self._check_seen(digest, channel, day)
            self._believe(statement, layout, digest, folder)
        except StatementFault as fault:
            fault.file = fault.file or statement.path.name
            self._quarantine(statement, digest, fault)
            raise
        believed = self.find(channel, day)
        assert believed is not None, "what was renamed is there"
        return believed

    def withdraw(self, channel: str, day: date, why: str) -> None:
        """Takes back what was believed, so that a corrected edition can come. Keeps it."""
        found = self.find(channel, day)
        if found is None:
            raise LookupError(f"{channel} has no statement of {day}")
        (found.folder / "reason.json").write_text(
            json.dumps({"reason": "WITHDRAWN", "message": why}), encoding="utf-8"
        )
        self._seen(found.sha256).unlink(missing_ok=True)
        into = self._root / "quarantine" / channel / f"{day.isoformat()}-{found.sha256[:12]}"
        shutil.rmtree(into, ignore_errors=True)
        into.parent.mkdir(parents=True, exist_ok=True)
        found.folder.rename(into)

    def _believe(
        self, statement: StatementFile, layout: AnyLayout, digest: str, folder: Path
    ) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(mkdtemp(prefix=".taking-", dir=folder.parent))
        try:
            shutil.copyfile(statement.path, work / "original")
            converted = convert(
                work / "original", layout, statement.channel, statement.clearing_date,
                work / "lines.parquet", self._limits, self._resources,
            )  # fmt: skip
            if converted.sha256 != digest:
                raise OSError(f"{statement.path} changed while it was copied")
            record = _Record(digest, converted.claimed.statement_id or "", dict(converted.totals))
            _write(work / "statement.json", _RECORD.dump_json(record))
            seen = self._seen(digest)
            seen.parent.mkdir(parents=True, exist_ok=True)
            _write(seen, _SEEN.dump_json(_Seen(statement.channel, statement.clearing_date)))
            work.rename(folder)
        except StatementFault as fault:
            fault.file = statement.path.name
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _check_seen(self, digest: str, channel: str, day: date) -> None:
        try:
            seen = _SEEN.validate_json(self._seen(digest).read_bytes())
        except FileNotFoundError:
            return
        if (seen.channel, seen.clearing_date) != (channel, day):
            raise StatementFault(
                FaultReason.DUPLICATE,
                f"the same bytes were the statement of {seen.channel} of {seen.clearing_date}",
            )

    def _quarantine(self, statement: StatementFile, digest: str, fault: StatementFault) -> None:
        name = f"{statement.clearing_date.isoformat()}-{digest[:12]}"
        folder = self._root / "quarantine" / statement.channel / name
        if folder.exists():
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(mkdtemp(prefix=".refusing-", dir=folder.parent))
        shutil.copyfile(statement.path, work / "original")
        reason = {
            "reason": fault.reason.value,
            "message": str(fault),
            "line": fault.line,
            "column": fault.column,
            "sha256": digest,
        }
        _write(work / "reason.json", json.dumps(reason, indent=1).encode())
        try:
            work.rename(folder)
        except OSError:
            # Another process has refused the same bytes meanwhile.
            shutil.rmtree(work, ignore_errors=True)

    def _believed(self, channel: str, day: date) -> Path:
        if not _CHANNEL.fullmatch(channel):
            raise ValueError(f"{channel[:64]!r} is no name of a channel")
        return self._root / "believed" / channel / day.isoformat()

    def _seen(self, digest: str) -> Path:
        return self._root / "seen" / digest


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, and there after a crash."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _hash_of(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
