"""`make drills`: every drill of terraform/drills, one after the other, on a local mesh.

    python terraform/run_drills.py [--data DIR] [--observe-s N] [NAME …]

With --data a mesh that runs, else one of its own, which it takes down again: three members of etcd
with TLS and two controllers, since with one of each there is no loss that others make good. Ends
with 1 when a steady state broke or a drill could not be carried out; the reports stay in
drills-reports/.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DRILLS = ROOT / "terraform" / "drills"
REPORTS = ROOT / "drills-reports"
_VENV = ROOT / ".venv-terraform"
_CELLCTL = [sys.executable, "-m", "control.cellctl.main"]
_PLANE = ["--etcd-members", "3", "--etcd-tls", "--controllers", "2"]


def main() -> None:
    known = sorted(path.name for path in DRILLS.iterdir() if (path / "main.tf").exists())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="the directory of a mesh that runs")
    parser.add_argument("--observe-s", type=int, default=10)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(known)
    if unknown:
        parser.error(f"no drill is called {', '.join(sorted(unknown))}; there are {known}")
    if shutil.which("terraform") is None:
        sys.exit("terraform is not on the PATH; `cellctl drill start` needs none")
    if not (_VENV / "terraform.rc").exists():
        sys.exit("the provider is not installed: make terraform")
    with _mesh(arguments.data) as data:
        rows = [_drill(name, data, arguments.observe_s) for name in arguments.names or known]
    width = max(len(name) for name, _, _ in rows)
    for name, fine, line in rows:
        print(f"{'ok  ' if fine else 'FAIL'} {name:<{width}}  {line}")
    print(f"reports: {REPORTS}")
    sys.exit(0 if all(fine for _, fine, _ in rows) else 1)


@contextmanager
def _mesh(data: Path | None) -> Iterator[Path]:
    if data is not None:
        yield data.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="cellpay-drills-") as folder:
        own = Path(folder) / "mesh"
        up = [*_CELLCTL, "up", "--detach", "--data", str(own), *_PLANE]
        subprocess.run(up, check=True, cwd=ROOT)
        try:
            yield own
        finally:
            subprocess.run([*_CELLCTL, "down", "--data", str(own)], check=True, cwd=ROOT)


def _drill(name: str, data: Path, observe_s: int) -> tuple[str, bool, str]:
    """Apply and destroy; what came of it, as a line."""
    print(f"--- {name}", flush=True)
    with tempfile.TemporaryDirectory() as state:
        options = [f"-state={state}/terraform.tfstate", "-no-color", "-input=false"]
        options += ["-auto-approve", f"-var=data={data}", f"-var=observe_s={observe_s}"]
        environment = {
            **os.environ,
            "TF_CLI_CONFIG_FILE": str(_VENV / "terraform.rc"),
            "TF_DATA_DIR": f"{state}/terraform",
        }
        failed = ""
        for verb in ("apply", "destroy"):
            done = subprocess.run(
                ["terraform", verb, *options],
                cwd=DRILLS / name, env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode != 0 and not failed:
                failed = f"{verb}: {_errors(done.stderr)}"
    found = _report(name, data)
    if failed:
        return name, False, failed
    if found is None:
        return name, False, "it left no report"
    phases = ", ".join(f"{c['phase']} {c['success_ratio']:.1%}" for c in found["checks"])
    line = f"{found['state']} {found['verdict']}, outage {found['outage_ms']} ms, {phases}"
    return name, found["verdict"] == "held", line


def _errors(text: str) -> str:
    lines = [line.strip("│╷╵ ").strip() for line in text.splitlines()]
    kept = [line for line in lines if line and "development override" not in line.lower()]
    start = next((i for i, line in enumerate(kept) if line.startswith("Error")), 0)
    return " ".join(kept[start:])


def _report(name: str, data: Path) -> dict[str, Any] | None:
    """The last run's, copied to where it outlives the mesh."""
    runs = sorted((data / "drills" / name).glob("run-*"), key=lambda path: path.stat().st_mtime)
    if not runs or not (runs[-1] / "report.json").exists():
        return None
    shutil.copytree(runs[-1], REPORTS / name, dirs_exist_ok=True)
    return json.loads((runs[-1] / "report.json").read_text())


if __name__ == "__main__":
    main()
