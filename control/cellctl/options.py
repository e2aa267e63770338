"""Options that most commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DATA = Annotated[
    Path,
    typer.Option("--data", envvar="CELLPAY_DATA", help="The mesh's directory, or of remote.json."),
]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
REASON = Annotated[str, typer.Option("--reason", help="Why; kept in the audit log.")]
DEFAULT_DATA = Path(".cellpay")
