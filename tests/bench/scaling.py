"""A region on paper: from this machine's figures to cells, cores, database nodes and money.

    python -m tests.bench.scaling        writes the tables of docs/scaling.md

A linear model: cost a payment is processor time, and does not grow with cells or accounts
(`accounts_10m_vs_1k`). What it assumes beyond the measurements is in `Assumptions`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from tests.bench.figures import RESULTS, ROOT

_PAGE = ROOT / "docs" / "scaling.md"
_BEGIN, _END = "<!-- python -m tests.bench.scaling -->", "<!-- end of tables -->"
# Alibaba's announcement for Double 11 of 2019: the peak of orders created a second.
DOUBLE_11_2019_PER_S = 544_000


@dataclass(frozen=True)
class Measured:
    """Processor microseconds, of all processes together, from one run's figures."""

    unary_us: float
    bulk_us: float
    transfer_us: float
    cores: int


@dataclass(frozen=True)
class Assumptions:
    # An order is made and paid; making it costs about what paying it does.
    calls_an_order: float = 2.0
    transfers_an_order: float = 0.02
    # Busy at the peak, so that latency stays flat and one region of three may die.
    utilisation: float = 0.5
    regions: int = 3
    # Of a payment's processor time, PostgreSQL's on this machine (make profile).
    database_share: float = 0.25
    # CockroachDB writes each row several times, through consensus. Not measured by us.
    replication: int = 5
    distribution_overhead: float = 2.0
    cores_a_node: int = 32
    cores_a_cell: int = 16
    # A list price of a general-purpose virtual core, dollars an hour.
    dollars_a_core_hour: float = 0.05


@dataclass(frozen=True)
class Region:
    """What the whole takes, over all regions."""

    cell_cores: float
    database_cores: float
    cells: int
    database_nodes: int
    dollars_an_hour: float


def measured(figures: dict[str, float], cores: int) -> Measured:
    """At saturation every core is busy: what a payment costs is cores over throughput."""
    return Measured(
        unary_us=cores / figures["unary_pay_per_s"] * 1e6,
        bulk_us=cores / figures["bulk_pay_per_s"] * 1e6,
        transfer_us=cores / figures["transfer_per_s"] * 1e6,
        cores=cores,
    )


def region(orders_per_s: float, found: Measured, assumed: Assumptions) -> Region:
    us = assumed.calls_an_order * found.unary_us + assumed.transfers_an_order * found.transfer_us
    busy = orders_per_s * us / 1e6
    spare = 1 / assumed.utilisation
    cell_cores = busy * (1 - assumed.database_share) * spare
    written = assumed.replication * assumed.distribution_overhead
    database_cores = busy * assumed.database_share * written * spare
    return Region(
        cell_cores=cell_cores,
        database_cores=database_cores,
        cells=math.ceil(cell_cores / assumed.cores_a_cell),
        database_nodes=math.ceil(database_cores / assumed.cores_a_node),
        dollars_an_hour=(cell_cores + database_cores) * assumed.dollars_a_core_hour,
    )


def tables(found: Measured, assumed: Assumptions) -> str:
    lines = [
        "| cost on this machine, all processes | µs of processor |",
        "|---|---|",
        f"| unary payment | {found.unary_us:,.0f} |",
        f"| payment in a batch | {found.bulk_us:,.0f} |",
        f"| transfer across cells | {found.transfer_us:,.0f} |",
        "",
        "| orders/s | cells' cores | cells | database cores | database nodes | $ an hour |",
        "|---|---|---|---|---|---|",
    ]
    for share in (0.01, 0.1, 1.0):
        target = DOUBLE_11_2019_PER_S * share
        it = region(target, found, assumed)
        lines.append(
            f"| {target:,.0f} | {it.cell_cores:,.0f} | {it.cells:,} | {it.database_cores:,.0f}"
            f" | {it.database_nodes:,} | {it.dollars_an_hour:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    document = json.loads((RESULTS / "latest.json").read_text())
    values = {name: figure["value"] for name, figure in document["figures"].items()}
    text = tables(measured(values, document["machine"]["cores"]), Assumptions())
    print(text)
    page = _PAGE.read_text()
    before, after = page.split(_BEGIN)[0], page.split(_END)[1]
    _PAGE.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}")


if __name__ == "__main__":
    main()
