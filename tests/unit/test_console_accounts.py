"""Accounts of the console: where they lie, and who may sign in by them."""

from __future__ import annotations

from pathlib import Path

import pytest

from control.cellctl.console.accounts import (
    ACCOUNTS_VARIABLE,
    BadAccount,
    add_account,
    check_password,
    read_accounts,
)

PASSWORD = "correct horse battery"


def test_an_account_lies_beside_the_mesh_readable_by_nobody_else(tmp_path: Path) -> None:
    add_account(tmp_path, "ann", "ann", PASSWORD)
    file = tmp_path / "console" / "accounts.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert PASSWORD not in file.read_text()
    found = check_password(read_accounts(tmp_path), "ann", PASSWORD)
    assert found is not None
    assert found.identity == "ann"
    assert check_password(read_accounts(tmp_path), "ann", PASSWORD + "x") is None
    assert check_password(read_accounts(tmp_path), "bob", PASSWORD) is None


def test_an_account_lies_where_it_may_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = tmp_path / "mesh"
    mesh.mkdir(mode=0o500)
    monkeypatch.setenv(ACCOUNTS_VARIABLE, str(tmp_path / "run" / "accounts.json"))
    add_account(mesh, "ann", "operator", PASSWORD)
    assert list(read_accounts(mesh)) == ["ann"]
    assert not list(mesh.iterdir())


@pytest.mark.parametrize(
    ("name", "password"), [("ann", "short"), ("", PASSWORD), ("a\n", PASSWORD)]
)
def test_what_is_no_account_is_not_made(tmp_path: Path, name: str, password: str) -> None:
    with pytest.raises(BadAccount):
        add_account(tmp_path, name, "operator", password)
    assert read_accounts(tmp_path) == {}
