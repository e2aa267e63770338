"""Their side of a day: the statement as the shelf believes it, fetched when it is not there yet."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path
from tempfile import mkdtemp

from cells.channels.interface import StatementFile, StatementMissing
from cells.reconciliation.model import Run
from cells.reconciliation.settings import ChannelPolicy
from cells.statements.fetch import fetch_statement, fill
from cells.statements.intake import Believed, Shelf


class Statements:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._shelf = Shelf(root)

    async def get(self, policy: ChannelPolicy, day: date, run: Run) -> Believed:
        """Raises StatementMissing, StatementFault (it is in quarantine then).

        A run that was matched before and is opened again asks the bank anew: what was believed is
        taken back and kept.
        """
        await asyncio.to_thread(self._root.mkdir, parents=True, exist_ok=True)
        async with self._one_at_a_time(policy.name, day):
            return await self._get(policy, day, run)

    async def _get(self, policy: ChannelPolicy, day: date, run: Run) -> Believed:
        found = await asyncio.to_thread(self._shelf.find, policy.name, day)
        if found is not None and found.sha256 == run.statement_sha256:
            why = f"the run was opened again by {run.requested_by}"
            await asyncio.to_thread(self._shelf.withdraw, policy.name, day, why)
            found = None
        if found is not None:
            return found
        folder = Path(mkdtemp(prefix=".fetching-", dir=self._root))
        try:
            statement = await _fetch(policy, day, folder)
            layout = policy.layout if policy.statement is None else policy.statement.layout
            assert layout is not None, "_fetch has looked"
            return await asyncio.to_thread(self._shelf.take_in, statement, layout)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    @contextlib.asynccontextmanager
    async def _one_at_a_time(self, channel: str, day: date) -> AsyncIterator[None]:
        """Of the processes on this disk; the kernel frees it when one dies."""
        handle = os.open(self._root / f".{channel}-{day}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        with os.fdopen(handle, "rb") as file:
            await asyncio.to_thread(fcntl.flock, file.fileno(), fcntl.LOCK_EX)
            yield


async def _fetch(policy: ChannelPolicy, day: date, folder: Path) -> StatementFile:
    if policy.statement is not None:
        return await fetch_statement(policy.statement, policy.name, day, folder)
    if policy.layout is None or not policy.inbox:
        raise StatementMissing(f"{policy.name} says neither where statements come from nor how")
    path = Path(fill(policy.inbox, policy.name, day))
    if not await asyncio.to_thread(path.is_file):
        raise StatementMissing(f"{path} is not there")
    return StatementFile(policy.name, day, policy.layout.format, path)
