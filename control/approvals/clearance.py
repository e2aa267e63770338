"""What a call was cleared with, carried to the commit that it is for.

The gate sets it around a call; the audit log's chain puts it into the commit that records the call.
So an approval is used up by its action, or neither happens, and no service needs to know of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import grpc

from router.errors import Refusal

BREAK_GLASS = "BREAK GLASS"


class Clearance:
    """Of one call. Its approval goes into the first audited commit; its mark into all of them."""

    def __init__(
        self, mark: str, approval_id: str, expect: Mapping[str, int], puts: Mapping[str, str]
    ) -> None:
        self._mark = mark
        self._approval_id = approval_id
        self.expect = expect
        self.puts = puts

    def marked(self, record: str) -> str:
        """An audit record (JSON) that says what it was cleared with; denials stay as they are."""
        document = json.loads(record)
        if document["verdict"] == "allowed":
            document["verdict"] = self._mark
        return json.dumps(document)

    def spent(self) -> None:
        self.expect, self.puts = {}, {}

    def refused(self) -> Refusal:
        return Refusal(
            grpc.StatusCode.FAILED_PRECONDITION,
            "APPROVAL_CHANGED",
            f"{self._approval_id} was used, rejected or ran out meanwhile",
            metadata={"approval_id": self._approval_id},
        )


_current: ContextVar[Clearance | None] = ContextVar("clearance", default=None)


def current_clearance() -> Clearance | None:
    return _current.get()


@contextmanager
def cleared(clearance: Clearance | None) -> Iterator[None]:
    token = _current.set(clearance)
    try:
        yield
    finally:
        _current.reset(token)
