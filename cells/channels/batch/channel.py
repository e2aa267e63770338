"""The Channel of files. A payout is PENDING from its file's delivery; its result comes later.

`perform` answers when the file has been delivered, or PENDING when its window ends later than the
caller waits. Both are true whatever dies: a query asks the bank, not this process's memory, except
for what still waits here and will surely go.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

import structlog

from cells.channels.batch import rules
from cells.channels.batch.fixed import FixedBatchLayout, FixedFormat
from cells.channels.batch.mailbox import Mailbox, Undelivered, open_mailbox
from cells.channels.batch.model import (
    BadFile,
    Debtor,
    Format,
    Item,
    Result,
    Results,
    Unwritable,
)
from cells.channels.batch.options import BatchOptions, options_of
from cells.channels.batch.pain import PainFormat
from cells.channels.interface import (
    Listener,
    StatementFile,
    StatementMissing,
    StatementSource,
)
from cells.channels.model import (
    Answer,
    AnswerReason,
    BankAccount,
    ChannelSettings,
    Heard,
    Operation,
    Request,
    Verdict,
)
from router.waiting import heard

log = structlog.get_logger(__name__)

_OPERATIONS = frozenset({Operation.PAYOUT, Operation.QUERY})


def open_channel(
    settings: ChannelSettings, listener: Listener, statements: StatementSource | None
) -> BatchChannel:
    """Raises ValueError (pydantic's too) for options that are none, OSError for a missing key."""
    options = options_of(settings.options)
    mailbox = open_mailbox(options.mailbox, options.sender, options.transfer_timeout_s)
    return BatchChannel(settings.name, options, mailbox, listener, statements)


@dataclass(slots=True)
class _Waiting:
    """A payout from when it is asked for until its file is delivered."""

    item: Item
    delivered: asyncio.Future[Answer]
    message_id: str = ""


@dataclass(slots=True)
class _File:
    """A file on its way."""

    name: str
    data: bytes
    payouts: list[_Waiting] = field(default_factory=list)


class BatchChannel:
    def __init__(
        self,
        name: str,
        options: BatchOptions,
        mailbox: Mailbox,
        listener: Listener,
        statements: StatementSource | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._name = name
        self._options = options
        self._mailbox = mailbox
        self._listener = listener
        self._statements = statements
        self._now = now
        self._format = _format_of(options)
        # By reference: what waits for a file or for its delivery.
        self._gathered: dict[str, _Waiting] = {}
        self._asked: dict[str, list[asyncio.Future[Answer]]] = {}
        self._to_ask: dict[str, None] = {}
        self._full = asyncio.Event()
        # What was sent, to compare with results; and which file it was in.
        self._sent: OrderedDict[str, Item] = OrderedDict()
        self._files: OrderedDict[str, list[str]] = OrderedDict()

    @property
    def name(self) -> str:
        return self._name

    @property
    def operations(self) -> frozenset[Operation]:
        return _OPERATIONS

    async def fetch_statement(self, day: date, into: Path) -> StatementFile:
        if self._statements is None:
            raise StatementMissing(f"{self._name} has no source of statements")
        return await self._statements(day, into)

    # ------------------------------------------------------------------ requests

    async def perform(self, request: Request, timeout_s: float) -> Answer:
        match request.operation:
            case Operation.PAYOUT:
                return await self._pay(request, timeout_s)
            case Operation.QUERY:
                return await self._query(request, timeout_s)
            case _:
                return Answer(Verdict.FAILED, AnswerReason.UNSUPPORTED)

    async def _pay(self, request: Request, timeout_s: float) -> Answer:
        account = request.instrument
        if not isinstance(account, BankAccount):
            return Answer(Verdict.FAILED, AnswerReason.UNSUPPORTED, message="it pays to accounts")
        item = Item(request.reference, request.amount, request.currency, account)
        waiting = self._gathered.get(item.reference)
        if waiting is None:
            if len(self._gathered) >= self._options.gathered_max:
                return Answer(Verdict.FAILED, AnswerReason.NOT_SENT, message="too many wait")
            try:
                self._format.check(item)
            except Unwritable as error:
                return Answer(Verdict.FAILED, AnswerReason.NOT_SENT, message=str(error))
            waiting = _Waiting(item, asyncio.get_running_loop().create_future())
            self._gathered[item.reference] = waiting
            if len(self._gathered) >= self._options.items_max:
                self._full.set()
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(waiting.delivered)
        except TimeoutError:
            # It waits here, and a query says so.
            return Answer(Verdict.PENDING, message="gathered")

    async def _query(self, request: Request, timeout_s: float) -> Answer:
        if request.original in self._gathered:
            return Answer(Verdict.PENDING, message="gathered")
        heard: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(request.original, []).append(heard)
        self._to_ask[request.original] = None
        try:
            async with asyncio.timeout(timeout_s):
                return await heard
        except TimeoutError:
            # The result, when it comes, goes to the listener.
            return Answer(Verdict.UNKNOWN, AnswerReason.TIMED_OUT)
        finally:
            waiting = self._asked.get(request.original, [])
            if heard in waiting:
                waiting.remove(heard)
            if not waiting:
                self._asked.pop(request.original, None)

    # ------------------------------------------------------------------ files

    async def run(self) -> None:
        """Delivers a file a window, and fetches results, until it is cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._deliver_windows(group))
                group.create_task(self._fetch_results())
        finally:
            for waiting in self._gathered.values():
                # In no file yet: it will surely not go.
                if not waiting.message_id and not waiting.delivered.done():
                    waiting.delivered.set_result(
                        Answer(Verdict.FAILED, AnswerReason.NOT_SENT, message="the channel stops")
                    )

    async def _deliver_windows(self, group: asyncio.TaskGroup) -> None:
        while True:
            await heard(self._full, self._options.window_s)
            self._full.clear()
            for file in self._close_window():
                # The next window does not wait for a bank that is away.
                group.create_task(self._deliver(file))

    def _close_window(self) -> list[_File]:
        """What was gathered, in files whose bytes never change again."""
        options = self._options
        ready = [waiting for waiting in self._gathered.values() if not waiting.message_id]
        files = []
        for first in range(0, len(ready), options.items_max):
            part = ready[first : first + options.items_max]
            message_id = self._message_id()
            for waiting in part:
                waiting.message_id = message_id
            items = [waiting.item for waiting in part]
            self._remember(message_id, items)
            data = self._format.write_payouts(message_id, items, self._now())
            files.append(_File(f"{message_id}.{self._format.suffix}", data, part))
        asking = list(self._to_ask)
        self._to_ask.clear()
        for first in range(0, len(asking), options.items_max):
            message_id = self._message_id()
            references = asking[first : first + options.items_max]
            data = self._format.write_queries(message_id, references, self._now())
            files.append(_File(f"{message_id}.{self._format.suffix}", data))
        return files

    async def _deliver(self, file: _File) -> None:
        tries = 0
        while not await self._delivered(file, tries):
            await asyncio.sleep(self._pause_s(tries))
            tries += 1
        for waiting in file.payouts:
            self._gathered.pop(waiting.item.reference, None)
            if not waiting.delivered.done():
                waiting.delivered.set_result(
                    Answer(Verdict.PENDING, bank_reference=waiting.message_id)
                )

    async def _delivered(self, file: _File, tries: int) -> bool:
        try:
            await self._mailbox.deliver(file.name, file.data)
        except Undelivered as error:
            log.warning(
                "a batch is not delivered yet", channel=self._name, file=file.name,
                items=len(file.payouts), tries=tries + 1, why=str(error),
            )  # fmt: skip
            return False
        return True

    def _message_id(self) -> str:
        """At most 35 characters, the sender first: the bank answers to whom it names."""
        moment = self._now().strftime("%Y%m%d%H%M%S")
        return f"{self._options.sender}-{moment}-{secrets.token_hex(3)}"

    def _remember(self, message_id: str, items: Sequence[Item]) -> None:
        self._files[message_id] = [item.reference for item in items]
        for item in items:
            self._sent[item.reference] = item
        while len(self._sent) > self._options.remembered_max:
            self._sent.popitem(last=False)
        while len(self._files) > self._options.remembered_max:
            self._files.popitem(last=False)

    # ------------------------------------------------------------------ results

    async def _fetch_results(self) -> None:
        failures = 0
        while True:
            try:
                for name in await self._mailbox.results():
                    await self._take(name)
                failures = 0
                await asyncio.sleep(self._options.poll_s)
            except Undelivered as error:
                log.warning("results cannot be fetched", channel=self._name, why=str(error))
                await asyncio.sleep(self._pause_s(failures))
                failures += 1

    async def _take(self, name: str) -> None:
        data = await self._mailbox.read(name)
        try:
            results = await asyncio.to_thread(self._format.read_results, data)
        except BadFile as error:
            # Removed, or it would be read for ever; its payouts stay pending, and are asked about.
            log.error("a result file is none", channel=self._name, file=name, why=str(error))
        else:
            self._hear(results)
        await self._mailbox.remove(name)

    def _hear(self, results: Results) -> None:
        for result in results.items:
            self._tell(result.reference, result)
        if results.status == "RJCT" and not results.items:
            # The whole file, none of which has an effect.
            for reference in self._files.get(results.message_id, ()):
                self._tell(reference, Result(reference, results.status, results.reason or "FF01"))

    def _tell(self, reference: str, result: Result) -> None:
        answer = rules.answer_of(result, self._sent.get(reference))
        if answer.verdict.is_final:
            self._sent.pop(reference, None)
        asking = self._asked.pop(reference, [])
        for asker in asking:
            if not asker.done():
                asker.set_result(answer)
        if not asking:
            self._listener(Heard(self._name, reference, answer))

    def _pause_s(self, failures: int) -> float:
        options = self._options
        delay = min(options.backoff_last_s, options.backoff_first_s * 2.0 ** min(failures, 16))
        return random.uniform(0.5, 1.0) * delay


def _format_of(options: BatchOptions) -> Format:
    if isinstance(options.layout, FixedBatchLayout):
        return FixedFormat(options.layout)
    debtor = options.debtor
    return PainFormat(Debtor(debtor.name, debtor.account, debtor.bank))
