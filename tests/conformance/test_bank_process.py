"""The simulator's process and its control API, whatever the tongue."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conformance.process import ROOT, bank_process

PURCHASE = {"operation": "authorise", "amount": 500, "currency": "CNY", "instrument": "62000001"}


async def test_a_bank_is_set_and_questioned_while_it_runs(tmp_path: Path) -> None:
    settings = {"name": "mute", "kind": "mute", "behaviour": {"day": "2026-11-24"}}
    async with bank_process(settings, tmp_path) as bank:
        said = await bank.ask(reference="a", **PURCHASE)
        assert said["status"] == "approved"
        assert await bank.ask(reference="a", **PURCHASE) == said
        await bank.ask(reference="b", **PURCHASE)
        held = await bank.held("a")
        # Never the whole number of a card.
        assert (held["taken"], held["instrument"]) == (500, "0001")
        assert await bank.held("c") is None
        assert (await bank.totals())["taken"] == 1000
        await bank.order(errors=[{"error": "amount", "reference": "b", "by": 7}])
        statement = await bank.statement("2026-11-24")
        assert [row["amount"] for row in statement["rows"]] == [500, 507]
        assert [error["reference"] for error in statement["errors"]] == ["b"]
        with pytest.raises(ValueError, match="propability"):
            await bank.behave({"action": "silent", "propability": 1})


_PARENT = """
import subprocess, sys
process = subprocess.Popen(
    [sys.executable, "-m", "banks", sys.argv[1]], stdout=subprocess.PIPE, stdin=subprocess.PIPE
)
print(process.pid, process.stdout.readline().decode(), flush=True)
sys.stdin.readline()
"""


def test_a_bank_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    path = tmp_path / "mute.json"
    path.write_text(json.dumps({"name": "mute", "kind": "mute"}), encoding="utf-8")
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    pid = parent.stdout.readline().split()[0]
    assert Path(f"/proc/{pid}/status").exists()
    parent.kill()
    parent.wait()
    # The test's time-out is the bound.
    while _runs(pid):
        time.sleep(0.05)


def _runs(pid: str) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    # A zombie whom nobody collects has ended too.
    return status.rsplit(")", 1)[1].split()[0] != "Z"
