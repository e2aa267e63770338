"""terraform/modules: formatted, valid, tested by Terraform's own tests, in tune with the overlays.

Without a provider: what there is says what to make, and `terraform test` says that it is right.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MODULES = ROOT / "terraform" / "modules"
NAMES = ("region", "mesh")
pytestmark = pytest.mark.skipif(
    shutil.which("terraform") is None, reason="terraform is not on the PATH"
)


def _terraform(folder: Path, *arguments: str) -> str:
    configuration = folder / ".no-terraformrc"
    configuration.touch()
    environment = {
        **os.environ,
        "TF_CLI_CONFIG_FILE": str(configuration),
        "CHECKPOINT_DISABLE": "1",
    }
    done = subprocess.run(
        ["terraform", f"-chdir={folder}", *arguments],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A copy: Terraform writes beside what it reads."""
    return Path(shutil.copytree(MODULES, tmp_path / "modules"))


def test_modules_are_formatted(modules: Path) -> None:
    _terraform(modules, "fmt", "-check", "-recursive", "-diff")


@pytest.mark.parametrize("name", NAMES)
def test_a_module_is_valid_and_passes_its_own_tests(modules: Path, name: str) -> None:
    _terraform(modules / name, "init", "-input=false", "-no-color")
    _terraform(modules / name, "validate", "-no-color")
    said = _terraform(modules / name, "test", "-no-color")
    written = "".join(path.read_text() for path in (MODULES / name / "tests").iterdir())
    assert f"{len(re.findall('^run ', written, re.MULTILINE))} passed, 0 failed" in said


def test_the_overlays_have_the_values_that_the_module_gives(modules: Path) -> None:
    mesh = modules / "mesh"
    regions = {
        f"region-{cell}": {
            "cell": cell, "cidr": f"10.{number}.0.0/16", "zones": [f"{cell}{n}" for n in range(3)],
        }
        for number, cell in enumerate("abc")
    }  # fmt: skip
    values = {"domain": "cellpay.example", "regions": regions}
    (mesh / "terraform.tfvars.json").write_text(json.dumps(values))
    _terraform(mesh, "init", "-input=false", "-no-color")
    _terraform(mesh, "apply", "-auto-approve", "-input=false", "-no-color")
    output = json.loads(_terraform(mesh, "output", "-json"))
    for region in regions:
        overlay = ROOT / "deploy" / "kubernetes" / "overlays" / region / "kustomization.yaml"
        literals = dict(
            literal.split("=", 1)
            for generator in yaml.safe_load(overlay.read_text())["configMapGenerator"]
            for literal in generator["literals"]
        )
        assert literals == output["overlays"]["value"][region]
    bootstrap = (ROOT / "deploy" / "cockroachdb" / "bootstrap.sql").read_text()
    added = re.findall(r'REGION (?:IF NOT EXISTS )?"([^"]+)"', bootstrap)
    assert added == output["database_regions"]["value"]
    policies = (ROOT / "deploy" / "kubernetes" / "base" / "network-policies.yaml").read_text()
    opened = {
        port
        for policy in yaml.safe_load_all(policies)
        for rule in policy["spec"].get("ingress", ())
        for item in rule.get("ports", ())
        for port in range(item["port"], item.get("endPort", item["port"]) + 1)
    }
    for ports in output["open_between_regions"]["value"].values():
        assert set(ports) <= opened
