"""What travels: JSON of a few fields, each of one type. Amounts are minor units, as numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cells.channels.model import BankAccount, Card, Request

BODY_BYTES_MAX = 64 * 1024

_Reference = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_-]*$")]
_Text = Annotated[str, Field(max_length=256)]


class Status(StrEnum):
    """What the clearing house says of a request."""

    APPROVED = "approved"
    DECLINED = "declined"
    # Its own fault or choice: no effect.
    FAILED = "failed"
    PENDING = "pending"
    # Approved, and undone since.
    REVERSED = "reversed"
    # Of a query: it has never seen the original, and will refuse it from now on.
    NOT_FOUND = "not_found"


class Told(BaseModel):
    """An answer, or a callback: what has become of `reference`."""

    # Fields that they add tomorrow are not ours to refuse; of those that we know, each is strict.
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    reference: _Reference
    status: Annotated[Status, Field(strict=False)]
    amount: Annotated[int, Field(ge=0, lt=2**63)]
    currency: Annotated[str, Field(max_length=3)]
    code: Annotated[str, Field(max_length=32)] = ""
    bank_reference: Annotated[str, Field(max_length=64)] = ""
    clearing_date: Annotated[str, Field(pattern=r"^(\d{4}-\d{2}-\d{2})?$")] = ""
    message: _Text = ""
    # Of a query's answer: the request that was asked about.
    original: _Reference = ""


class Malformed(ValueError):
    """Signed by them, and no message. Never quotes it."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Who we are to the clearing house."""

    participant: str
    # Where it sends what it says later; empty: nowhere, it is asked.
    callback_url: str = ""


def encode(request: Request, sender: Sender) -> bytes:
    """Raises ValueError for an instrument that it has no place for."""
    body: dict[str, object] = {
        "participant": sender.participant,
        "reference": request.reference,
        "operation": request.operation.value,
        "amount": request.amount,
        "currency": request.currency,
    }
    match request.instrument:
        case Card() as card:
            body["instrument"] = {
                "kind": "card", "number": card.pan, "expiry": card.expiry,
                "scheme": card.scheme, "holder": card.holder,
            }  # fmt: skip
        case BankAccount() as account:
            body["instrument"] = {
                "kind": "account", "number": account.number, "bank": account.bank,
                "holder": account.holder,
            }  # fmt: skip
        case None:
            pass
    if request.original:
        body["original"] = request.original
        body["original_bank_reference"] = request.original_bank_reference
        body["original_amount"] = request.original_amount
    if not request.capture:
        body["capture"] = False
    if request.merchant:
        body["merchant"] = request.merchant
    if sender.callback_url:
        body["callback_url"] = sender.callback_url
    return json.dumps(body, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def decode(body: bytes) -> Told:
    if len(body) > BODY_BYTES_MAX:
        raise Malformed(f"more than {BODY_BYTES_MAX} bytes")
    try:
        return Told.model_validate_json(body)
    except ValidationError as error:
        # The first field that is wrong; what it holds is not ours to repeat.
        where = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
        raise Malformed(f"no message: {where or 'not JSON'}") from None
