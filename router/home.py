"""Which slot is a request for: read from the annotated field, for any method of any service.

The annotation is `(cellpay.routing.v1.home)` on a request's field (the idea of AIP-4222). The
client sets `x-cellpay-slot` from it; the guard checks that header against it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from cellpay.routing.v1 import routing_pb2
from google.protobuf import descriptor_pool
from google.protobuf.message import Message

from router.ids import slot_of_id
from router.slots import slot_of_user

SlotFinder = Callable[[Any], int]


def find_service(full_name: str) -> Any:
    try:
        return descriptor_pool.Default().FindServiceByName(full_name)
    except KeyError:
        return None


def find_method(path: str) -> Any:
    """The descriptor of `/package.Service/Method`, if that service is known here."""
    service_name, _, method_name = path.lstrip("/").rpartition("/")
    service = find_service(service_name)
    return service.methods_by_name.get(method_name) if service else None


def slot_finder(request_type: Any) -> SlotFinder | None:
    """A function from a request to its slot; None when no field of it decides a home.

    The function raises ValueError when the field holds no valid ID.
    """
    for field in request_type.fields:
        options = field.GetOptions()
        if not options.HasExtension(routing_pb2.home):
            continue
        name = field.name
        if options.Extensions[routing_pb2.home] == routing_pb2.HOME_FIRST:
            inner = slot_finder(field.message_type)
            if inner is None:
                raise TypeError(f"{field.full_name}: its messages have no home")
            return lambda request: inner(_first(request, name))
        if options.Extensions[routing_pb2.home] == routing_pb2.HOME_USER_ID:
            return lambda request: slot_of_user(_present(request, name))
        return lambda request: slot_of_id(_present(request, name))
    return None


@cache
def home_field(request_type: Any) -> str | None:
    for field in request_type.fields:
        if field.GetOptions().HasExtension(routing_pb2.home):
            return str(field.name)
    return None


@cache
def is_bulk(request_type: Any) -> bool:
    """Whether its home is that of the first of many: then each is looked at by the service."""
    return any(
        field.GetOptions().Extensions[routing_pb2.home] == routing_pb2.HOME_FIRST
        for field in request_type.fields
    )


def _present(request: Message, name: str) -> str:
    value: str = getattr(request, name)
    if not value:
        raise ValueError("must not be empty")
    return value


def _first(request: Message, name: str) -> Any:
    requests = getattr(request, name)
    if not requests:
        raise ValueError("must not be empty")
    return requests[0]
