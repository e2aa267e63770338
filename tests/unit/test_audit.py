"""The audit of dependencies against a copy of OSV's advisories, and its honesty without one."""

from __future__ import annotations

import importlib.util
import json
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parents[2] / "deploy" / "supply" / "audit.py"


def _loaded() -> Any:
    spec = importlib.util.spec_from_file_location("cellpay_audit", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses look for it.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


AUDIT = _loaded()


def advisory(name: str, *events: dict[str, str], **more: Any) -> dict[str, Any]:
    affected: dict[str, Any] = {"package": {"ecosystem": "PyPI", "name": name}}
    if events:
        affected["ranges"] = [{"type": "ECOSYSTEM", "events": list(events)}]
    affected["versions"] = more.pop("versions", [])
    return {"id": f"TEST-{name}", "affected": [affected], **more}


def copy_of(path: Path, *advisories: dict[str, Any]) -> Path:
    with zipfile.ZipFile(path / "all.zip", "w") as archive:
        for number, item in enumerate(advisories):
            archive.writestr(f"{number}.json", json.dumps(item))
    return path / "all.zip"


@pytest.mark.parametrize(
    ("version", "events", "within"),
    [
        ("1.9", [{"introduced": "0"}, {"fixed": "2.0"}], True),
        ("2.0", [{"introduced": "0"}, {"fixed": "2.0"}], False),
        ("2.0rc1", [{"introduced": "0"}, {"fixed": "2.0"}], True),
        ("2.0", [{"introduced": "1.5"}, {"last_affected": "2.0"}], True),
        ("2.0.1", [{"introduced": "1.5"}, {"last_affected": "2.0"}], False),
        ("1.4", [{"introduced": "1.5"}], False),
        ("10.0", [{"introduced": "9.0"}], True),
        ("3.1", [{"introduced": "0"}, {"fixed": "2"}, {"introduced": "3"}, {"fixed": "3.2"}], True),
        (
            "2.5",
            [{"introduced": "0"}, {"fixed": "2"}, {"introduced": "3"}, {"fixed": "3.2"}],
            False,
        ),
    ],
)
def test_a_version_is_within_what_osv_says(
    version: str, events: list[dict[str, str]], within: bool
) -> None:
    assert AUDIT.is_within(version, events) is within


def test_what_is_known_of_what_is_installed_is_found(tmp_path: Path) -> None:
    path = copy_of(
        tmp_path,
        advisory("Some.Package", {"introduced": "0"}, {"fixed": "2.0"}),
        advisory("listed", versions=["1.0"]),
        advisory("not-here", {"introduced": "0"}),
        advisory("taken-back", {"introduced": "0"}, withdrawn="2026-01-01T00:00:00Z"),
        {"id": "TEST-go", "affected": [{"package": {"ecosystem": "Go", "name": "listed"}}]},
    )
    installed = {"some-package": "1.9", "listed": "1.0", "taken-back": "1.0"}
    findings, count = AUDIT.by_copy(installed, path)
    assert count == 5
    assert [(item.name, item.advisory, item.fixed_in) for item in findings] == [
        ("listed", "TEST-listed", ""),
        ("some-package", "TEST-Some.Package", "2.0"),
    ]


def test_what_is_installed_here_is_looked_at() -> None:
    found = AUDIT.installed(sysconfig.get_path("purelib"))
    assert {"grpcio", "protobuf", "sqlalchemy"} <= set(found)
    # A link to our own sources is not somebody else's package.
    assert "cellpay" not in found


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_no_copy_is_no_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    path = tmp_path / "all.zip"
    if content is None:
        copy_of(tmp_path)
    else:
        path.write_bytes(content)
    arguments = ["audit.py", sys.executable, "--advisories", str(path)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert AUDIT.main() == AUDIT.UNKNOWN


def test_an_audit_ends_as_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in (("grpcio", AUDIT.FOUND), ("not-here", AUDIT.CLEAN)):
        path = copy_of(tmp_path, advisory(name, {"introduced": "0"}))
        monkeypatch.setattr(sys, "argv", ["a", sys.executable, "--advisories", str(path)])
        assert AUDIT.main() == code
