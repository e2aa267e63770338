"""Work with banks that goes on when its caller has gone, and is bounded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, NamedTuple, TypeVar

import grpc
import structlog

from router.errors import Refusal
from router.tracing.current import current, within
from router.tracing.model import Scope

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Of the time that a caller still waits.
_SHARE = 0.9


class _Work(NamedTuple):
    coroutine: Coroutine[Any, Any, Any]
    future: asyncio.Future[Any]
    # Where its caller is in a trace; it goes on there.
    scope: Scope | None


class Drives:
    def __init__(self, in_flight_max: int, wait_max_s: float) -> None:
        self._max = in_flight_max
        self._wait_max_s = wait_max_s
        self._waiting: asyncio.Queue[_Work] = asyncio.Queue()
        self._in_flight = 0

    def check(self) -> None:
        """Raises Refusal when there is no room; to be asked before anything is written down."""
        if self._in_flight >= self._max:
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "BANKS_BUSY",
                "too many requests wait for banks; nothing was executed",
                retry_after_ms=500,
            )

    def start(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._in_flight += 1
        self._waiting.put_nowait(_Work(coroutine, future, current.get()))
        return future

    async def result(self, future: asyncio.Future[T], timeout_s: float | None, before: T) -> T:
        """What it came to; what was there before, when that takes longer or breaks off.

        `timeout_s`: how long the caller waits; part of it is for the way back.
        """
        wait_s = self._wait_max_s
        if timeout_s is not None:
            wait_s = min(wait_s, max(0.0, timeout_s * _SHARE))
        done, _ = await asyncio.wait([future], timeout=wait_s)
        return future.result() if done and future.exception() is None else before

    async def run(self) -> None:
        """Works for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._work(await self._waiting.get()))

    async def _work(self, work: _Work) -> None:
        try:
            with within(work.scope):
                result = await work.coroutine
        except Exception as error:
            # What it was at is written down; recovery takes it on.
            log.warning("a drive broke off", error=f"{type(error).__name__}: {error}"[:200])
            with contextlib.suppress(asyncio.InvalidStateError):
                work.future.set_exception(error)
                # Nobody may be waiting for it any more.
                work.future.exception()
        else:
            if not work.future.done():
                work.future.set_result(result)
        finally:
            self._in_flight -= 1
