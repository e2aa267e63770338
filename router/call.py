"""A served call: grpc.aio's context, which remembers what is asked of it again and again.

gRPC builds a call's metadata and its peer's certificate anew at each question; a guard, a gate, a
trace and a service all ask. Neither changes while the call lasts, so the first answer is kept with
the call, and what follows from it (identity.py) with it: nobody else's call ever sees it.
"""

from __future__ import annotations

from typing import Any

NOT_ASKED: Any = object()


class Call:
    """Stands for the context that it wraps; everything else is the context's own."""

    __slots__ = ("_auth", "_context", "_metadata", "caller", "principal")

    def __init__(self, context: Any) -> None:
        self._context = context
        self._metadata: Any = NOT_ASKED
        self._auth: Any = NOT_ASKED
        # Of identity.py; `NOT_ASKED` until somebody does.
        self.caller: Any = NOT_ASKED
        self.principal: Any = NOT_ASKED

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def invocation_metadata(self) -> Any:
        if self._metadata is NOT_ASKED:
            self._metadata = self._context.invocation_metadata()
        return self._metadata

    def auth_context(self) -> Any:
        if self._auth is NOT_ASKED:
            self._auth = self._context.auth_context()
        return self._auth
