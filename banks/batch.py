"""A bank that takes payouts in files and answers in files (banks.batch_files, banks.mailbox)."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from banks.bank import Bank, Plan, pause
from banks.batch_files import (
    Batch,
    FixedPlaces,
    ResultLine,
    Unreadable,
    read_fixed,
    read_pain,
    write_fixed,
    write_pain,
)
from banks.behaviour import DOCUMENT, Action, Closed
from banks.mailbox import (
    HttpsMailbox,
    HttpsOptions,
    SftpOptions,
    https_server,
    lay_down,
    sftp_server,
)
from banks.model import Asked, Operation, Said, Status, Why

_REASONS = {
    Why.TOLD: "MS03",
    Why.MAINTENANCE: "TM01",
    Why.UNSUPPORTED: "AG03",
    Why.UNKNOWN_ORIGINAL: "NOOR",
    Why.OVER_AMOUNT: "AM02",
    Why.DUPLICATE_DIFFERS: "AM05",
    Why.CLOSED: "RR04",
    Why.NO_FUNDS: "AM04",
}
_SENDER = re.compile("[^A-Za-z0-9]")
# Nothing of the request has an answer.
_MUTE = frozenset({Action.LOSE, Action.SILENT, Action.HANG_UP, Action.DISCONNECT})


@DOCUMENT
@dataclass(frozen=True, slots=True)
class BatchOptions:
    https: HttpsOptions | None = None
    sftp: SftpOptions | None = None
    # None: pain.001.
    fixed: FixedPlaces | None = None
    # Where files lie; empty: a temporary directory.
    root: str = ""
    # How often it looks for new files.
    poll_s: Annotated[float, Field(gt=0, le=60)] = 0.05


class BatchBank:
    def __init__(self, bank: Bank, options: BatchOptions, root: Path) -> None:
        self._bank = bank
        self._options = options
        self._root = root
        self._taken: set[str] = set()
        self._numbers = count(1)

    def closed(self) -> bool:
        return self._bank.closed in {Closed.SILENT, Closed.HANG_UP}

    async def run(self) -> None:
        inbox = self._root / "inbox"
        async with asyncio.TaskGroup() as group:
            while True:
                for path in await asyncio.to_thread(lambda: sorted(inbox.glob("[!.]*"))):
                    if path.name not in self._taken:
                        self._taken.add(path.name)
                        data = await asyncio.to_thread(path.read_bytes)
                        group.create_task(self._take(path.stem, data))
                await asyncio.sleep(self._options.poll_s)

    async def _take(self, name: str, data: bytes) -> None:
        try:
            batch = self._read(data)
        except Unreadable:
            self._bank.oddities["file"] += 1
            await self._answer(name, "RJCT", [])
            return
        if batch.message_id != name:
            self._bank.oddities["message id"] += 1
        plans = [(asked, self._bank.hear(asked, "file")) for asked in batch.asked]
        async with asyncio.TaskGroup() as group:
            for wait_s in sorted({plan.wait_s for _, plan in plans}):
                part = [(asked, plan) for asked, plan in plans if plan.wait_s == wait_s]
                group.create_task(self._settle(batch, part, wait_s))

    async def _settle(
        self, batch: Batch, part: Sequence[tuple[Asked, Plan]], wait_s: float
    ) -> None:
        await pause(wait_s)
        lines, later = [], []
        for asked, plan in part:
            # DELAY has its effect now; PEND has it after it has answered.
            said = plan.later() if plan.later and plan.action is Action.DELAY else plan.said
            if plan.action in {Action.PEND, Action.DUPLICATE}:
                later.append((asked, plan))
            if plan.action not in _MUTE and said is not None:
                lines.append(_line(asked, said, plan.action))
        if lines:
            garbled = any(plan.action in {Action.GARBLE, Action.FORGE} for _, plan in part)
            await self._answer(batch.message_id, "", lines, garbled=garbled)
        async with asyncio.TaskGroup() as group:
            for asked, plan in later:
                group.create_task(self._answer_later(batch.message_id, asked, plan))

    async def _answer_later(self, message_id: str, asked: Asked, plan: Plan) -> None:
        await pause(plan.again_s or 0.0)
        said = plan.later() if plan.later else plan.said
        if said is not None:
            await self._answer(message_id, "", [_line(asked, said, Action.APPROVE)])

    async def _answer(
        self, message_id: str, status: str, lines: Sequence[ResultLine], *, garbled: bool = False
    ) -> None:
        fixed = self._options.fixed
        if fixed is None:
            data = write_pain(message_id, status, lines)
        else:
            data = write_fixed(message_id, status, lines, fixed)
        if garbled:
            data = data[: len(data) // 2] + b"\x00<"
        sender = _SENDER.sub("", message_id.partition("-")[0]) or "nobody"
        name = f"{message_id}.{next(self._numbers):06d}.{'xml' if fixed is None else 'txt'}"
        await asyncio.to_thread(lay_down, self._root / "results" / sender / name, data)

    def _read(self, data: bytes) -> Batch:
        fixed = self._options.fixed
        return read_pain(data) if fixed is None else read_fixed(data, fixed)


def _line(asked: Asked, said: Said, action: Action) -> ResultLine:
    reference = asked.original if asked.operation is Operation.QUERY else asked.reference
    line = ResultLine(
        reference,
        status="",
        bank_reference=said.bank_reference,
        amount=said.amount,
        currency=said.currency if said.status is not Status.ABSENT else "",
        clearing_date=said.clearing_date,
    )
    if action is Action.LIE:
        line = replace(line, amount=line.amount + 1)
    match said.status:
        case Status.APPROVED:
            return replace(line, status="ACSC")
        case Status.PENDING:
            return replace(line, status="PDNG")
        case Status.REVERSED:
            return replace(line, status="CANC")
        case _:
            return replace(line, status="RJCT", reason=said.code or _REASONS.get(said.why, "MS03"))


_OPTIONS = TypeAdapter(BatchOptions)


@asynccontextmanager
async def batch(bank: Bank, options: Mapping[str, object]) -> AsyncIterator[Mapping[str, int]]:
    """The tongue (banks.kinds)."""
    read = _OPTIONS.validate_python(dict(options))
    async with AsyncExitStack() as stack:
        root = Path(read.root or stack.enter_context(tempfile.TemporaryDirectory(prefix="bank-")))
        for folder in (root / "inbox", root / "results"):
            await asyncio.to_thread(folder.mkdir, exist_ok=True)
        house = BatchBank(bank, read, root)
        ports = {}
        if read.https is not None:
            box = HttpsMailbox(root, read.https, house.closed)
            ports["https"] = await stack.enter_async_context(
                https_server(box.application(), read.https)
            )
        if read.sftp is not None:
            ports["sftp"] = await stack.enter_async_context(
                sftp_server(root, read.sftp, house.closed)
            )
        running = asyncio.get_running_loop().create_task(house.run())
        stack.callback(running.cancel)
        yield ports
