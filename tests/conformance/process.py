"""A simulated bank as a process of its own, and its control API in a test's words."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parents[2]


class BankProcess:
    """What a test asks of a bank beside its tongue."""

    def __init__(self, ports: Mapping[str, int], session: aiohttp.ClientSession) -> None:
        self.ports = ports
        self._session = session

    async def behave(self, *rules: Mapping[str, Any], **knobs: Any) -> None:
        await self._send("PUT", "/behaviour", {"rules": rules, **knobs})

    async def order(self, **orders: Any) -> None:
        """Errors and fees of its statements."""
        await self._send("PUT", "/statement-orders", orders)

    async def ask(self, **asked: Any) -> Any:
        return await self._send("POST", "/ask", asked)

    async def do(self, command: str) -> None:
        await self._send("POST", f"/do/{command}", {})

    async def forget(self) -> None:
        """Behaves, and holds nothing."""
        day = await self.today()
        await self._send("POST", "/forget", {})
        await self.behave(day=day)

    async def network(self) -> Any:
        return await self._get("/network")

    async def held(self, reference: str) -> Any:
        """What it holds for a reference; None: nothing."""
        return await self._get(f"/holdings/{reference}")

    async def holdings(self) -> Any:
        return await self._get("/holdings")

    async def totals(self) -> Any:
        return await self._get("/totals")

    async def arrivals(self, reference: str = "") -> Any:
        return await self._get(f"/arrivals?reference={reference}" if reference else "/arrivals")

    async def oddities(self) -> Any:
        return await self._get("/oddities")

    async def statement(self, day: str) -> Any:
        return await self._get(f"/statement/{day}")

    async def today(self) -> str:
        about = await self._get("/")
        return str(about["today"])

    async def _get(self, path: str) -> Any:
        async with self._session.get(self._url(path)) as response:
            if response.status == 404:
                return None
            response.raise_for_status()
            return await response.json()

    async def _send(self, method: str, path: str, body: Mapping[str, Any]) -> Any:
        async with self._session.request(method, self._url(path), json=body) as response:
            if response.status == 422:
                raise ValueError(await response.text())
            response.raise_for_status()
            return await response.json()

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.ports['control']}{path}"


@contextmanager
def started(settings: Mapping[str, Any], folder: Path) -> Iterator[Mapping[str, int]]:
    """The process; its ports."""
    path = folder / f"{settings['name']}.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "banks", str(path)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["ports"]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@asynccontextmanager
async def bank_process(settings: Mapping[str, Any], folder: Path) -> AsyncIterator[BankProcess]:
    with started(settings, folder) as ports:
        async with aiohttp.ClientSession() as session:
            yield BankProcess(ports, session)
