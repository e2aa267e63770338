"""`cellctl scrape-config`: what Prometheus needs to watch this mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from control.cellctl.session import Session
from control.cellctl.show import print_json

DATA = Annotated[Path, typer.Option("--data", envvar="CELLPAY_DATA", help="The mesh's directory.")]


def scrape_config(data: DATA = Path(".cellpay")) -> None:
    """Prints Prometheus' configuration for this mesh (JSON is YAML)."""
    session = Session.open(data)
    state = session.state
    print_json(
        {
            "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
            "scrape_configs": [
                _job("cellpay-cell", [
                    ({"cell": cell}, state.probes_of(f"cell-{cell}")) for cell in state.cells
                ]),
                _job("cellpay-controller", [
                    ({"controller": name}, state.probes_of(name))
                    for name in state.plane.controller_names()
                ]),
            ],
        }
    )  # fmt: skip


def _job(name: str, targets: list[tuple[dict[str, str], str]]) -> dict[str, Any]:
    return {
        "job_name": name,
        "static_configs": [
            {"targets": [address], "labels": labels} for labels, address in targets if address
        ],
    }
