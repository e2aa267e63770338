"""`cellctl scrape-config`: what Prometheus needs to watch this mesh."""

from __future__ import annotations

from typing import Any

from control.cellctl.options import DATA, DEFAULT_DATA
from control.cellctl.session import Session
from control.cellctl.show import print_json


def scrape_config(data: DATA = DEFAULT_DATA) -> None:
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
