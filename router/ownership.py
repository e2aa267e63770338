"""Who may ask for this, and is it his? By the one table (access.py), for the guard.

A caller's certificate says its kind; of an edge it counts for whom it speaks. A merchant, known by
his certificate or by his signature, is held to what is his own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc

from router.access import THROUGH_THE_EDGE, Access, Kind
from router.errors import Refusal
from router.home import find_method
from router.identity import EDGE, caller_of, merchant_of, principal_of
from router.signing.call import SIGNER

Behaviour = Callable[[Any, Any], Awaitable[Any]]
_NOBODY = Access(frozenset())


def access_of(table: Mapping[str, Access] | None, name: str) -> Access | None:
    return None if table is None else table.get(name, _NOBODY)


def of_merchant(
    access: Access, service: str, siblings: Mapping[str, Any], behaviour: Behaviour
) -> Behaviour:
    """A merchant's request goes on when it is of what is his. Asked once it is known who signed."""
    own = access.own
    look, ask = None, None
    if own is not None and own.of:
        look = siblings[own.of].unary_unary
        ask = find_method(f"/{service}/{own.of}").input_type._concrete_class

    async def owned(request: Any, context: Any) -> Any:
        merchant = _merchant_of(context)
        if not merchant:
            return await behaviour(request, context)
        if own is None:
            raise _not_allowed(access, SIGNER.get())
        named: str = getattr(request, own.field)
        if own.by_service:
            return await behaviour(request, context)
        if look is None or ask is None:
            if named != merchant:
                raise _not_his(own.field)
            return await behaviour(request, context)
        try:
            found = await look(ask(**{own.field: named}), context)
        except Refusal as refusal:
            if refusal.code == grpc.StatusCode.NOT_FOUND:
                raise _not_there(own.field) from None
            raise
        if merchant not in [getattr(found, owner) for owner in own.owners]:
            raise _not_there(own.field)
        return await behaviour(request, context)

    return owned


def _merchant_of(context: Any) -> str:
    """For which merchant the call is made: who signed it, or whose certificate it is. Empty: for
    whomever a service names. Raises Refusal when the two are not the same."""
    signer = SIGNER.get()
    merchant = merchant_of(context)
    if not merchant:
        return signer
    if signer not in {"", merchant}:
        raise Refusal(
            grpc.StatusCode.PERMISSION_DENIED,
            "SIGNER_NOT_CALLER",
            "the request is signed by another merchant than the certificate is of",
        )
    return merchant


def _not_his(field: str) -> Refusal:
    return Refusal(
        grpc.StatusCode.PERMISSION_DENIED,
        "NOT_YOURS",
        f"{field}: a merchant speaks for himself alone",
        metadata={"field": field},
    )


def _not_there(field: str) -> Refusal:
    """The same for what is another's and for what is not: an ID is not to be tried out."""
    return Refusal(
        grpc.StatusCode.NOT_FOUND,
        "NOT_FOUND",
        f"{field}: nothing of yours has this ID",
        metadata={"field": field},
    )


def authorise(context: Any, access: Access) -> None:
    """Raises Refusal."""
    caller = caller_of(context)
    kinds = access.kinds
    if caller is not None and caller.kind == EDGE:
        principal = principal_of(context)
        if Kind.EDGE not in kinds:
            caller, kinds = principal, kinds & THROUGH_THE_EDGE
        elif principal is not None:
            # It carries what somebody else asks for.
            caller = principal
    if caller is None or caller.kind not in kinds:
        raise _not_allowed(access, caller.spiffe_id if caller else "")


def _not_allowed(access: Access, caller: str) -> Refusal:
    return Refusal(
        grpc.StatusCode.PERMISSION_DENIED,
        "CALLER_NOT_ALLOWED",
        f"only {' or '.join(sorted(access.kinds)) or 'nobody'} may call this",
        metadata={"caller": caller},
    )
