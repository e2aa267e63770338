"""A console as tests visit it: its process, its accounts, and a client without a screen."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

from control.cellctl.console.accounts import add_account
from control.cellctl.console.app import TOKEN_HEADER
from control.cellctl.session import Session
from control.drills.model import Check, Event, Fault, Spec, plan
from control.drills.report import Deed, as_json, as_markdown, document
from control.drills.store import Journal
from tests.integration.test_control import cellctl

PASSWORD = "correct-horse-battery"
# Who may what: ann all, bob says yes or no, vera looks.
ACCOUNTS = {"ann": "operator", "bob": "bob", "vera": "vera"}
_ROLES = {"bob": ("approver", "viewer"), "vera": ("viewer",)}


def add_accounts(session: Session) -> None:
    for name, roles in _ROLES.items():
        options = [word for role in roles for word in ("--role", role)]
        done = cellctl(session, "identity", "issue", name, *options)
        assert done.returncode == 0, done.stderr
    for name, identity in ACCOUNTS.items():
        add_account(session.data, name, identity, PASSWORD)


@contextlib.contextmanager
def serving(session: Session, *options: str) -> Iterator[str]:
    """The console's address."""
    command = [
        sys.executable, "-m", "control.cellctl.main", "console", "--data", str(session.data),
        "--parent", str(os.getpid()), *options,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("console: http://127.0.0.1:"), line
        yield line.split()[1].rstrip("/")
        process.terminate()


@dataclass
class Visitor:
    """Signed in, without a screen."""

    client: aiohttp.ClientSession
    base: str
    token: str = ""

    async def sign_in(self, name: str, password: str = PASSWORD) -> int:
        form = {"name": name, "password": password}
        async with self.client.post(f"{self.base}/signin", data=form) as answer:
            status = answer.status
        if status == 200:
            self.token = (await self.get("/api/me"))[1]["token"]
        return status

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.client.get(self.base + path) as answer:
            return answer.status, await answer.json()

    async def post(self, path: str, body: Any, token: str | None = None) -> tuple[int, Any]:
        headers = {TOKEN_HEADER: self.token if token is None else token}
        async with self.client.post(self.base + path, json=body, headers=headers) as answer:
            return answer.status, await answer.json()


_MONDAY_MS = 1_795_000_000_000


def a_drill_that_ran(data: Path, name: str) -> None:
    """Its journal and its report, as its runner leaves them."""
    journal = Journal(data, name)
    spec = Spec(name, Fault.REDIS_LOSS)
    drill = plan(spec, 1, "spiffe://cellpay.local/operator/ann", "monday", time_ms=_MONDAY_MS)
    for number, (event, note) in enumerate(
        (
            (Event.STEADY, ""),
            (Event.INJECTED, "redis-a was killed"),
            (Event.OBSERVED, "redis-a refuses connections"),
            (Event.HEALED, "redis-a runs"),
            (Event.CHECKED, ""),
            (Event.COMPLETED, ""),
        )
    ):
        drill = drill.after(event, time_ms=_MONDAY_MS + 3_000 * (number + 1), note=note)
    drill = replace(
        drill,
        checks=(
            Check("before", 60, 1.0, 12, "ok", True, ""),
            Check("during", 200, 0.985, 41, "ok", True, ""),
            Check("after", 60, 1.0, 14, "ok", True, ""),
        ),
        verdict="held",
        outage_ms=140,
        budget_burnt=0.00005,
    )
    deeds = [Deed(_MONDAY_MS + 7_000, "breaker of redis opened", "rate limits by <each process>")]
    content = document(drill, {"a": 140, "b": 0}, deeds)
    journal.write_report(1, as_markdown(content), as_json(content))
    journal.save(drill)
