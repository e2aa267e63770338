"""`make flink`: PyFlink in an environment of its own, for it wants older packages than Cellpay.

    python flink/install.py [VENV]

About 850 MB in VENV (.venv-flink): Flink itself is in its wheels. It needs Java 11 or 17.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("apache-flink==2.3.0",)


def install(target: Path) -> None:
    python = target / "bin" / "python"
    if not python.exists():
        venv.create(target, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *PACKAGES], check=True)


if __name__ == "__main__":
    install(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / ".venv-flink").resolve())
