"""The provider without Terraform: plugin protocol 6 spoken to it, over its own socket and TLS."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from control.cellctl.session import Session

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv-terraform"

pytestmark = [
    pytest.mark.mesh,
    pytest.mark.skipif(not (VENV / "terraform.rc").exists(), reason="make terraform"),
]

Call = Callable[..., Any]
SLOTS = {"first": 700, "last": 703, "cell": "a", "reason": None, "previous": None}


@pytest.fixture
def call(session: Session) -> Iterator[Call]:
    command = [str(VENV / "bin/python"), str(Path(__file__).with_name("plugin_client.py"))]
    command += [str(VENV / "plugins/terraform-provider-cellpay")]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "CELLPAY_DATA": str(session.data)},
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        stdin, stdout = client.stdin, client.stdout

        def ask(**request: Any) -> Any:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            return json.loads(stdout.readline())

        yield ask
        stdin.close()


def test_the_provider_offers_what_the_design_names(call: Call) -> None:
    offered = call(call="schema")
    wanted = {"cell", "slot_assignment", "policy_failover", "drill"}
    assert {f"cellpay_{name}" for name in wanted} <= set(offered["resources"])
    assert offered["data"] == ["cellpay_mesh"]


def test_a_resource_lives_from_plan_to_destroy(call: Call) -> None:
    kind = "cellpay_slot_assignment"
    assert call(call="configure", config={})["told"] == []
    assert call(call="data", type="cellpay_mesh")["state"]["cells"] == ["a", "b", "c"]
    planned = call(call="plan", type=kind, prior=None, config=SLOTS)["state"]
    assert planned["previous"] == "<unknown>"
    assert planned["reason"] == "terraform"
    made = call(call="apply", type=kind, prior=None, planned=planned)
    assert made["told"] == []
    state = made["state"]
    assert [piece[2] for piece in json.loads(state["previous"])] == ["c"]
    assert call(call="read", type=kind, state=state)["state"] == state

    again = call(call="plan", type=kind, prior=state, config=SLOTS)
    assert again["state"] == state, "nothing to do"
    other = call(call="plan", type=kind, prior=state, config={**SLOTS, "last": 704})
    assert other["replaced"] == ["last"]
    imported = call(call="import_", type=kind, id="700-703")["state"]
    assert imported["cell"] == "a"

    gone = call(call="apply", type=kind, prior=state, planned=None)
    assert gone == {"state": None, "told": []}
    assert call(call="import_", type=kind, id="700-703")["state"]["cell"] == "c"


def test_risk_documents_are_resources_that_hold_each_other(call: Call) -> None:
    call(call="configure", config={})

    def planned(name: str, document: Any) -> dict[str, Any]:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        return {"name": name, "document": text, "reason": "a test", "revision": "<unknown>"}

    lists, rules = "cellpay_policy_risk_lists", "cellpay_policy_risk_rules"
    rule = {"name": "tf", "when": 'in_list("tf", device.id)', "action": "deny", "reason": "TF"}
    asked = planned("tf", {"rules": [rule]})
    refused = call(call="apply", type=rules, prior=None, planned=asked)
    assert refused["state"] is None
    assert "line 1, column 9: there is no list tf" in refused["told"][0]
    made = call(call="apply", type=lists, prior=None, planned=planned("tf", {"entries": []}))
    assert made["told"] == []
    ruled = call(call="apply", type=rules, prior=None, planned=asked)
    assert ruled["told"] == []
    assert call(call="read", type=rules, state=ruled["state"])["state"] == ruled["state"]
    kept = call(call="apply", type=lists, prior=made["state"], planned=None)
    assert "POLICY_IN_USE" in kept["told"][0]
    for kind, state in ((rules, ruled["state"]), (lists, made["state"])):
        gone = call(call="apply", type=kind, prior=state, planned=None)
        assert gone == {"state": None, "told": []}


def test_what_is_wrong_is_told_and_changes_nothing(call: Call) -> None:
    call(call="configure", config={})
    cell = {"cell": "z", "drained": False, "reason": "a test", "region": "<unknown>"}
    answer = call(call="apply", type="cellpay_cell", prior=None, planned=cell)
    assert answer["state"] is None
    assert "there is no cell 'z'; there are a, b, c" in answer["told"][0]
    moved = {**SLOTS, "cell": "z", "reason": "a test", "previous": "<unknown>"}
    answer = call(call="apply", type="cellpay_slot_assignment", prior=None, planned=moved)
    assert "UNKNOWN_CELL" in answer["told"][0]
    answer = call(call="import_", type="cellpay_drill", id="never")
    assert "no drill 'never' is under way" in answer["told"][0]


def test_a_provider_without_a_mesh_says_so(call: Call) -> None:
    told = call(call="configure", config={"data": "/nowhere"})["told"]
    assert "there is no mesh in /nowhere" in told[0]
