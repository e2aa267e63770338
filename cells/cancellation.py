"""Cancellation that libraries swallow: nats-py reports a time-out instead, redis-py a success."""

from __future__ import annotations

import asyncio


def go_on_unless_cancelled() -> None:
    """For loops around such libraries: raises CancelledError when it was asked for before."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
