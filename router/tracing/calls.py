"""What a gRPC call brings to its trace, and what its span says of it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from router.ids import kind_of_id
from router.tracing.rules import TRACEPARENT

# Fields that hold IDs which Cellpay minted. A caller may put anything there: what is none of ours
# is not told.
_ID_FIELDS = (
    "order_id", "payment_id", "refund_id", "transfer_id", "charge_id", "payout_id", "event_id",
    "delivery_id", "account_id",
)  # fmt: skip


def traceparent_of(context: Any) -> str:
    """The caller's; empty when it sent none."""
    for key, value in context.invocation_metadata() or ():
        if key == TRACEPARENT:
            return value if isinstance(value, str) else ""
    return ""


def attributes_of(name: str, code: str, *messages: Any) -> dict[str, Any]:
    """Of a call that is kept: `name` is service and method."""
    service, _, method = name.rpartition("/")
    said: dict[str, Any] = {
        "rpc.system": "grpc",
        "rpc.service": service,
        "rpc.method": method,
        "rpc.grpc.status_code": code,
    }
    for message in messages:
        for field, attribute in _id_fields(getattr(message, "DESCRIPTOR", None)):
            value = getattr(message, field)
            if value and _is_minted(value):
                said[attribute] = value
    return said


@lru_cache(maxsize=512)
def _id_fields(of: Any) -> tuple[tuple[str, str], ...]:
    """What a message has of them, by its descriptor, and what it is called in a span."""
    known = of.fields_by_name if of is not None else ()
    return tuple((field, f"cellpay.{field}") for field in _ID_FIELDS if field in known)


def _is_minted(value: Any) -> bool:
    try:
        kind_of_id(value)
    except (ValueError, TypeError, AttributeError):
        return False
    return True
