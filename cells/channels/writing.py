"""Writes down what banks said: a command that must get into the ledger, tried for a while."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

import grpc
from sqlalchemy import func, select

from cells.answers import resource_of
from cells.channels.attempts import ATTEMPTS, Attempt, attempts
from cells.ledger.model import Command, Outcome
from cells.reading import ReadEngine, fetch
from router.errors import Refusal

_TRIES_MAX = 6
_WAIT_BASE_S = 0.05
_AGAIN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)


class Submitting(Protocol):
    """Lanes, or what stands before them."""

    async def submit(self, command: Command, timeout_s: float | None = None) -> Outcome: ...


async def written(lanes: Submitting, command: Command) -> Any:
    """What the command made or found. Raises Refusal; then recovery asks the bank again."""
    for number in range(_TRIES_MAX):
        try:
            return resource_of(await lanes.submit(command))
        except Refusal as refusal:
            final = refusal.code not in _AGAIN or refusal.reason == "NOT_OWNER"
            if final or number == _TRIES_MAX - 1:
                raise
            await asyncio.sleep(random.uniform(0.5, 1.0) * _WAIT_BASE_S * 2**number)
    raise AssertionError("unreachable")


async def attempt_with_time(
    engine: ReadEngine, slot: int, attempt_id: str
) -> tuple[Attempt, datetime] | None:
    """An attempt, and the database's now."""
    statement = select(*(attempts.c[name] for name in ATTEMPTS.fields), func.now()).where(
        attempts.c.slot == slot, attempts.c.attempt_id == attempt_id
    )
    rows = await fetch(engine, statement)
    return (Attempt(*rows[0][:-1]), rows[0][-1]) if rows else None


async def tried_channels(engine: ReadEngine, owner_id: str) -> Sequence[str]:
    """Channels that were asked for a charge or payout before."""
    statement = select(attempts.c.channel).where(attempts.c.owner_id == owner_id)
    return [row[0] for row in await fetch(engine, statement)]
