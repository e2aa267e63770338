"""The provider as a person uses it: Terraform plans, applies, imports, sees drift and destroys.

Terraform's program is part of the machine, not of any registry we reach; where it is missing these
tests are skipped, and the plugin protocol is spoken by tests/integration/test_plugin_protocol.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from control.cellctl.session import Session

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv-terraform"
TERRAFORM = shutil.which("terraform")

pytestmark = [
    pytest.mark.mesh,
    pytest.mark.skipif(TERRAFORM is None, reason="terraform is not on the PATH"),
    pytest.mark.skipif(not (VENV / "terraform.rc").exists(), reason="make terraform"),
]

Terraform = Callable[..., subprocess.CompletedProcess[str]]

HEAD = """
terraform {
  required_providers { cellpay = { source = "cellpay.local/cellpay/cellpay" } }
}
"""
ALL = """
provider "cellpay" {}
data "cellpay_mesh" "this" {}
output "regions" { value = data.cellpay_mesh.this.regions }
resource "cellpay_slot_assignment" "some" {
  first  = 100
  last   = 109
  cell   = "c"
  reason = "terraform's test"
}
resource "cellpay_policy_failover" "this" { automatic = false }
resource "cellpay_cell" "a" { cell = "a" }
"""


def fixture_of(folder: Path, data: Path) -> Terraform:
    def run(*arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(TERRAFORM), *arguments, "-no-color"],
            cwd=folder,
            env={
                **os.environ,
                "TF_CLI_CONFIG_FILE": str(VENV / "terraform.rc"),
                "CELLPAY_DATA": str(data),
                "CHECKPOINT_DISABLE": "1",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        expected = {1} if fails else {0, 2} if "-detailed-exitcode" in arguments else {0}
        assert done.returncode in expected, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def terraform(session: Session, tmp_path: Path) -> Terraform:
    return fixture_of(tmp_path, session.data)


def cellctl(session: Session, *arguments: str) -> str:
    done = subprocess.run(
        [str(ROOT / ".venv/bin/python"), "-m", "control.cellctl.main", *arguments],
        cwd=ROOT,
        env={**os.environ, "CELLPAY_DATA": str(session.data)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def owner_of(session: Session, slot: int) -> str:
    status = json.loads(cellctl(session, "status", "--json"))
    for cell in status["cells"]:
        for piece in cell["ranges"]:
            first, _, last = piece["slots"].partition("-")
            if int(first) <= slot <= int(last or first):
                return str(cell["cell"])
    raise AssertionError(f"nobody owns {slot}")


def test_terraform_plans_applies_sees_drift_imports_and_puts_everything_back(
    session: Session, terraform: Terraform, tmp_path: Path
) -> None:
    (tmp_path / "main.tf").write_text(HEAD + ALL)
    before = owner_of(session, 105)
    assert before == "a"
    terraform("apply", "-auto-approve")
    assert owner_of(session, 105) == "c"
    assert "automatic failover: off" in cellctl(session, "policy", "--reason", "")
    outputs = json.loads(terraform("output", "-json").stdout)
    assert outputs["regions"]["value"]["a"] == "region-a"
    assert terraform("plan", "-detailed-exitcode").returncode == 0, "a second plan changes nothing"

    cellctl(session, "move", "--slots", "105", "--to", "b", "--reason", "behind its back")
    plan = terraform("plan", "-detailed-exitcode")
    assert plan.returncode == 2
    assert '~ cell     = "mixed" -> "c"' in plan.stdout
    assert "1 to change" in plan.stdout

    terraform("state", "rm", "cellpay_policy_failover.this")
    terraform("import", "cellpay_policy_failover.this", "failover")
    shown = json.loads(terraform("show", "-json").stdout)
    resources = {item["address"]: item for item in shown["values"]["root_module"]["resources"]}
    assert resources["cellpay_policy_failover.this"]["values"]["automatic"] is False

    terraform("destroy", "-auto-approve")
    assert owner_of(session, 105) == before
    # Imported, it remembers no other value than the one that it found.
    cellctl(session, "policy", "--automatic-failover", "--reason", "the test is over")


DRILL = """
provider "cellpay" {}
resource "cellpay_drill" "this" {
  name               = "tf-redis"
  fault              = "redis_loss"
  cell               = "b"
  observe_s          = 1
  check_s            = 1
  p99_max_ms         = 8000
  during_p99_max_ms  = 60000
  during_success_min = 0.33
  reason             = "terraform's test"
}
"""


def test_a_drill_is_applied_and_destroyed(
    session: Session, terraform: Terraform, tmp_path: Path
) -> None:
    (tmp_path / "main.tf").write_text(HEAD + DRILL)
    terraform("apply", "-auto-approve")
    status = json.loads(cellctl(session, "status", "--json"))
    assert "redis-b" not in {item["name"] for item in status["processes"] if item["alive"]}
    assert terraform("plan", "-detailed-exitcode").returncode == 0
    terraform("destroy", "-auto-approve")
    found = json.loads(cellctl(session, "drill", "show", "tf-redis", "--json"))
    assert found["state"] == "reported"
    assert (Path(found["report"]) / "report.md").exists()
    status = json.loads(cellctl(session, "status", "--json"))
    assert "redis-b" in {item["name"] for item in status["processes"] if item["alive"]}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ('fault = "cell_loss"\n  cell = "z"', "spec.cell: there is no cell 'z'"),
        ('fault = "earthquake"', "there is no fault 'earthquake'"),
    ],
)
def test_a_drill_that_cannot_be_is_told_by_what_is_wrong(
    terraform: Terraform, tmp_path: Path, body: str, told: str
) -> None:
    resource = f'resource "cellpay_drill" "this" {{\n  name = "x"\n  {body}\n}}\n'
    (tmp_path / "main.tf").write_text(HEAD + 'provider "cellpay" {}\n' + resource)
    assert told in terraform("apply", "-auto-approve", fails=True).stderr


def test_without_a_mesh_terraform_says_so(tmp_path: Path) -> None:
    (tmp_path / "main.tf").write_text(HEAD + ALL)
    nowhere = tmp_path / "nowhere"
    told = fixture_of(tmp_path, nowhere)("plan", fails=True).stderr
    assert "there is no mesh in" in told
    assert "cellctl up" in told
