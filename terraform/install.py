"""`make terraform`: the provider in an environment of its own, ready for `terraform plan`.

    python terraform/install.py [VENV]

Writes into VENV (.venv-terraform): the packages, stubs for their protobuf, the provider's program
and terraform.rc with dev_overrides, so that no registry is asked and no `terraform init` is needed:

    export TF_CLI_CONFIG_FILE=$PWD/.venv-terraform/terraform.rc
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# `tf` needs a protobuf below 6; these are the last that generate for it.
PACKAGES = ("tf==1.2.0", "grpcio-tools==1.70.0", "googleapis-common-protos==1.70.0")
STUBS = ("control/v1/control", "control/v1/drills", "control/v1/policies")
PROVIDER = "terraform-provider-cellpay"
SOURCE = "cellpay.local/cellpay/cellpay"


def install(target: Path) -> None:
    python = target / "bin" / "python"
    if not python.exists():
        venv.create(target, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *PACKAGES], check=True)
    build_stubs(python, target / "stubs")
    plugins = target / "plugins"
    plugins.mkdir(exist_ok=True)
    program = plugins / PROVIDER
    # -S would skip the packages; -P keeps the caller's folder from shadowing them.
    program.write_text(
        f"""#!/bin/sh
PYTHONPATH={ROOT}/terraform/provider:{target}/stubs exec {python} -P -m cellpay_provider "$@"
"""
    )
    program.chmod(0o755)
    (target / "terraform.rc").write_text(
        f"""# Written by terraform/install.py.
provider_installation {{
  dev_overrides {{
    "{SOURCE}" = "{plugins}"
  }}
  direct {{}}
}}
"""
    )


def build_stubs(python: Path, out: Path) -> None:
    """Of the control plane's protos that are there; the provider offers what they have."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    root = ROOT / "protos"
    files = [root / "cellpay" / f"{name}.proto" for name in STUBS]
    command = [str(python), "-m", "grpc_tools.protoc", f"-I{root}"]
    command += [f"--python_out={out}", f"--grpc_python_out={out}"]
    subprocess.run([*command, *(str(path) for path in files if path.exists())], check=True)
    for folder in (out / "cellpay", out / "cellpay/control", out / "cellpay/control/v1"):
        (folder / "__init__.py").touch()


if __name__ == "__main__":
    install(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / ".venv-terraform").resolve())
