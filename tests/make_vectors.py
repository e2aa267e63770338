"""Writes router/testdata/vectors.json, the test vectors of slots and IDs for any language.

    python tests/make_vectors.py

Once published, a vector never changes: a change here would send users to other slots.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zlib import crc32

from router.ids import (
    Kind,
    account_id,
    clearing_account_id,
    collection_account_id,
    external_account_id,
    mint,
)
from router.slots import slot_of_user

PATH = Path(__file__).parents[1] / "router" / "testdata" / "vectors.json"

_USERS = [
    "a", "alice", "Alice", "merchant-42", "0", "1", "123456789", "user with spaces", "x" * 64,
    # One letter, written as one code point and as two: two users.
    "caf\u00e9", "cafe\u0301", "Zoë", "Ωmega", "пользователь", "用户", "ユーザー", "مستخدم",
    # Beyond the basic plane: four bytes of UTF-8 each, a joined family, a flag.
    "🙂", "💸💸", "👩‍👩‍👧‍👦", "🇺🇳", "\U0001d4b3",
]  # fmt: skip
_MINTED = [
    (Kind.PAYMENT, 0, 0, 0),
    (Kind.PAYMENT, 1023, 2**48 - 1, 2**80 - 1),
    (Kind.ORDER, 31, 1_700_000_000_000, 1),
    (Kind.REFUND, 32, 1_700_000_000_000, 2**79),
    (Kind.TRANSFER, 511, 1_767_225_600_000, 0x0123456789ABCDEF0123),
    (Kind.MOVEMENT, 512, 1, 0xFFFFFFFFFF),
    (Kind.EVENT, 7, 1_767_225_600_001, 0xDEADBEEFDEADBEEFDEAD),
]
_ACCOUNTS = [
    ("alice", "USD"), ("alice", "JPY"), ("merchant-42", "USD"), ("caf\u00e9", "EUR"),
    ("🙂", "USD"),
]  # fmt: skip
_COLLECTIONS = [(0, "merchant-42", "USD"), (1023, "用户", "CNY"), (7, "merchant-42", "USD")]
_OF_SLOTS = [(0, "USD"), (31, "USD"), (1023, "JPY")]


def vectors() -> dict[str, Any]:
    users = [
        {
            "user_id": user,
            "utf8_hex": user.encode().hex(),
            "crc32": crc32(user.encode()),
            "slot": slot_of_user(user),
        }
        for user in _USERS
    ]
    minted = [
        {
            "kind": str(kind),
            "slot": slot,
            "unix_ms": unix_ms,
            # Hexadecimal: 80 bits do not fit the numbers of every language.
            "random_80_hex": f"{random_80:020x}",
            "id": mint(kind, slot, unix_ms=unix_ms, random_80=random_80),
        }
        for kind, slot, unix_ms, random_80 in _MINTED
    ]
    derived = [
        {"parts": ["balance", user, currency], "slot": slot_of_user(user),
         "id": account_id(user, currency)}
        for user, currency in _ACCOUNTS
    ]  # fmt: skip
    derived += [
        {"parts": ["collection", merchant, currency], "slot": slot,
         "id": collection_account_id(slot, merchant, currency)}
        for slot, merchant, currency in _COLLECTIONS
    ]  # fmt: skip
    for slot, currency in _OF_SLOTS:
        for purpose, make in (("clearing", clearing_account_id), ("external", external_account_id)):
            derived.append(
                {"parts": [purpose, str(slot), currency], "slot": slot, "id": make(slot, currency)}
            )
    return {"users": users, "minted": minted, "derived_accounts": derived}


def render() -> str:
    return json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
    print(f"wrote {PATH}")
