"""Where this task is in a trace, and spans at that place."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

import grpc

from router.errors import Refusal, details_of
from router.tracing.model import Line, Scope, SpanKind
from router.tracing.rules import failure_of

# Tasks inherit it from who made them.
current: ContextVar[Scope | None] = ContextVar("cellpay_trace", default=None)


def current_scope() -> Scope | None:
    return current.get()


def traceparent_now() -> str:
    """For who sends on; empty when nothing is recorded."""
    scope = current.get()
    return scope.traceparent if scope is not None else ""


def new_span_id() -> int:
    return random.getrandbits(64) or 1


def error_of(error: BaseException) -> str:
    """Never its text, which may quote what must not be told (pitfall 34)."""
    if isinstance(error, Refusal):
        return failure_of(error.code.name, error.reason)
    if isinstance(error, grpc.aio.AioRpcError):
        return failure_of(error.code().name, details_of(error).reason)
    if isinstance(error, asyncio.CancelledError):
        return "CANCELLED"
    return type(error).__name__


def noted(known: dict[str, Any] | None, more: Mapping[str, Any]) -> dict[str, Any]:
    """A span's attributes with these; `cellpay.` is put before each."""
    return {**(known or {}), **{f"cellpay.{name}": value for name, value in more.items()}}


class span:
    """Notes a span below the current place; costs next to nothing when there is none.

    A block that runs in a task of its own ends with its trace or after it: what comes late is kept
    if the trace is, or if it failed itself.
    """

    __slots__ = ("_attributes", "_began", "_error", "_kind", "_links", "_name", "_parent",
                 "_token", "scope")  # fmt: skip

    def __init__(
        self,
        name: str,
        attributes: dict[str, Any] | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        links: tuple[tuple[str, int], ...] = (),
    ) -> None:
        self._name = name
        self._attributes = attributes
        self._kind = kind
        self._links = links
        self._error = ""
        self.scope: Scope | None = None

    def __enter__(self) -> span:
        parent = current.get()
        if parent is not None:
            self._parent = parent.span_id
            self.scope = Scope(parent.trace, new_span_id())
            self._token: Token[Scope | None] = current.set(self.scope)
            self._began = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        scope = self.scope
        if scope is None:
            return
        current.reset(self._token)
        if error is not None and not self._error:
            self._error = error_of(error)
        scope.trace.add(
            Line(
                scope.span_id, self._parent, self._name, self._kind, self._began,
                time.perf_counter(), self._attributes, self._error, self._links,
            )
        )  # fmt: skip

    @property
    def traceparent(self) -> str:
        return self.scope.traceparent if self.scope is not None else ""

    def note(self, **attributes: Any) -> None:
        """Adds attributes."""
        if self.scope is not None:
            self._attributes = noted(self._attributes, attributes)

    def fail(self, error: str) -> None:
        """It ended without an exception, and not well."""
        self._error = error


class within:
    """Goes to a place in a trace for the length of a block; nothing happens for None."""

    __slots__ = ("_scope", "_token")

    def __init__(self, scope: Scope | None) -> None:
        self._scope = scope

    def __enter__(self) -> None:
        if self._scope is not None:
            self._token: Token[Scope | None] = current.set(self._scope)

    def __exit__(self, *_: object) -> None:
        if self._scope is not None:
            current.reset(self._token)
