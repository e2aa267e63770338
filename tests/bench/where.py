"""`make profile`: where each microsecond of a payment goes → the table in docs/performance.md.

One cell of one process under unary payments. Processor time is the kernel's own count, by process
and thread (/proc, Linux only); within the cell's main thread it is shared out by py-spy's samples.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import asyncpg

from control.mesh import launcher
from control.mesh.options import MeshOptions
from control.mesh.state import MeshState
from control.mesh.state import load as load_state
from router.client import CallPolicy
from tests.bench.figures import ROOT, Figures
from tests.bench.mesh_runs import QUICK, MeshRuns

_PAGE = ROOT / "docs" / "performance.md"
_BEGIN, _END = "<!-- make profile -->", "<!-- end of profile -->"
_PAYMENTS = 16_000
_TICKS_A_S = 100
# The first frame from the leaf on that says whose work it is.
_PARTS = (
    ("SQL driver: arguments and rows (asyncpg)", r"\(asyncpg/|__instancecheck__"),
    ("connection pool (SQLAlchemy)", r"\(sqlalchemy/"),
    ("rules and book", r"\(cells/\w+/(rules|book)\.py|\(router/ids\.py"),
    ("ledger: load, write, commit", r"\(cells/(ledger/(store|records)|fencing/store|database)\.py"),
    ("lane: queue, gathering, answers", r"\(cells/ledger/worker\.py"),
    ("guard", r"\(router/guard\.py"),
    ("service: protobuf, checks, IDs", r"\(cells/\w+/service\.py|\(cells/(requests|answers)\.py"),
)
_GRPC = "gRPC and the event loop (native)"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="cellpay-profile-") as folder:
        data = Path(folder)
        options = MeshOptions(
            only=("base", "schema", "controller", "cells", "edge"),
            cell_overrides={"settlement": {"interval_s": 3600.0}},
        )
        try:
            with launcher.running(data, 3, options):
                rows = asyncio.run(_profile(data))
        finally:
            launcher.remove(data)
    lines = ["| part | µs of processor a payment |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    text = "\n".join(lines)
    print(text)
    page = _PAGE.read_text()
    before, after = page.split(_BEGIN)[0], page.split(_END)[1]
    _PAGE.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}")


async def _profile(data: Path) -> list[tuple[str, str]]:
    runs = MeshRuns(data, Figures(), QUICK)
    state = load_state(data)
    assert state is not None
    cell = state.processes["cell-a"].identity.pid
    async with runs.session.mesh(CallPolicy(timeout_s=60)) as mesh:
        users = await runs.people(mesh)
    addresses = [state.address("cell-a")]
    orders = runs.orders(addresses, users["a"], _PAYMENTS)
    connection = await _connect(state)
    samples = data / "samples.txt"
    spy = subprocess.Popen(  # noqa: ASYNC220
        [_spy(), "record", "-r", "200", "-d", "600", "-f", "raw", "-o", str(samples), "-p",
         str(cell)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    await asyncio.sleep(1)
    before = await _counts(connection, cell)
    await asyncio.to_thread(runs.load, "pay", addresses, orders)
    after = await _counts(connection, cell)
    spy.send_signal(2)
    spy.wait()
    await connection.close()
    return _rows({key: after[key] - before[key] for key in after}, samples)


def _rows(spent: dict[str, float], samples: Path) -> list[tuple[str, str]]:
    def each(seconds: float) -> str:
        return f"{seconds / _PAYMENTS * 1e6:.0f}"

    shares = _shares(samples)
    total = sum(shares.values())
    rows = [
        (f"cell: {name}", each(spent["main thread"] * count / total))
        for name, count in shares.most_common()
    ]
    rows.append(("cell: gRPC's other threads", each(spent["cell"] - spent["main thread"])))
    rows.append(("PostgreSQL: the lane's backend", each(spent["backend"])))
    rows.append(("PostgreSQL: everything else", each(spent["postgres"] - spent["backend"])))
    rows.append(("**sum**", f"**{each(spent['cell'] + spent['postgres'])}**"))
    rows.append(("WAL, bytes a payment", f"{spent['wal'] / _PAYMENTS:.0f}"))
    rows.append(("payments a group", f"{_PAYMENTS / spent['commits']:.0f}"))
    return rows


def _shares(samples: Path) -> Counter[str]:
    shares: Counter[str] = Counter()
    for line in samples.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        if "(cells/serve.py" not in stack:
            continue
        shares[_part_of(stack.split(";"))] += int(count)
    return shares


def _part_of(frames: list[str]) -> str:
    for frame in reversed(frames):
        for name, pattern in _PARTS:
            if re.search(pattern, frame):
                return name
    return _GRPC


async def _connect(state: MeshState) -> asyncpg.Connection:
    host, port = state.address("postgres").split(":")
    return await asyncpg.connect(host=host, port=int(port), user="cellpay", database="cellpay")


async def _counts(connection: asyncpg.Connection, cell: int) -> dict[str, float]:
    # Statistics of other sessions arrive within a second.
    await asyncio.sleep(1.2)
    lane = "application_name = 'cellpay-a-lanes'"
    backend = await connection.fetchval(f"SELECT pid FROM pg_stat_activity WHERE {lane}")
    postmaster = _parent(backend)
    family = [pid for pid in _pids() if _parent(pid) == postmaster]
    return {
        "cell": _seconds(f"/proc/{cell}/stat"),
        "main thread": _seconds(f"/proc/{cell}/task/{cell}/stat"),
        "backend": _seconds(f"/proc/{backend}/stat"),
        "postgres": sum(_seconds(f"/proc/{pid}/stat") for pid in family),
        "wal": float(await connection.fetchval("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")),
        "commits": await connection.fetchval(
            "SELECT xact_commit FROM pg_stat_database WHERE datname = 'cellpay'"
        ),
    }


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _fields(path: str) -> list[str]:
    try:
        return Path(path).read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["?", *["0"] * 20]


def _parent(pid: int) -> int:
    return int(_fields(f"/proc/{pid}/stat")[1])


def _seconds(path: str) -> float:
    fields = _fields(path)
    return (int(fields[11]) + int(fields[12])) / _TICKS_A_S


def _spy() -> str:
    found = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if found is None:
        raise SystemExit("py-spy is missing: make install")
    return found


if __name__ == "__main__":
    main()
