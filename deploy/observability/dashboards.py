"""Grafana's dashboards as code: `python deploy/observability/dashboards.py` writes grafana/*.json.

A test compares what is committed and lets promtool parse every query.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "grafana"
_WIDTH, _HEIGHT = 12, 8
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Title, unit, queries: (legend, PromQL).
Panel = tuple[str, str, Sequence[tuple[str, str]]]

_PAY = 'method="cellpay.payments.v1.PaymentsService/Pay"'
_CELL = 'cell=~"$cell"'

MESH: Sequence[Panel] = (
    (
        "Payments a second, by cell",
        "reqps",
        [
            (
                "{{cell}}",
                f"sum by (cell) (rate(cellpay_request_duration_seconds_count{{{_PAY}}}[1m]))",
            )
        ],
    ),
    (
        "Payments that fail, by cell",
        "percentunit",
        [("{{cell}}", "cellpay:payment_errors:ratio_rate5m")],
    ),
    (
        "p99 of a payment, by cell",
        "s",
        [("{{cell}}", "cellpay:payment_duration_seconds:p99_rate5m")],
    ),
    (
        "Error budget of 30 days left (99.95 %)",
        "percentunit",
        [("{{cell}}", "1 - avg_over_time(cellpay:payment_errors:ratio_rate1h[30d]) / 0.0005")],
    ),
    (
        "Payments that are accepted, by cell",
        "percentunit",
        [("{{cell}}", "cellpay:payments_accepted:ratio_rate5m")],
    ),
    (
        "What banks approve, by channel",
        "percentunit",
        [("{{channel}}", "cellpay:bank_approved:ratio_rate15m")],
    ),
    (
        "Breaks that are not resolved, by state",
        "short",
        [("{{state}}", "max by (state) (cellpay_breaks)")],
    ),
    ("Slots at home, by cell", "short", [("{{cell}}", "max by (cell) (cellpay_slots_owned)")]),
    (
        "Degradation level, by cell",
        "short",
        [("{{cell}}", "max by (cell) (cellpay_degradation_level)")],
    ),
    (
        "Breakers that are not closed",
        "short",
        [("{{cell}} {{dependency}}", "max by (cell, dependency) (cellpay_breaker_state) > 0")],
    ),
    (
        "Refused before they were looked at",
        "reqps",
        [("{{cell}} {{reason}}", "sum by (cell, reason) (rate(cellpay_refused_total[1m]))")],
    ),
    (
        "What risk stops, by cell",
        "percentunit",
        [("{{cell}}", "cellpay:risk_refused:ratio_rate10m")],
    ),
)

CELL: Sequence[Panel] = (
    (
        "Requests a second, by method",
        "reqps",
        [
            (
                "{{method}}",
                f"sum by (method) (rate(cellpay_request_duration_seconds_count{{{_CELL}}}[1m]))",
            )
        ],
    ),
    (
        "Requests that did not end well, by status",
        "reqps",
        [
            (
                "{{code}}",
                "sum by (code) (rate(cellpay_request_duration_seconds_count"
                f'{{{_CELL}, code!="OK"}}[1m]))',
            )
        ],
    ),
    (
        "Requests that failed, by range of slots",
        "reqps",
        [
            (
                "{{slots}}",
                "sum by (slots) (rate(cellpay_slot_requests_total"
                f'{{{_CELL}, code=~"UNAVAILABLE|INTERNAL|UNKNOWN|DEADLINE_EXCEEDED"}}[1m]))',
            )
        ],
    ),
    (
        "p99 of requests, by range of slots",
        "s",
        [
            (
                "{{slots}}",
                "histogram_quantile(0.99, sum by (slots, le) (rate("
                f"cellpay_slot_request_duration_seconds_bucket{{{_CELL}}}[1m])))",
            )
        ],
    ),
    (
        "Payments that were not accepted, by reason",
        "reqps",
        [
            (
                "{{outcome}} {{reason}}",
                "sum by (outcome, reason) (rate(cellpay_payments_total"
                f'{{{_CELL}, outcome!~"accepted|replayed"}}[1m]))',
            )
        ],
    ),
    (
        "Risk's decisions other than allow",
        "reqps",
        [
            (
                "{{operation}} {{action}}",
                "sum by (operation, action) (rate(cellpay_risk_decisions_total"
                f'{{{_CELL}, action!="allow"}}[1m]))',
            ),
            ("without features", f"sum(rate(cellpay_risk_features_away_total{{{_CELL}}}[1m]))"),
        ],
    ),
    (
        "Duration of a decision of risk",
        "s",
        [
            (
                f"p{int(100 * quantile)}",
                f"histogram_quantile({quantile}, sum by (le) (rate("
                f"cellpay_risk_decision_seconds_bucket{{{_CELL}}}[1m])))",
            )
            for quantile in (0.5, 0.99)
        ],
    ),
    ("Holds, by age", "short", [("{{age}}", f"max by (age) (cellpay_holds{{{_CELL}}})")]),
    (
        "Traces that are kept, by why; and what was dropped or lost",
        "ops",
        [
            ("{{why}}", f"sum by (why) (rate(cellpay_traces_kept_total{{{_CELL}}}[1m]))"),
            ("dropped", f"sum(rate(cellpay_traces_dropped_total{{{_CELL}}}[1m]))"),
            ("spans lost", f"sum(rate(cellpay_spans_lost_total{{{_CELL}}}[1m]))"),
        ],
    ),
    (
        "Duration of a payment",
        "s",
        [
            (
                f"p{int(100 * quantile)}",
                f"histogram_quantile({quantile}, sum by (le) (rate("
                f"cellpay_request_duration_seconds_bucket{{{_CELL}, {_PAY}}}[1m])))",
            )
            for quantile in (0.5, 0.95, 0.99)
        ],
    ),
    (
        "Commands a group",
        "short",
        [
            (
                "{{process}}",
                f"rate(cellpay_lane_commands_total{{{_CELL}}}[1m])"
                f" / rate(cellpay_lane_groups_total{{{_CELL}}}[1m])",
            )
        ],
    ),
    (
        "Time of a commit",
        "s",
        [
            (
                "{{process}}",
                f"rate(cellpay_lane_commit_seconds_total{{{_CELL}}}[1m])"
                f" / rate(cellpay_lane_groups_total{{{_CELL}}}[1m])",
            )
        ],
    ),
    (
        "Commands that wait; groups decided again",
        "short",
        [
            ("waiting {{process}}", f"cellpay_lane_waiting{{{_CELL}}}"),
            ("again {{process}}", f"rate(cellpay_lane_retries_total{{{_CELL}}}[1m])"),
        ],
    ),
    (
        "Transfers in doubt, and the oldest",
        "short",
        [
            ("number", f"max(cellpay_transfers_in_doubt{{{_CELL}}})"),
            ("oldest (s)", f"max(cellpay_transfers_in_doubt_oldest_seconds{{{_CELL}}})"),
        ],
    ),
    (
        "Events that wait, and the oldest",
        "short",
        [
            ("batches", f"max(cellpay_outbox_waiting{{{_CELL}}})"),
            ("oldest (s)", f"max(cellpay_outbox_waiting_oldest_seconds{{{_CELL}}})"),
        ],
    ),
    (
        "Processor of each process",
        "percentunit",
        [("{{process}}", f"rate(process_cpu_seconds_total{{{_CELL}}}[1m])")],
    ),
    (
        "Memory of each process",
        "bytes",
        [("{{process}}", f"process_resident_memory_bytes{{{_CELL}}}")],
    ),
)

BOARDS = {"mesh": ("Cellpay: the mesh", MESH), "cell": ("Cellpay: a cell", CELL)}


def board(name: str) -> dict[str, Any]:
    """A dashboard's document (Grafana's schema 39)."""
    title, panels = BOARDS[name]
    variables = [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
    if name == "cell":
        variables.append(
            {
                "name": "cell",
                "type": "query",
                "datasource": _DATASOURCE,  # type: ignore[dict-item]
                "query": "label_values(cellpay_slots_owned, cell)",
                "refresh": 2,  # type: ignore[dict-item]
            }
        )
    return {
        "uid": f"cellpay-{name}",
        "title": title,
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    title, unit, queries = panel
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": _DATASOURCE,
        "gridPos": {
            "x": _WIDTH * (number % 2),
            "y": _HEIGHT * (number // 2),
            "w": _WIDTH,
            "h": _HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "expr": expression, "legendFormat": legend}
            for place, (legend, expression) in enumerate(queries)
        ],
    }


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in BOARDS:
        text = json.dumps(board(name), indent=2, ensure_ascii=False) + "\n"
        (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
