"""`make bench`: figures of one run on one machine, side by side → bench/results/latest.json.

`--quick` takes less than a minute and writes quick.json. Ratios are to pgbench's TPC-B on the same
PostgreSQL server, with as many connections as it takes to saturate it, in turn with what they are
compared to.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from control.mesh import launcher
from control.mesh.options import MeshOptions
from tests.bench import lane_runs, mesh_runs, plot
from tests.bench.figures import POSTGRES, RESULTS, ROOT, Figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.run")
    parser.add_argument("--quick", action="store_true", help="less than a minute")
    quick = parser.parse_args().quick
    figures = Figures()
    ladder = lane_runs.run(figures, lane_runs.QUICK if quick else lane_runs.FULL)
    _mesh(figures, mesh_runs.QUICK if quick else mesh_runs.FULL)
    if ladder:
        figures.notes["groups"] = ladder
        plot.groups(ladder)
    if not quick:
        figures.tell(ROOT / "docs" / "performance.md")
    figures.write(RESULTS / ("quick.json" if quick else "latest.json"))


def _mesh(figures: Figures, scale: mesh_runs.Scale) -> None:
    # Settlement would run in the middle of a measurement.
    overrides = {"settlement": {"interval_s": 3600.0}, "workers": mesh_runs.WORKERS}
    with tempfile.TemporaryDirectory(prefix="cellpay-bench-") as folder:
        data = Path(folder)
        options = MeshOptions(cell_overrides=overrides, postgres=POSTGRES)
        try:
            cells = len(mesh_runs.CELLS)
            with launcher.running(data, cells, options, lambda line: print(f"  {line}")):
                asyncio.run(mesh_runs.MeshRuns(data, figures, scale).run())
        finally:
            launcher.remove(data)


if __name__ == "__main__":
    main()
