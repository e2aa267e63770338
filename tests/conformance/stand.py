"""An adapter that is connected to its simulated bank, and what tests say to both."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cells.channels.interface import Channel
from cells.channels.model import Answer, Heard, Operation, Request
from cells.channels.registry import open_channel
from router.ids import Kind, mint
from tests.conformance.cases import ACCOUNT, CARD, Case
from tests.conformance.process import BankProcess, bank_process

PATIENT_S = 20.0
# For answers that are not to come.
SHORT_S = 0.2


@dataclass(slots=True)
class Stand:
    case: Case
    bank: BankProcess
    channel: Channel
    heard: list[Heard] = field(default_factory=list)

    async def perform(self, request: Request, timeout_s: float = PATIENT_S) -> Answer:
        return await self.channel.perform(request, timeout_s)

    async def query(self, original: Request) -> Answer:
        return await self.perform(query_of(original))

    async def void(self, original: Request, timeout_s: float = PATIENT_S) -> Answer:
        return await self.perform(void_of(original), timeout_s)

    async def until_heard(self, reference: str) -> Heard:
        async with asyncio.timeout(PATIENT_S):
            while True:
                for heard in self.heard:
                    if heard.reference == reference:
                        return heard
                await asyncio.sleep(0.02)

    async def held(self, request: Request) -> Any:
        return await self.bank.held(request.reference)


def new_reference() -> str:
    now_ms = time.time_ns() // 1_000_000
    slot = secrets.randbelow(1024)
    return mint(Kind.ATTEMPT, slot, unix_ms=now_ms, random_80=secrets.randbits(80))


def purchase(amount: int = 1_250, *, capture: bool = True) -> Request:
    return Request(
        Operation.AUTHORISE,
        new_reference(),
        amount,
        "CNY",
        CARD,
        capture=capture,
        merchant="Bäckerei 北京",
    )


def payout(amount: int = 90_000) -> Request:
    return Request(Operation.PAYOUT, new_reference(), amount, "CNY", ACCOUNT)


def query_of(original: Request) -> Request:
    return Request(
        Operation.QUERY,
        new_reference(),
        0,
        original.currency,
        original=original.reference,
        original_amount=original.amount,
    )


def void_of(original: Request) -> Request:
    return Request(
        Operation.VOID,
        new_reference(),
        original.amount,
        original.currency,
        original.instrument,
        original=original.reference,
        original_amount=original.amount,
    )


def part_of(original: Request, operation: Operation, amount: int) -> Request:
    return Request(
        operation,
        new_reference(),
        amount,
        original.currency,
        original=original.reference,
        original_amount=original.amount,
    )


@asynccontextmanager
async def standing(case: Case, folder: Path) -> AsyncIterator[Stand]:
    heard: list[Heard] = []
    async with bank_process(case.bank(folder), folder) as bank:
        settings = case.channel(bank.ports, folder)
        channel = open_channel(settings, heard.append, case.statements)
        running = asyncio.get_running_loop().create_task(channel.run())
        try:
            yield Stand(case, bank, channel, heard)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
