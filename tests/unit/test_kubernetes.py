"""What deploy/kubernetes makes for each region: valid, locked down, and in tune with the code.

Offline: `kubectl kustomize` builds, kubernetes-validate knows the schemas.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from cells.crew import Role
from cells.serve import port_of
from cells.settings import CellSettings
from cells.settings import read_settings as read_cell_settings
from control.access.rules import Role as AccessRole
from control.cellctl.places import read_remote
from control.etcd_users import read_settings as read_etcd_users
from control.operations.cells import OPTIONS as CELL_CALLS
from control.settings import read_settings as read_controller_settings
from router.identity import spiffe_id
from router.render import render

ROOT = Path(__file__).parents[2] / "deploy" / "kubernetes"
CODE = Path(__file__).parents[2]
USERS = CODE / "deploy" / "cockroachdb" / "users.sql"
REGIONS = ("region-a", "region-b", "region-c")
# Jobs that go before, each by itself.
FIRST = ("migrate", "etcd-users")
# Of whoever operates: a namespace of its own, in each region.
OPERATORS = "operators"
SCHEMAS = "1.33"
# Kinds that the platform brings: cert-manager, KEDA, the Prometheus operator.
OTHERS = ("cert-manager.io", "keda.sh", "monitoring.coreos.com")
pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl builds the overlays; it is not here"
)


@cache
def _built(region: str) -> list[dict[str, Any]]:
    folder = ROOT / OPERATORS if region == OPERATORS else ROOT / "overlays" / region
    folders = [folder] if region == OPERATORS else [*(ROOT / name for name in FIRST), folder]
    found: list[dict[str, Any]] = []
    for part in folders:
        command = ["kubectl", "kustomize", str(part)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        assert not done.stderr
        found += [document for document in yaml.safe_load_all(done.stdout) if document]
    return found


def _of(region: str, kind: str) -> list[dict[str, Any]]:
    return [document for document in _built(region) if document["kind"] == kind]


def _pods(region: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, labels and spec of each pod template."""
    for document in _built(region):
        template = document.get("spec", {}).get("template")
        if template:
            yield document["metadata"]["name"], template["metadata"]["labels"], template["spec"]


each_region = pytest.mark.parametrize("region", REGIONS)
each_part = pytest.mark.parametrize("region", [*REGIONS, OPERATORS])


@each_part
def test_every_document_fits_its_schema(region: str) -> None:
    for document in _built(region):
        if document["apiVersion"].startswith(OTHERS):
            # No schema of Kubernetes' own; what matters of them is tested below.
            continue
        kubernetes_validate.validate(document, SCHEMAS, strict=True)


