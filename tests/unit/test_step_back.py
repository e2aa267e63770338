"""The relay leaves the processor to payments, also where niceness counts within a session only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_AUTOGROUP = Path("/proc/self/autogroup")
_PROGRAM = """
from pathlib import Path
import os
from cells.relay import _step_back
_step_back()
print(os.nice(0), Path("/proc/self/autogroup").read_text().split()[-1])
"""


def _groups_by_session() -> bool:
    """Say whether this kernel groups by session: one that could but does not has an empty file."""
    return _AUTOGROUP.exists() and bool(_AUTOGROUP.read_text().split())


@pytest.mark.skipif(not _groups_by_session(), reason="this kernel does not group by session")
@pytest.mark.parametrize("leads", [True, False], ids=["leads its session", "is in another's"])
def test_a_relay_lowers_its_own_session_and_no_other(leads: bool) -> None:
    before = _AUTOGROUP.read_text().split()[-1]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        start_new_session=leads, capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = str(min(19, os.nice(0) + 19))
    assert done.stdout.split() == [expected, "10" if leads else before]
