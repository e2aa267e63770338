"""As whom a command acts, and with which approval: options that every command takes, anywhere.

    cellctl failover b --reason … --as ann --approval appr-…
    cellctl failover b --reason … --break-glass

They become environment variables before the command is parsed, so that each command need not name
them; the variables may also be set by hand.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from control.access.headers import APPROVAL_HEADER, BREAK_GLASS_HEADER
from control.cellctl.failures import MissingValue

AS_VARIABLE = "CELLPAY_AS"
APPROVAL_VARIABLE = "CELLPAY_APPROVAL"
BREAK_GLASS_VARIABLE = "CELLPAY_BREAK_GLASS"
_VALUED = {"--as": AS_VARIABLE, "--approval": APPROVAL_VARIABLE}
_BREAK_GLASS = "--break-glass"


def take_acting(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without these options, and the variables that they set. Pure."""
    rest: list[str] = []
    variables: dict[str, str] = {}
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if argument == _BREAK_GLASS:
            variables[BREAK_GLASS_VARIABLE] = "yes"
        elif name in _VALUED:
            given = value if equals else next(waiting, "")
            if not given:
                raise MissingValue(f"{name} needs a value")
            variables[_VALUED[name]] = given
        else:
            rest.append(argument)
            if argument == "--":
                rest.extend(waiting)
    return rest, variables


def acting_as(default: str) -> str:
    """The name of the certificate to act with."""
    return os.environ.get(AS_VARIABLE) or default


def acting_headers() -> tuple[tuple[str, str], ...]:
    headers = []
    if approval_id := os.environ.get(APPROVAL_VARIABLE):
        headers.append((APPROVAL_HEADER, approval_id))
    if os.environ.get(BREAK_GLASS_VARIABLE) == "yes":
        headers.append((BREAK_GLASS_HEADER, "yes"))
    return tuple(headers)


class ActingInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    """Puts the approval, or the broken glass, into each call's metadata."""

    def __init__(self, headers: Sequence[tuple[str, str]]) -> None:
        self._headers = headers

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        metadata = (*(client_call_details.metadata or ()), *self._headers)
        return await continuation(client_call_details._replace(metadata=metadata), request)
