"""Alert rules, their tests, dashboards and runbooks: promtool runs the rules' own tests."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "observability"
RULES = FOLDER / "prometheus" / "rules.yaml"
NAMES = re.compile(r"\bcellpay_[a-z_0-9]+")
promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not here (Debian: apt-get install prometheus)",
)


def _run(*arguments: str) -> None:
    done = subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _rules() -> list[dict[str, Any]]:
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def _dashboards() -> Any:
    path = FOLDER / "dashboards.py"
    spec = importlib.util.spec_from_file_location("dashboards", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@promtool
def test_alerts_fire_when_they_should_and_keep_quiet_when_not() -> None:
    _run("check", "rules", str(RULES))
    _run("test", "rules", str(RULES.parent / "rules_test.yaml"))


def test_every_alert_is_tested_and_leads_to_a_runbook() -> None:
    tests = yaml.safe_load((RULES.parent / "rules_test.yaml").read_text())["tests"]
    tested = {
        item["alertname"]
        for test in tests
        for item in test.get("alert_rule_test", ())
        if item["exp_alerts"]
    }
    alerts = {rule["alert"]: rule for rule in _rules() if "alert" in rule}
    assert tested == set(alerts)
    for rule in alerts.values():
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert (ROOT / rule["annotations"]["runbook_url"]).is_file()


def test_every_runbook_belongs_to_an_alert() -> None:
    linked = {rule["annotations"]["runbook_url"] for rule in _rules() if "alert" in rule}
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "runbooks").glob("*.md")}
    assert there == linked


def test_dashboards_are_as_their_code_makes_them() -> None:
    made = _dashboards()
    for name in made.BOARDS:
        committed = json.loads((FOLDER / "grafana" / f"{name}.json").read_text())
        assert committed == made.board(name), "run: python deploy/observability/dashboards.py"


@promtool
def test_every_query_of_a_dashboard_parses(tmp_path: Path) -> None:
    made = _dashboards()
    queries = [
        target["expr"].replace("$cell", "a")
        for name in made.BOARDS
        for panel in made.board(name)["panels"]
        for target in panel["targets"]
    ]
    rules = [{"record": f"q:{number}", "expr": query} for number, query in enumerate(queries)]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    _run("check", "rules", str(path))


COLLECTORS = sorted((FOLDER / "otel-collector").glob("*.yaml"))


@pytest.mark.parametrize("path", COLLECTORS, ids=lambda path: path.name)
def test_a_collectors_pipelines_have_all_their_parts(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    assert set(document["service"]["extensions"]) <= set(document["extensions"])
    for pipeline in document["service"]["pipelines"].values():
        for kind in ("receivers", "processors", "exporters"):
            assert pipeline[kind]
            assert set(pipeline[kind]) <= set(document[kind])
        # What does not fit must be refused before it is gathered.
        assert pipeline["processors"][0] == "memory_limiter"
    # Where cells and Envoy send by OTLP over HTTP.
    assert document["receivers"]["otlp"]["protocols"]["http"]["endpoint"].endswith(":4318")


def test_the_collectors_tail_keeps_what_a_process_says_failed_or_was_slow() -> None:
    """By the attribute that router/tracing gives, and in the order in which batches come."""
    document = yaml.safe_load((FOLDER / "otel-collector" / "tail.yaml").read_text())
    policies = {item["type"]: item for item in document["processors"]["tail_sampling"]["policies"]}
    for name, item in policies.items():
        assert set(item) == {"name", "type", name}
    kept = policies["string_attribute"]["string_attribute"]
    tracer = (ROOT / "router" / "tracing" / "tracer.py").read_text(encoding="utf-8")
    assert f'"{kept["key"]}": why' in tracer
    for value in kept["values"]:
        assert f'"{value}" if' in tracer
    assert policies["status_code"]["status_code"] == {"status_codes": ["ERROR"]}
    assert 0 < policies["probabilistic"]["probabilistic"]["sampling_percentage"] <= 100
    processors = document["service"]["pipelines"]["traces"]["processors"]
    assert processors.index("tail_sampling") < processors.index("batch")


def test_metrics_that_are_asked_for_are_told_somewhere() -> None:
    """A query of a metric that nobody tells is silent for ever."""
    told = set()
    for folder in ("cells", "router", "control"):
        for path in (ROOT / folder).rglob("*.py"):
            told |= set(NAMES.findall(path.read_text(encoding="utf-8")))
    asked = set(NAMES.findall(RULES.read_text()))
    for path in (FOLDER / "grafana").glob("*.json"):
        asked |= set(NAMES.findall(path.read_text()))
    bare = {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in asked}
    assert bare - told == set()
