"""Waiting for an event, and not for ever."""

from __future__ import annotations

import asyncio


async def heard(event: asyncio.Event, within_s: float) -> bool:
    """Whether it was set within this time.

    Not wait_for: on Python 3.11 that loses a cancellation that comes together with the result.
    """
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
