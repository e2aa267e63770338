"""The report of a drill, for people and for programs. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, NamedTuple

from control.drills.model import Drill


class Deed(NamedTuple):
    """What the mesh did meanwhile: a step of an operation."""

    time_ms: int
    what: str
    note: str


def document(
    drill: Drill, outage_by_cell: dict[str, int], deeds: Sequence[Deed] = ()
) -> dict[str, Any]:
    """JSON-ready."""
    steps = [Deed(item.time_ms, item.state, item.note) for item in drill.history]
    return {
        "name": drill.spec.name,
        "run": drill.run,
        "fault": drill.spec.fault,
        "state": drill.state,
        "verdict": drill.verdict,
        "cut_short": drill.cut_short,
        "actor": drill.actor,
        "reason": drill.reason,
        "outage_ms": drill.outage_ms,
        "outage_ms_by_home_cell": outage_by_cell,
        "error_budget_burnt": drill.budget_burnt,
        "spec": asdict(drill.spec),
        "checks": [asdict(check) for check in drill.checks],
        "timeline": [
            {"time": _time(item.time_ms), "state": item.what, "note": item.note}
            # What came first at one moment stays first.
            for item in sorted([*steps, *deeds], key=lambda item: item.time_ms)
        ],
    }


def as_json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def as_markdown(content: dict[str, Any]) -> str:
    budget = content["error_budget_burnt"]
    outcome = content["verdict"] or content["state"]
    lines = [
        f"# Drill {content['name']}, run {content['run']}: {outcome}",
        "",
        f"Fault `{content['fault']}`, by {content['actor']}: {content['reason']}",
        "",
        f"- verdict: the steady state **{content['verdict'] or 'was not tried'}**",
        f"- ended: {content['state']}",
        f"- outage (users of the cell hit hardest): {content['outage_ms']} ms",
        f"- error budget burnt: {budget:.4%} of 30 days at 99.9 %",
    ]
    if content["cut_short"]:
        lines.append(f"- healed before its time: {content['cut_short']}")
    if content["outage_ms_by_home_cell"]:
        by_cell = content["outage_ms_by_home_cell"].items()
        lines.append("- by home cell: " + ", ".join(f"{cell} {ms} ms" for cell, ms in by_cell))
    lines += ["", "## Steady state", "", "| phase | payments | made | p99 | books | holds |"]
    lines.append("|---|---|---|---|---|---|")
    for check in content["checks"]:
        holds = "yes" if check["holds"] else f"no: {check['why']}"
        lines.append(
            f"| {check['phase']} | {check['payments']} | {check['success_ratio']:.2%} "
            f"| {check['p99_ms']} ms | {check['books']} | {holds} |"
        )
    lines += ["", "## Timeline", "", "| time | state | note |", "|---|---|---|"]
    for item in content["timeline"]:
        lines.append(f"| {item['time']} | {item['state']} | {_cell(item['note'])} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _time(time_ms: int) -> str:
    stamp = datetime.fromtimestamp(time_ms / 1000, UTC)
    return stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")
