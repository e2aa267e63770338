"""Looks at what cells tell Prometheus, while somebody watches and for all who watch together."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from control.cellctl.console.flow import (
    LONG_WINDOW_S,
    Look,
    Series,
    answers_document,
    flow_document,
    wanted,
)
from control.cellctl.session import Session

# Between two looks. Rates are of ten seconds, so a second more or less shows nothing new.
_LOOK_S = 2.0
_TIMEOUT = aiohttp.ClientTimeout(total=1.0)
_LOOKS_MAX = int(LONG_WINDOW_S / _LOOK_S) + 2


class Meter:
    """`addresses`: cell → host:port of its page of metrics, asked for at each look."""

    def __init__(self, addresses: Callable[[], Mapping[str, str]]) -> None:
        self._addresses = addresses
        self._looks: deque[Look] = deque(maxlen=_LOOKS_MAX)
        self._lock = asyncio.Lock()

    async def flow(self) -> dict[str, Any]:
        return flow_document(await self._look(), sorted(self._addresses()))

    async def answers(self) -> dict[str, dict[str, Any]]:
        return answers_document(await self._look())

    async def _look(self) -> Sequence[Look]:
        async with self._lock:
            now = time.monotonic()
            if not self._looks or now - self._looks[-1].at_s >= _LOOK_S:
                addresses = self._addresses()
                pages = await asyncio.gather(*map(_counters, addresses.values()))
                found = {
                    cell: page
                    for cell, page in zip(addresses, pages, strict=True)
                    if page is not None
                }
                self._looks.append(Look(now, found))
            while now - self._looks[0].at_s > LONG_WINDOW_S:
                self._looks.popleft()
            return list(self._looks)


def meter_of(data: Path) -> Meter:
    """Of a mesh, by its directory: where it is started anew, ports may be others."""

    def addresses() -> Mapping[str, str]:
        return Session.open(data).places.probes

    return Meter(addresses)


async def _counters(address: str) -> Mapping[Series, float] | None:
    """None when the cell does not answer."""
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as client,
            client.get(f"http://{address}/metrics") as answer,
        ):
            if answer.status != 200:
                return None
            page = await answer.text()
    except (aiohttp.ClientError, TimeoutError, OSError):
        return None
    return await asyncio.to_thread(read_page, page)


def read_page(page: str) -> Mapping[Series, float]:
    return {
        Series(sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(wanted(page))
        for sample in family.samples
    }
