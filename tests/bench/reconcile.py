"""A day of ten million rows a side, with errors put in, matched by a process of its own.

    make reconcile-bench        → bench/results/reconcile.json

DuckDB makes both sides up on the fly; which row is wrong in which way is a function of its number,
so what must be found is known without the matching. Told are time and peak memory of the process
that matches, and the breaks it missed or invented.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from cells.reconciliation.judge import judge
from cells.reconciliation.matching import Matching, Sources, engine
from cells.reconciliation.settings import ChannelPolicy, EngineSettings, FeeTier, Limits

_ROOT = Path(__file__).resolve().parents[2]
_POLICY = ChannelPolicy("north", fees=(FeeTier(("purchase",), basis_points=38, at_most=2_000),))
# A prime, so that errors spread over whatever else depends on the number.
_EVERY = 9_973
_ERRORS = {
    0: "missing", 1: "extra", 2: "amount", 3: "rejected", 4: "refused_by_us", 5: "unknown",
    6: "duplicate", 7: "fee", 8: "short_only", 9: "bank_only", 10: "declined",
}  # fmt: skip
# Error → the break's class and how many of it; those that are absent are no breaks.
_BREAKS = {
    "missing": "short", "extra": "long", "amount": "amount", "rejected": "status",
    "refused_by_us": "status", "unknown": "status", "duplicate": "duplicate", "fee": "fee",
}  # fmt: skip

_TRUTH = f"""SELECT i, (i * 7919 + 13) % {{rows}} AS shuffled, i % {_EVERY} AS error,
    'att_' || upper(substr(md5(CAST(i AS VARCHAR)), 1, 28)) AS attempt_id,
    upper(substr(md5('s' || i), 1, 12)) AS short_reference,
    'B' || lpad(CAST(i AS VARCHAR), 12, '0') AS bank_reference,
    100 + CAST(hash(i) % 1000000 AS BIGINT) AS amount,
    TIMESTAMP '2026-11-23 00:00:00' + INTERVAL (i % 86400) SECOND AS happened_at
    FROM (SELECT range AS i FROM range({{rows}}))"""
_FEE = "least((amount * 38 + 5000) // 10000, 2000)"
# On a shared machine the matching is paced by the neighbours; this is noted, not corrected.
_OURS = f"""SELECT attempt_id, 'chg' || i AS owner_id, '' AS original_id, short_reference,
    CASE error WHEN 5 THEN '' ELSE bank_reference END AS bank_reference, 'purchase' AS kind, amount,
    'CNY' AS currency, CASE WHEN error IN (4, 10) THEN 'nothing' WHEN error = 5 THEN 'unknown'
        ELSE 'line' END AS expect,
    CASE WHEN error IN (4, 10) THEN 'declined' WHEN error = 5 THEN 'unknown' ELSE 'approved'
        END AS state, happened_at, '' AS carried, '' AS carried_class
    FROM ({_TRUTH}) WHERE error <> 1"""
_THEIRS = f"""SELECT 'north' AS channel, DATE '2026-11-23' AS clearing_date,
    shuffled * 2 + CAST(copy AS BIGINT) + 1 AS line_no,
    CASE WHEN error IN (8, 9) THEN '' ELSE attempt_id END AS reference,
    CASE error WHEN 9 THEN '' ELSE short_reference END AS short_reference, bank_reference,
    'purchase' AS kind, amount + CASE error WHEN 2 THEN 5 ELSE 0 END AS amount,
    {_FEE.replace("amount", "(amount + CASE error WHEN 2 THEN 5 ELSE 0 END)")}
        + CASE error WHEN 7 THEN 9 ELSE 0 END AS fee, 'CNY' AS currency,
    CASE error WHEN 3 THEN 'rejected' ELSE 'booked' END AS status,
    happened_at + INTERVAL 2 SECOND AS booked_at, '' AS batch
    FROM ({_TRUTH}) JOIN (VALUES (false), (true)) AS copies(copy) ON NOT copy OR error = 6
    WHERE error NOT IN (0, 5, 10)"""


def generate(folder: Path, rows: int) -> None:
    for name, query in (("ours", _OURS), ("theirs", _THEIRS)):
        target = folder / f"{name}.parquet"
        with engine(folder, EngineSettings()) as connection:
            text = query.replace("{rows}", str(rows))
            connection.execute(f"COPY ({text}) TO '{target}' (FORMAT parquet)")


def injected(rows: int) -> Counter[tuple[str, str]]:
    """Class and attempt of every break that must be found; lines of nobody and fees have none."""
    breaks: Counter[tuple[str, str]] = Counter()
    numbers = " OR ".join(f"error = {n}" for n, name in _ERRORS.items() if name in _BREAKS)
    query = f"SELECT error, attempt_id FROM ({_TRUTH.replace('{rows}', str(rows))}) WHERE {numbers}"
    for error, attempt_id in duckdb.execute(query).fetchall():
        name = _ERRORS[error]
        breaks[_BREAKS[name], "" if name in {"extra", "fee"} else attempt_id] += 1
    return breaks


def match(folder: Path, memory_limit_mb: int) -> dict[str, Any]:
    """In a process of its own: what it took, and what was found."""
    began = time.perf_counter()
    settings = EngineSettings(memory_limit_mb)
    with engine(folder, settings) as connection:
        matching = Matching(
            connection, Sources(folder / "ours.parquet", folder / "theirs.parquet"), _POLICY,
            Limits(fee_breaks_max=10_000), settings,
        )  # fmt: skip
        pool, sums = matching.run()
        outcome = judge(pool, sums, _POLICY, lines=matching.lines, seconds=matching.seconds)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (folder / "found.json").write_text(
        json.dumps([[item.break_class, item.attempt_id] for item in outcome.found])
    )
    return {
        "seconds": round(seconds, 2),
        "processor_seconds": round(sum(os.times()[:2]), 2),
        "peak_rss_mib": peak // 1024,
        "steps_s": dict(outcome.seconds),
        "sums": [asdict(item) for item in sums],
    }


def run(rows: int, memory_limit_mb: int = EngineSettings().memory_limit_mb) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="reconcile-"))
    try:
        generate(folder, rows)
        load = os.getloadavg()[0]
        child = [sys.executable, "-m", "tests.bench.reconcile", "--child", str(folder)]
        child += ["--memory", str(memory_limit_mb)]
        done = subprocess.run(child, check=True, capture_output=True, text=True, cwd=_ROOT)
        figures: dict[str, Any] = json.loads(done.stdout)
        expected = injected(rows)
        found = Counter((kind, name) for kind, name in json.loads(
            (folder / "found.json").read_text()
        ))  # fmt: skip
        sizes = {name: (folder / f"{name}.parquet").stat().st_size for name in ("ours", "theirs")}
    finally:
        shutil.rmtree(folder)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "load_before": round(load, 2),
        "rows_a_side": rows,
        "memory_limit_mb": memory_limit_mb,
        "bytes": sizes,
        **figures,
        "injected": _by_class(expected),
        "found": _by_class(found),
        "missed": sum((expected - found).values()),
        "invented": sum((found - expected).values()),
    }


def _by_class(breaks: Mapping[tuple[str, str], int]) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for (kind, _), count in breaks.items():
        counted[kind] += count
    return dict(sorted(counted.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--child", type=Path)
    parser.add_argument("--memory", type=int, default=EngineSettings().memory_limit_mb)
    parser.add_argument("--out", type=Path, default=_ROOT / "bench/results/reconcile.json")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(match(arguments.child, arguments.memory)))
        return
    result = run(arguments.rows, arguments.memory)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    if result["missed"] or result["invented"]:
        raise SystemExit("breaks were missed or invented")


if __name__ == "__main__":
    main()
