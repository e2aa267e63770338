"""What a rule may speak of: names and types. Every fact always has a value, so no rule can fail.

Types are CEL's (int is 64 bits, double is IEEE 754). Amounts are minor units, durations whole units
as named. What is not known is 0, -1 or empty, as each says.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

Value = int | float | bool | str


class Type(StrEnum):
    INT = "int"
    DOUBLE = "double"
    BOOL = "bool"
    STRING = "string"


# Features computed from the stream of events are beside these: `f.` and the feature's name.
FEATURE_PREFIX = "f."

# The model's, among the facts.
SCORE = "model.score"
NO_SCORE = -1.0

FACTS: Mapping[str, Type] = MappingProxyType(
    {
        # pay, transfer, withdraw, charge or payout.
        "operation": Type.STRING,
        "amount": Type.INT,
        # ISO 4217.
        "currency": Type.STRING,
        "user.id": Type.STRING,
        "user.account_age_days": Type.INT,
        # The balance before it, in minor units.
        "user.balance": Type.INT,
        # Who gets the money: a merchant, another user; empty for what leaves Cellpay.
        "payee.id": Type.STRING,
        "payee.is_merchant": Type.BOOL,
        # As the client said in its context; empty when it said nothing.
        "device.id": Type.STRING,
        "ip.address": Type.STRING,
        # ISO 3166, from the edge; empty when not known.
        "ip.country": Type.STRING,
        "card.token": Type.STRING,
        "card.scheme": Type.STRING,
        "card.country": Type.STRING,
        # UTC, of the database.
        "time.hour": Type.INT,
        # 0 is Monday.
        "time.weekday": Type.INT,
        # Whether the client has passed a challenge for this very request.
        "challenge.passed": Type.BOOL,
        # From 0 (honest) to 1 (fraud); -1 while there is no model.
        "model.score": Type.DOUBLE,
    }
)

NOTHING: Mapping[Type, Value] = MappingProxyType(
    {Type.INT: 0, Type.DOUBLE: 0.0, Type.BOOL: False, Type.STRING: ""}
)


def schema(features: Mapping[str, Type]) -> dict[str, Type]:
    """All names that rules may use, with the features of the day."""
    return {**FACTS, **{f"{FEATURE_PREFIX}{name}": kind for name, kind in features.items()}}
