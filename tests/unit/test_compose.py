"""deploy/compose: the Compose Specification's schema, and settings that the code reads.

Docker is not here: the file has been validated, not run.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cells.settings import read_settings as read_cell_settings
from control.access.rules import Role
from control.cellctl.places import REMOTE_FILE, read_remote
from control.etcd_users import read_settings as read_etcd_users
from control.mesh.ca import spiffe_id_of
from control.settings import read_settings as read_controller_settings
from router.identity import spiffe_id
from router.render import render

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "compose"
# Of github.com/compose-spec/compose-spec, Apache-2.0; the commit is in the folder's README.
SCHEMA = ROOT / "tests" / "vectors" / "compose" / "compose-spec.json"
CELLS = ("a", "b", "c")
# Its entrypoint begins as root and goes on as its own user.
AS_THEIR_OWN_USER = {"postgres", "prepare"}


@cache
def _compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    return document


def _services() -> dict[str, dict[str, Any]]:
    services: dict[str, dict[str, Any]] = _compose()["services"]
    return services


def test_it_fits_the_compose_specification() -> None:
    jsonschema.Draft7Validator(json.loads(SCHEMA.read_text())).validate(_compose())


def test_what_a_service_refers_to_is_there() -> None:
    compose = _compose()
    for name, service in _services().items():
        for other, how in service.get("depends_on", {}).items():
            waited_for = _services()[other]
            healthy = how["condition"] == "service_healthy"
            assert ("healthcheck" in waited_for) == healthy, (name, other)
        for secret in service.get("secrets", ()):
            assert secret in compose["secrets"], name
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            there = (FOLDER / source).exists() if source.startswith(".") else True
            assert source in compose["volumes"] or there, (name, source)
        assert service.get("network_mode") == "none" or "mesh" in service["networks"], name


def test_services_are_pinned_locked_down_and_closed_to_the_world() -> None:
    for name, service in _services().items():
        _, _, tag = service["image"].rpartition(":")
        assert tag, name
        assert "latest" not in tag, name
        if name not in AS_THEIR_OWN_USER:
            assert service["user"] == "10001:10001", name
            assert service["read_only"], name
            assert service["cap_drop"] == ["ALL"], name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name


def test_cells_have_addresses_of_their_own_that_they_announce() -> None:
    addresses = set()
    for cell in CELLS:
        service = _services()[f"cell-{cell}"]
        environment = service["environment"]
        assert environment["CELL"] == cell
        assert service["networks"]["mesh"]["ipv4_address"] == environment["ADDRESS"]
        assert _services()[f"relay-{cell}"]["environment"] == environment
        addresses.add((environment["ADDRESS"], environment["REDIS_DATABASE"]))
    assert len(addresses) == len(CELLS)


def _read_here(name: str, folder: Path) -> Path:
    """The settings with the paths of a container moved to where the test may write."""
    text = (FOLDER / "settings" / name).read_text()
    path = folder / name
    path.write_text(text.replace("/run/secrets/database", str(folder / "password")))
    return path


@pytest.mark.parametrize("cell", CELLS)
def test_settings_are_what_the_code_reads(
    cell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "password").write_text("secret\n")
    for name, value in _services()[f"cell-{cell}"]["environment"].items():
        monkeypatch.setenv(name, value)
    settings = read_cell_settings(_read_here("cell.json", tmp_path))
    assert settings.database_url == "postgresql+asyncpg://cellpay:secret@postgres:5432/cellpay"
    assert settings.redis_url.startswith(f"rediss://redis:6379/{'abc'.index(cell)}?")
    grace = _services()[f"cell-{cell}"]["stop_grace_period"]
    leaving = settings.leaving
    assert int(grace.removesuffix("s")) > leaving.grace_s + leaving.empty_max_s
    controller = read_controller_settings(_read_here("controller.json", tmp_path))
    assert controller.cells[cell] == settings.region
    assert controller.role_bindings == {spiffe_id("operator", "operator"): list(Role)}
    client = render("client", _read_here("xds.json", tmp_path))
    assert client["node"]["id"] == f"cell-{cell}"
    edge = render("edge", _read_here("edge.json", tmp_path))
    assert edge["static_resources"]["listeners"]


def test_etcds_users_are_the_names_of_certificates() -> None:
    settings = read_etcd_users(FOLDER / "settings" / "etcd-users.json")
    names = {*settings.users.controllers, *settings.users.cells, *settings.users.operators}
    prepared = (FOLDER / "prepare.py").read_text()
    for name in names - {f"cell-{cell}" for cell in CELLS}:
        assert f'"{name}": (' in prepared
    assert settings.users.cells == {f"cell-{cell}": cell for cell in CELLS}
    assert settings.tls.certificate.endswith("/root.pem")


def test_cellctl_is_told_where_everything_is(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    folder = _read_here(REMOTE_FILE, tmp_path).parent
    remote = read_remote(folder)
    assert remote is not None
    assert set(remote.probes) == set(CELLS)
    assert remote.database_url == "postgresql+asyncpg://cellpay:secret@postgres:5432/cellpay"
    controller = read_controller_settings(_read_here("controller.json", tmp_path))
    port = controller.listen.rpartition(":")[2]
    assert remote.control == f"controller:{port}"
    assert remote.edge.partition(":")[2] == controller.edge_listen.rpartition(":")[2]
    assert remote.etcd == controller.etcd
    for address in (remote.control, remote.edge, remote.http, remote.etcd, *remote.probes.values()):
        assert address.partition(":")[0] in _services(), address
    service = _services()["cellctl"]
    assert service["profiles"], "who brings all up does not wait for it"
    assert f"{service['environment']['CELLPAY_DATA']}:ro" in service["volumes"][1]


def test_everything_that_settings_name_is_prepared(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("prepare", FOLDER / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules.pop("prepare", None)
    module.prepare(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    module.prepare(tmp_path)
    assert {path: path.read_bytes() for path in before} == before, "it is repeatable"
    texts = [(FOLDER / "compose.yaml").read_text()]
    texts += [path.read_text() for path in (FOLDER / "settings").iterdir()]
    for text in texts:
        for cell in CELLS:
            for word in text.replace("${CELL}", cell).replace('"', " ").split():
                named = word.partition("=")[2] or word
                if named.startswith("/data/") and named.endswith((".pem", ".key", "master.json")):
                    assert (tmp_path / named.removeprefix("/data/")).exists(), named
    assert spiffe_id_of(tmp_path / "tls" / "cell-b.pem") == "spiffe://cellpay.local/cell/b"
