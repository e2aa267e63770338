"""A bank's process: `python -m banks SETTINGS.json`.

Listens on 127.0.0.1, tells its ports as one line of JSON on its standard output, and ends with the
process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop
from aiohttp import web

from banks.bank import Bank
from banks.control import Control
from banks.kinds import KINDS
from banks.settings import BankSettings, read
from banks.statements import StatementOptions, serve_statements

_PARENT_POLL_S = 0.2


@asynccontextmanager
async def open_bank(settings: BankSettings) -> AsyncIterator[tuple[Bank, Mapping[str, int]]]:
    """A bank within this process; its ports, `control` among them."""
    bank = Bank(settings.name, settings.behaviour, settings.cut_off, settings.zone)
    bank.orders = settings.statement
    async with (
        KINDS[settings.kind](bank, settings.options) as tongue,
        serve_statements(bank, settings.statements or StatementOptions()) as files,
    ):
        ports = {**tongue, **files}
        control = Control(bank, settings.kind, ports)
        runner = web.AppRunner(control.application(), access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", settings.control_port)
            await site.start()
            yield bank, {**ports, "control": runner.addresses[0][1]}
        finally:
            await runner.cleanup()


async def serve(settings: BankSettings, parent: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with open_bank(settings) as (bank, ports):
        print(json.dumps({"name": bank.name, "ports": ports}), flush=True)
        while not stop.is_set():
            if settings.ends_with_parent and os.getppid() != parent:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _PARENT_POLL_S)


def main() -> None:
    # Before anything that takes time: a parent that ends meanwhile must be missed.
    parent = os.getppid()
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m banks SETTINGS.json")
    settings = read(Path(sys.argv[1]))
    if settings.kind not in KINDS:
        raise SystemExit(f"no such kind: {settings.kind}; there are {', '.join(sorted(KINDS))}")
    uvloop.run(serve(settings, parent))
