"""Requests made from descriptors: for any method of any service, filled as an attack wants it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

import cellpay
from google.protobuf.descriptor import FieldDescriptor

from router.access import METHODS
from router.home import find_method

# Descriptors are found once their modules are read.
for _module in pkgutil.walk_packages(cellpay.__path__, "cellpay."):
    if _module.name.endswith("_pb2"):
        importlib.import_module(_module.name)


def served() -> list[str]:
    """`package.Service/Method` of everything that cells serve."""
    return sorted(METHODS)


def descriptor_of(method: str) -> Any:
    found = find_method(f"/{method}")
    assert found is not None, method
    return found


def request_for(method: str, values: Mapping[str, Any]) -> Any:
    """A request with each of its fields as `values` say by name, at any depth."""
    message = descriptor_of(method).input_type._concrete_class()
    _fill(message, values)
    return message


def _fill(message: Any, values: Mapping[str, Any], depth: int = 0) -> None:
    for field in message.DESCRIPTOR.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            if field.full_name.endswith("read_mask") or depth > 3:
                continue
            repeated = field.is_repeated
            if _is_map(field):
                continue
            below = getattr(message, field.name)
            _fill(below.add() if repeated else below, values, depth + 1)
            if not repeated:
                below.SetInParent()
        elif field.name in values:
            value = values[field.name]
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)


def unsaid(method: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """For whoever asks as a cell: its word about a branch is believed, and would stand in the books
    beside what really became of the transfer."""
    if "ParticipantService" not in method:
        return values
    return {name: value for name, value in values.items() if name != "transfer_id"}


def strings_of(descriptor: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all fields of text, at any depth."""
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            yield (*path, field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE and len(path) < 3 and not _is_map(field):
            yield from strings_of(field.message_type, (*path, field.name))


def _is_map(field: Any) -> bool:
    return bool(field.is_repeated and field.message_type.GetOptions().map_entry)


def put_at(message: Any, path: tuple[str, ...], text: str) -> None:
    """Puts text into the field there; into the first of many where it is repeated."""
    *above, last = path
    for name in above:
        field = message.DESCRIPTOR.fields_by_name[name]
        below = getattr(message, name)
        message = (below[0] if below else below.add()) if field.is_repeated else below
    if message.DESCRIPTOR.fields_by_name[last].is_repeated:
        getattr(message, last).append(text)
    else:
        setattr(message, last, text)