@each_part
def test_pods_are_locked_down(region: str) -> None:
    (namespace,) = _of(region, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pods = list(_pods(region))
    assert len(pods) == (1 if region == OPERATORS else 10)
    for name, _, spec in pods:
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            locked = container["securityContext"]
            assert locked["allowPrivilegeEscalation"] is False, name
            assert locked["readOnlyRootFilesystem"] is True, name
            assert locked["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name
            assert container["resources"]["requests"]["cpu"], name
            image, _, tag = container["image"].rpartition(":")
            assert "/" in image, name
            assert tag not in {"", "latest"}, name


@each_region
def test_what_runs_for_long_is_probed(region: str) -> None:
    for name, _, spec in _pods(region):
        if name in FIRST:
            continue
        for container in spec["containers"]:
            assert "livenessProbe" in container, name
            ports = {port["name"] for port in container["ports"]}
            for kind in ("livenessProbe", "readinessProbe", "startupProbe"):
                probe = container.get(kind)
                if probe:
                    asked = probe.get("httpGet") or probe["tcpSocket"]
                    assert asked["port"] in ports, name


@each_region
def test_what_may_not_go_at_once_has_a_budget(region: str) -> None:
    budgets = {
        item["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"]
        for item in _of(region, "PodDisruptionBudget")
    }
    # Redis can be lost, jobs are over soon.
    pods = {labels["app.kubernetes.io/name"] for _, labels, _ in _pods(region)}
    assert budgets == pods - {"redis", *FIRST}


@each_region
def test_the_network_is_closed_but_for_what_each_needs(region: str) -> None:
    policies = {item["metadata"]["name"]: item["spec"] for item in _of(region, "NetworkPolicy")}
    assert policies["default-deny"] == {
        "podSelector": {}, "policyTypes": ["Ingress", "Egress"],
    }  # fmt: skip
    for name, labels, spec in _pods(region):
        app = labels["app.kubernetes.io/name"]
        own = policies[app]
        assert own["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": app}
        listened = {
            port["containerPort"]
            for container in spec["containers"]
            for port in container.get("ports", ())
            if "probes" not in port["name"]
        }
        opened = {port["port"] for rule in own.get("ingress", ()) for port in rule.get("ports", ())}
        assert opened <= listened, name
    # A merchant's webhook or a bank is outside; nothing private is.
    world = [
        block["ipBlock"]
        for rule in policies["cell"]["egress"]
        for block in rule["to"]
        if block.get("ipBlock", {}).get("cidr") == "0.0.0.0/0"
    ]
    assert "169.254.0.0/16" in world[0]["except"]


@each_part
def test_pods_refer_only_to_what_is_there(region: str) -> None:
    config_maps = {item["metadata"]["name"] for item in _of(region, "ConfigMap")}
    secrets = {item["spec"]["secretName"] for item in _of(region, "Certificate")}
    accounts = {item["metadata"]["name"] for item in _of(region, "ServiceAccount")}
    for name, _, spec in _pods(region):
        assert spec["serviceAccountName"] in accounts
        for volume in spec["volumes"]:
            if "configMap" in volume:
                assert volume["configMap"]["name"] in config_maps, name
            if "secret" in volume:
                secret = volume["secret"]
                assert secret.get("optional") or secret["secretName"] in secrets, name
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            for source in container.get("envFrom", ()):
                assert source["configMapRef"]["name"] in config_maps, name


@each_region
def test_certificates_carry_the_identities_that_the_code_pins(region: str) -> None:
    cell = region.removeprefix("region-")
    uris = {
        item["metadata"]["name"]: item["spec"].get("uris") for item in _of(region, "Certificate")
    }
    assert uris["cell"] == [spiffe_id("cell", cell)]
    assert uris["controller"] == [spiffe_id("controller", cell)]
    assert uris["edge"] == [spiffe_id("edge", "edge")]


def test_an_operator_stands_where_controllers_let_him_in(tmp_path: Path) -> None:
    (namespace,) = _of(OPERATORS, "Namespace")
    policies = {item["metadata"]["name"]: item["spec"] for item in _of("region-a", "NetworkPolicy")}
    allowed = [
        source["namespaceSelector"]["matchLabels"]
        for rule in policies["controller"]["ingress"]
        for source in rule["from"]
        if "namespaceSelector" in source
    ]
    labels = namespace["metadata"]["labels"].items()
    assert any(wanted.items() <= labels for wanted in allowed)
    _settings(OPERATORS, "mesh", tmp_path)
    remote = read_remote(tmp_path)
    assert remote is not None
    (service,) = [
        item for item in _of("region-a", "Service") if item["metadata"]["name"] == "controller"
    ]
    (port,) = service["spec"]["ports"]
    assert remote.control == f"controller.cellpay.svc:{port['port']}"
    names = {
        item["metadata"]["name"]: item["spec"].get("dnsNames", ())
        for item in _of("region-a", "Certificate")
    }
    assert remote.control.partition(":")[0] in names["controller"]
    assert remote.etcd.partition(":")[0] in names["etcd"]
    database = urlsplit(remote.database_url)
    assert database.hostname in names["cockroachdb"]
    ways = {
        port["port"] for item in _of(OPERATORS, "NetworkPolicy")
        for rule in item["spec"]["egress"] for port in rule["ports"]
    }  # fmt: skip
    nats = urlsplit(remote.nats_url)
    assert nats.hostname in names["nats"]
    assert {port["port"], database.port, nats.port, int(remote.etcd.partition(":")[2])} <= ways


def test_an_operator_is_known_to_controllers_and_the_auditor_to_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = {item["metadata"]["name"]: item["spec"] for item in _of(OPERATORS, "Certificate")}
    _cell_settings("region-a", tmp_path, monkeypatch)
    bound = read_controller_settings(tmp_path / "controller.json").role_bindings
    (operator,) = of["operator"]["uris"]
    assert set(bound[operator]) == set(AccessRole)
    _settings(OPERATORS, "mesh", tmp_path)
    remote = read_remote(tmp_path)
    assert remote is not None
    assert urlsplit(remote.database_url).username == of["auditor"]["commonName"]
    (pod,) = _pods(OPERATORS)
    environment = {item["name"]: item["value"] for item in pod[2]["containers"][0]["env"]}
    mounts = {item["mountPath"]: item["name"] for item in pod[2]["containers"][0]["volumeMounts"]}
    secrets = {item["name"]: item["secret"]["secretName"] for item in pod[2]["volumes"]
               if "secret" in item}  # fmt: skip
    for path, certificate in ((environment["PGSSLCERT"], "auditor"), (remote.tls.key, "operator")):
        folder = path.rpartition("/")[0]
        assert secrets[mounts[folder]] == of[certificate]["secretName"]
    assert environment["CELLPAY_DATA"] in mounts


@each_region
def test_etcd_knows_each_by_its_certificates_common_name(
    region: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = region.removeprefix("region-")
    names = {
        item["spec"]["secretName"]: item["spec"]["commonName"]
        for item in (*_of(region, "Certificate"), *_of(OPERATORS, "Certificate"))
    }
    _settings(region, "etcd-users-settings", tmp_path)
    users = read_etcd_users(tmp_path / "etcd-users.json").users
    assert users.cells[names["cell-etcd-tls"]] == cell
    assert names["controller-tls"] in users.controllers
    assert names["operator-tls"] in users.operators
    assert names["etcd-root-tls"] == "root"
    settings = _cell_settings(region, tmp_path, monkeypatch)
    assert settings.etcd_tls is not None
    for name, labels, spec in _pods(region):
        if labels["app.kubernetes.io/name"] == "cell":
            secrets = {
                item["name"]: item["secret"]["secretName"]
                for item in spec["volumes"]
                if "secret" in item
            }
            for container in spec["containers"]:
                mounts = {item["mountPath"]: item["name"] for item in container["volumeMounts"]}
                folder = settings.etcd_tls.key.rpartition("/")[0]
                assert secrets[mounts[folder]] == "cell-etcd-tls", name


@each_region
def test_the_database_knows_each_by_its_certificates_common_name(region: str) -> None:
    names = {
        item["spec"]["secretName"]: item["spec"]["commonName"]
        for item in _of(region, "Certificate")
    }
    users = set(re.findall(r"CREATE USER IF NOT EXISTS (\w+)", USERS.read_text()))
    for name, _, spec in _pods(region):
        for container in spec["containers"]:
            environment = {item["name"]: item.get("value") for item in container.get("env", ())}
            if "PGSSLCERT" in environment:
                (secret,) = [
                    volume["secret"]["secretName"]
                    for volume in spec["volumes"]
                    if volume["name"] == "tls"
                ]
                assert names[secret] in users, name
                assert environment["PGSSLCERT"] == "/run/tls/tls.crt"
    (job,) = [item for item in _of(region, "Job") if item["metadata"]["name"] == "migrate"]
    url = job["spec"]["template"]["spec"]["containers"][0]["args"][-1]
    assert url.startswith("cockroachdb+asyncpg://migrate@")


def _settings(region: str, prefix: str, into: Path) -> None:
    for item in _of(region, "ConfigMap"):
        if item["metadata"]["name"].startswith(prefix):
            for name, text in item["data"].items():
                (into / name).write_text(text, encoding="utf-8")


def _cell_settings(region: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CellSettings:
    (values,) = [item for item in _of(region, "ConfigMap") if item["metadata"]["name"] == "region"]
    for name, value in {**values["data"], "POD_IP": "10.1.2.3", "POD_NAME": "pod-0"}.items():
        monkeypatch.setenv(name, value)
    for prefix in ("cell-settings", "controller-settings", "edge-settings"):
        _settings(region, prefix, tmp_path)
    return read_cell_settings(tmp_path / "cell.json")


@each_region
def test_settings_are_what_the_code_reads(
    region: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = _cell_settings(region, tmp_path, monkeypatch)
    assert cell.nats_url.startswith("tls://")
    assert cell.nats_tls is not None
    assert "ssl_ca_certs" in cell.redis_url
    assert (cell.cell, cell.region) == (region.removeprefix("region-"), region)
    assert cell.listen == "10.1.2.3:7400"
    assert cell.database_url.startswith("cockroachdb+asyncpg://cell@")
    assert cell.database_url.endswith("?ssl=verify-full")
    assert len(cell.etcd.split(",")) == 3
    controller = read_controller_settings(tmp_path / "controller.json")
    assert controller.cells == {"a": "region-a", "b": "region-b", "c": "region-c"}
    client = render("client", tmp_path / "xds.json")
    assert client["node"]["id"] == f"cell-{cell.cell}"
    edge = render("edge", tmp_path / "edge.json")
    listeners = edge["static_resources"]["listeners"]
    assert listeners[0]["address"]["socket_address"]["port_value"] == 8444
    json.dumps(edge)


@each_region
def test_every_process_of_a_cell_can_be_reached(
    region: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _cell_settings(region, tmp_path, monkeypatch)
    most = max(settings.workers, settings.elasticity.workers_max)
    roles = [Role(tmp_path), *(Role(tmp_path, "cell", -1, number) for number in range(1, most))]
    ports = [port_of(settings, role) for role in roles]
    assert len(set(ports)) == len(ports)
    for policy in _of(region, "NetworkPolicy"):
        rules = [*policy["spec"].get("ingress", ()), *policy["spec"].get("egress", ())]
        for port in (port for rule in rules for port in rule["ports"]):
            if port["port"] == 7400:
                assert set(ports) <= set(range(7400, port["endPort"] + 1))


@each_region
def test_a_cell_has_the_name_that_controllers_call_it_by(region: str) -> None:
    (cell,) = [item for item in _of(region, "Certificate") if item["metadata"]["name"] == "cell"]
    assert dict(CELL_CALLS)["grpc.ssl_target_name_override"] in cell["spec"]["dnsNames"]


@each_region
def test_redis_forgets_nothing_by_itself(region: str) -> None:
    (redis,) = [spec for name, _, spec in _pods(region) if name == "redis"]
    arguments = redis["containers"][0]["args"]
    assert arguments[arguments.index("--maxmemory-policy") + 1] == "noeviction"


@each_region
def test_processes_come_by_a_metric_that_cells_tell(region: str) -> None:
    cell = region.removeprefix("region-")
    told = (CODE / "cells" / "metrics.py").read_text()
    (scaled,) = _of(region, "ScaledObject")
    queries = [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]
    assert len(queries) == 2
    for query in queries:
        (name,) = re.findall(r"\bcellpay_[a-z_]+", query)
        assert f'"{name.removesuffix("_total")}"' in told
        assert f'cell="{cell}"' in query
    target = scaled["spec"]["scaleTargetRef"]
    (deployment,) = [
        item for item in _of(region, "Deployment") if item["metadata"]["name"] == target["name"]
    ]
    # Each apply would set it back.
    assert "replicas" not in deployment["spec"]
    assert "--join" in deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    (monitor,) = [item for item in _of(region, "PodMonitor") if item["metadata"]["name"] == "cell"]
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert wanted <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert monitor["spec"]["podMetricsEndpoints"][0]["relabelings"] == [
        {"targetLabel": "cell", "replacement": cell}
    ]


@each_region
def test_a_pod_is_given_the_time_that_its_settings_take_to_leave(
    region: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = _cell_settings(region, tmp_path, monkeypatch)
    grace_s = {
        name: spec["terminationGracePeriodSeconds"]
        for name, labels, spec in _pods(region)
        if labels["app.kubernetes.io/name"] == "cell"
    }
    leaving = cell.leaving
    assert leaving.grace_s > 0
    assert grace_s["cell"] > leaving.grace_s + leaving.empty_max_s + cell.lease_ttl_s
    assert grace_s["cell-more"] > cell.elasticity.leave_max_s + cell.lease_ttl_s
    # A charge waits for its bank.
    assert leaving.empty_max_s > cell.banking.wait_max_s + cell.banking.answer_timeout_s
    assert cell.elasticity.workers_max >= cell.workers


def test_pods_of_a_cell_are_selected_by_one_owner_each() -> None:
    selectors = [
        item["spec"]["selector"]["matchLabels"]
        for kind in ("StatefulSet", "Deployment")
        for item in _of("region-a", kind)
    ]
    for one in selectors:
        others = [other for other in selectors if other is not one]
        assert not any(one.items() <= other.items() for other in others), one


def test_regions_differ_only_in_their_names() -> None:
    texts = set()
    for region in REGIONS:
        text = json.dumps(_built(region))
        # Lists of all regions' members stand in each; the region's own name is what differs.
        for item in _built(region):
            if item["kind"] == "ConfigMap":
                text = text.replace(json.dumps(item), "")
        cell = region.removeprefix("region-")
        text = text.replace(region, "region")
        for named in (
            f"/cell/{cell}", f"/controller/{cell}", f'"commonName": "cell-{cell}"',
            f'cell=\\"{cell}\\"', f'"replacement": "{cell}"',
        ):  # fmt: skip
            text = text.replace(named, "")
        texts.add(text)
    assert len(texts) == 1
