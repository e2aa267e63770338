"""Who may sign in: local accounts for development, by scrypt (RFC 7914); elsewhere OpenID Connect.

An account is a name, a password's hash and an identity: the certificate of the mesh that acts for
whoever signs in as it. Roles are the control plane's, by that identity.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

# RFC 7914's interactive parameters with a larger n: about 60 ms and 32 MiB.
_N, _R, _P = 2**15, 8, 1
_MEMORY_MAX = 64 * 1024 * 1024
PASSWORD_MIN = 12


ACCOUNTS_VARIABLE = "CELLPAY_CONSOLE_ACCOUNTS"


class BadAccount(ValueError):
    """An account that cannot be made, and why."""


@dataclass(frozen=True, slots=True)
class Account:
    name: str
    identity: str
    salt: str
    digest: str


def _file(data: Path) -> Path:
    """Beside the mesh's, or where the variable says: a mesh's directory may be only to read."""
    named = os.environ.get(ACCOUNTS_VARIABLE)
    return Path(named) if named else data / "console" / "accounts.json"


def read_accounts(data: Path) -> dict[str, Account]:
    try:
        found = json.loads(_file(data).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {item["name"]: Account(**item) for item in found}


def add_account(data: Path, name: str, identity: str, password: str) -> None:
    """Adds an account, or gives one a new password. Raises BadAccount."""
    if len(password) < PASSWORD_MIN:
        raise BadAccount(f"a password has at least {PASSWORD_MIN} characters")
    if not name or not name.isprintable() or len(name) > 64:
        raise BadAccount("a name has 1 to 64 characters")
    salt = secrets.token_bytes(16)
    made = Account(name, identity, _text(salt), _text(_digest(password, salt)))
    accounts = {**read_accounts(data), name: made}
    path = _file(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = json.dumps([asdict(account) for account in accounts.values()], indent=2)
    whole = path.with_suffix(".new")
    descriptor = os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(document)
    whole.replace(path)


def check_password(accounts: dict[str, Account], name: str, password: str) -> Account | None:
    """The account, if the password is its. A name that is unknown takes as long."""
    account = accounts.get(name, _NOBODY)
    digest = _digest(password, base64.b64decode(account.salt))
    same = hmac.compare_digest(digest, base64.b64decode(account.digest))
    return account if same and account is not _NOBODY else None


def _digest(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode("utf-8"), salt=salt, n=_N, r=_R, p=_P, maxmem=_MEMORY_MAX)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


_NOBODY = Account("", "", _text(bytes(16)), _text(bytes(64)))
