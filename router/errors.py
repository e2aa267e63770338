"""Errors as the AIPs want them: a gRPC status, an ErrorInfo and, for bad input, a BadRequest.

    Refusal            an answer other than success, on its way out of a server
    └─ (client side)   `details_of(error)` reads the same details from a grpc.RpcError

Sources: AIP-193, google/rpc/error_details.proto, gRPC's `grpc-status-details-bin` trailer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from router.redaction import redacted, redacted_value

DOMAIN = "cellpay"
STATUS_DETAILS_KEY = "grpc-status-details-bin"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class _Trailing(Protocol):
    def trailing_metadata(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of a request that is wrong, and why, for people."""

    field: str
    description: str


class Refusal(Exception):
    """A request ends with this status. `reason` is UPPER_SNAKE_CASE and stable; the text is not.

    What it quotes of a request may be a card's number in the wrong field: that is taken out here.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after_ms: int | None = None,
    ) -> None:
        message = redacted(message)
        super().__init__(f"{reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = {
            name: str(redacted_value(value, name)) for name, value in (metadata or {}).items()
        }
        self.violations = tuple(
            Violation(item.field, redacted(item.description)) for item in violations
        )
        self.retry_after_ms = retry_after_ms

    @classmethod
    def from_status(cls, data: bytes) -> Refusal:
        """The refusal that `to_status` was made of. Raises DecodeError."""
        status = status_pb2.Status.FromString(data)
        code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
        details = _parse(status)
        return cls(
            code,
            details.reason or code.name,
            status.message,
            metadata=details.metadata,
            violations=details.violations,
            retry_after_ms=details.retry_after_ms,
        )

    def to_status(self) -> status_pb2.Status:
        details = [
            error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)
        ]
        if self.violations:
            details.append(
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(
                            field=violation.field, description=violation.description
                        )
                        for violation in self.violations
                    ]
                )
            )
        if self.retry_after_ms is not None:
            delay = Duration()
            delay.FromMilliseconds(self.retry_after_ms)
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in details:
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
        return status


def bad_request(violations: Sequence[Violation]) -> Refusal:
    first = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return Refusal(
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        f"{first.field}: {first.description}{more}",
        violations=violations,
    )


def rate_limited(what: str, *, retry_after_ms: int) -> Refusal:
    """More calls than a rate allows; nothing was executed."""
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "RATE_LIMITED",
        f"more calls than the rate limit of this {what} allows; nothing was executed",
        metadata={"limit": what},
        retry_after_ms=retry_after_ms,
    )


async def abort(context: grpc.aio.ServicerContext[Any, Any], refusal: Refusal) -> NoReturn:
    """Ends the call with the refusal's status and details."""
    await context.abort(
        refusal.code,
        refusal.message,
        trailing_metadata=((STATUS_DETAILS_KEY, refusal.to_status().SerializeToString()),),
    )
    raise AssertionError("abort returned")


@dataclass(frozen=True, slots=True)
class Details:
    """What a failed call says about itself. `reason` is empty when the server gave none."""

    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()
    retry_after_ms: int | None = None


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """A failed call as the refusal that its server raised; without details, its status alone."""
    details = details_of(error)
    return Refusal(
        error.code(),
        details.reason or error.code().name,
        error.details() or "",
        metadata=details.metadata,
        violations=details.violations,
        retry_after_ms=details.retry_after_ms,
    )


def details_of(error: _Trailing) -> Details:
    """The details of a failed call (grpc.aio.AioRpcError or grpc.RpcError)."""
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY:
            return _parse(status_pb2.Status.FromString(value))
    return Details()


def _parse(status: status_pb2.Status) -> Details:
    reason, metadata = "", {}
    violations: tuple[Violation, ...] = ()
    retry_after_ms = None
    for packed in status.details:
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if packed.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif packed.Unpack(bad):
            violations = tuple(
                Violation(item.field, item.description) for item in bad.field_violations
            )
        elif packed.Unpack(retry):
            retry_after_ms = retry.retry_delay.ToMilliseconds()
    return Details(reason, metadata, violations, retry_after_ms)
