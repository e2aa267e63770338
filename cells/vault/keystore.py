"""The KMS of a laptop: master keys in a file that only its owner reads.

python -m cells.vault.keystore create|rotate|show FILE
python -m cells.vault.keystore retire FILE VERSION

    {"current": "2", "keys": {"1": {…Tink's keyset…}, "2": {…}}}

Every cell of the mesh reads the same file; in production a KMS that every region reaches takes its
place. Running cells see a new version when they look next: the file is read again when it changes.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tink
from tink import aead, secret_key_access

from cells.vault.kms import Kms, KmsFault, KmsRefused, NoKms, Wrapped

_TOKEN = secret_key_access.TOKEN
aead.register()


@dataclass(frozen=True, slots=True)
class _Keys:
    current: str
    documents: dict[str, Any]

    def primitive(self, version: str) -> Any:
        if version not in self.documents:
            raise KmsFault(f"the keystore has no version {version}")
        text = json.dumps(self.documents[version])
        try:
            handle = tink.json_proto_keyset_format.parse(text, _TOKEN)
            return handle.primitive(aead.Aead)
        except tink.TinkError:
            # Not `from`: the library's message may quote what it could not read.
            raise KmsFault(f"version {version} of the keystore cannot be read") from None


def _read(path: Path) -> _Keys:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read()
    except OSError as error:
        raise KmsFault(f"the keystore cannot be read: {error.strerror}") from None
    mode = status.st_mode & 0o777
    # What Kubernetes mounts is root's, and ours by the pod's own group.
    allowed = 0o700 if status.st_uid == os.geteuid() else 0o740
    if mode & ~allowed:
        raise KmsFault(f"the keystore is open to others (mode {mode:o}); chmod 600 it")
    try:
        document = json.loads(content)
        return _Keys(str(document["current"]), dict(document["keys"]))
    except (ValueError, KeyError, TypeError):
        raise KmsFault("the keystore holds something that is no keystore") from None


class LocalKeystore:
    """A Kms over such a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._keys = _Keys("", {})
        self._primitives: dict[str, Any] = {}

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
        except OSError as error:
            raise KmsFault(f"the keystore cannot be read: {error.strerror}") from None
        stamp = (status.st_mtime_ns, status.st_ino, status.st_mode)
        if stamp != self._stamp:
            self._keys = _read(self._path)
            self._primitives = {}
            self._stamp = stamp

    def _primitive(self, version: str) -> Any:
        if version not in self._primitives:
            self._primitives[version] = self._keys.primitive(version)
        return self._primitives[version]

    async def current_version(self) -> str:
        self._refresh()
        return self._keys.current

    async def wrap(self, key: bytes, context: bytes) -> Wrapped:
        self._refresh()
        version = self._keys.current
        return Wrapped(version, self._primitive(version).encrypt(key, context))

    async def unwrap(self, wrapped: Wrapped, context: bytes) -> bytes:
        self._refresh()
        try:
            key: bytes = self._primitive(wrapped.version).decrypt(wrapped.data, context)
        except tink.TinkError:
            raise KmsRefused("the wrapped key is not authentic") from None
        return key


def open_kms(keystore: str) -> Kms:
    return LocalKeystore(Path(keystore)) if keystore else NoKms()


def _new_key() -> Any:
    handle = tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM)
    return json.loads(tink.json_proto_keyset_format.serialize(handle, _TOKEN))


def create(path: Path) -> None:
    """A keystore with one key; one that is there stays as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        if not path.exists():
            _write(path, {"current": "1", "keys": {"1": _new_key()}})


def rotate(path: Path) -> str:
    """A new current key; older ones still unwrap. Returns its version."""
    with _locked(path):
        known = _read(path)
        version = str(max(map(int, known.documents)) + 1)
        _write(path, {"current": version, "keys": {**known.documents, version: _new_key()}})
    return version


def retire(path: Path, version: str) -> None:
    """Destroys an old key: what is still wrapped by it is lost (`cellctl vault keys` shows it)."""
    with _locked(path):
        known = _read(path)
        if version == known.current or version not in known.documents:
            raise KmsFault(f"version {version} is the current key, or none at all")
        left = {name: key for name, key in known.documents.items() if name != version}
        _write(path, {"current": known.current, "keys": left})


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two changes at once would lose a key."""
    with open(path.with_name(f".{path.name}.lock"), "a", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(path: Path, document: dict[str, Any]) -> None:
    """Whole or not at all, and on disk before anything is wrapped by it."""
    # mkstemp's files are their owner's alone.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            json.dump(document, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cells.vault.keystore")
    parser.add_argument("action", choices=("create", "rotate", "retire", "show"))
    parser.add_argument("file", type=Path)
    parser.add_argument("version", nargs="?", default="")
    given = parser.parse_args()
    try:
        match given.action:
            case "create":
                create(given.file)
            case "rotate":
                print(f"version {rotate(given.file)} is current")
            case "retire":
                retire(given.file, given.version)
            case "show":
                known = _read(given.file)
                for version in known.documents:
                    print(version, "current" if version == known.current else "old")
    except KmsFault as fault:
        raise SystemExit(str(fault)) from None


if __name__ == "__main__":
    main()
