"""The yardstick: pgbench's TPC-B on the same PostgreSQL server, with the same durability."""

from __future__ import annotations

import subprocess
from pathlib import Path

from control.mesh.state import MeshState

SCALE = 20
CLIENTS = 16


def prepare(state: MeshState) -> None:
    createdb = str(_binary(state).with_name("createdb"))
    subprocess.run([createdb, *_connect(state), "pgbench"], check=True, capture_output=True)
    setup = [str(_binary(state)), *_connect(state), "-i", "-q", "-s", str(SCALE), "pgbench"]
    subprocess.run(setup, check=True, capture_output=True)


def run(state: MeshState, seconds: int) -> float:
    """Transactions a second, prepared statements, as many clients as saturate the machine."""
    command = [str(_binary(state)), *_connect(state), "-M", "prepared", "-c", str(CLIENTS)]
    command += ["-j", "1", "-T", str(seconds), "pgbench"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("tps = "))
    return float(line.split()[2])


def _binary(state: MeshState) -> Path:
    return Path(state.processes["postgres"].command[0]).with_name("pgbench")


def _connect(state: MeshState) -> list[str]:
    host, port = state.address("postgres").split(":")
    return ["-h", host, "-p", port, "-U", "cellpay"]
