"""Every block of docs/howto.md does what the page says: executed on a mesh, in the page's order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from control.cellctl.session import Session

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(
    r"^### ([^\n]+)\n|^```(sh|python)\n(.*?)^```",
    (ROOT / "docs/howto.md").read_text(encoding="utf-8"),
    re.DOTALL | re.MULTILINE,
)


def _jobs() -> list[tuple[str, str, str]]:
    found, job = [], ""
    for heading, kind, text in BLOCKS:
        if heading:
            job = heading
        else:
            found.append((job, kind, text))
    return found


@pytest.mark.mesh
@pytest.mark.parametrize(("job", "kind", "text"), _jobs(), ids=[job for job, _, _ in _jobs()])
def test_a_block_of_the_page_runs(session: Session, job: str, kind: str, text: str) -> None:
    environment = {
        **os.environ,
        "CELLPAY_DATA": str(session.data),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-euc", text]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{job}\n{done.stdout}\n{done.stderr}"


def test_the_page_has_five_jobs_for_each_of_four() -> None:
    jobs = [heading for heading, _, _ in BLOCKS if heading]
    assert len(jobs) == 20
    assert len(_jobs()) >= 10
