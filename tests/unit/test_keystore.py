"""The local KMS: a file of its owner alone, in versions, and what it refuses."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from cells.vault import keystore
from cells.vault.keystore import LocalKeystore, open_kms
from cells.vault.kms import Kms, KmsFault, KmsRefused, Wrapped


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "keys" / "master.json"
    keystore.create(found)
    return found


async def test_what_is_wrapped_unwraps_for_the_same_context_alone(path: Path) -> None:
    kms = LocalKeystore(path)
    wrapped = await kms.wrap(b"key", b"here")
    assert b"key" not in wrapped.data
    assert await LocalKeystore(path).unwrap(wrapped, b"here") == b"key"
    with pytest.raises(KmsRefused):
        await kms.unwrap(wrapped, b"there")
    for place in range(len(wrapped.data)):
        data = bytearray(wrapped.data)
        data[place] ^= 1
        with pytest.raises(KmsRefused):
            await kms.unwrap(Wrapped(wrapped.version, bytes(data)), b"here")


async def test_a_running_process_sees_a_new_version_and_opens_the_old(path: Path) -> None:
    kms = LocalKeystore(path)
    before = await kms.wrap(b"key", b"")
    assert keystore.rotate(path) == "2"
    assert await kms.current_version() == "2"
    assert await kms.unwrap(before, b"") == b"key"
    after = await kms.wrap(b"key", b"")
    keystore.retire(path, "1")
    assert await kms.unwrap(after, b"") == b"key"
    with pytest.raises(KmsFault, match="no version 1"):
        await kms.unwrap(before, b"")


def test_the_current_key_is_never_retired_and_a_keystore_never_replaced(path: Path) -> None:
    with pytest.raises(KmsFault):
        keystore.retire(path, "1")
    content = path.read_bytes()
    keystore.create(path)
    assert path.read_bytes() == content


def test_it_is_its_owners_alone(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    keystore.rotate(path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(KmsFault, match="open to others"):
        asyncio.run(LocalKeystore(path).current_version())


@pytest.mark.parametrize(("mode", "is_read"), [(0o440, True), (0o444, False), (0o460, False)])
def test_what_is_mounted_is_anothers_and_may_be_read_by_the_group(
    path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, is_read: bool
) -> None:
    """As Kubernetes mounts a Secret under a pod's `fsGroup`."""
    path.chmod(mode)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    if is_read:
        assert asyncio.run(LocalKeystore(path).current_version())
        return
    with pytest.raises(KmsFault, match="open to others"):
        asyncio.run(LocalKeystore(path).current_version())


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"current": "1", "keys": 5}', b"\xff"])
def test_a_broken_keystore_says_so_and_quotes_nothing(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(KmsFault, match="no keystore"):
        asyncio.run(LocalKeystore(path).current_version())


def test_a_key_that_cannot_be_read_is_not_quoted(path: Path) -> None:
    path.write_text('{"current": "1", "keys": {"1": {"CANARY": 5}}}')
    with pytest.raises(KmsFault) as caught:
        asyncio.run(LocalKeystore(path).wrap(b"", b""))
    assert "CANARY" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_without_a_keystore_the_vault_is_shut() -> None:
    kms: Kms = open_kms("")
    for call in (kms.current_version(), kms.wrap(b"", b""), kms.unwrap(Wrapped("", b""), b"")):
        with pytest.raises(KmsFault, match="no keystore"):
            await call
