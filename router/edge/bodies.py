"""Which fields a JSON body may have, for strict.lua: tables of Lua made from the protos.

Names are those of the proto and their camelCase, as protojson has it. What a well-known type, a map
or a scalar holds is the transcoder's to judge: it refuses what it cannot read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

_FIELD = descriptor_pb2.FieldDescriptorProto
_VARIABLE = re.compile(r"\{(\w+)\}")
# Their JSON is no object of their fields.
_WELL_KNOWN = ".google.protobuf."

Messages = Mapping[str, descriptor_pb2.DescriptorProto]


def lua_tables(described: descriptor_pb2.FileDescriptorSet) -> str:
    """`BODIES` and `FIELDS` of strict.lua."""
    messages = _messages(described)
    # A verb behind the last variable belongs to another method than the same path without it.
    bodies = sorted(_bodies(described, messages), key=lambda body: (":" not in body[1], body))
    # What the path says cannot stand in the body. A request's message is of one method alone.
    in_path = {kind: names for _, _, kind, names in bodies}
    wanted, fields = [body[2] for body in bodies], {}
    while wanted:
        name = wanted.pop()
        if name in fields:
            continue
        fields[name] = dict(_fields(messages[name], messages, in_path.get(name, ())))
        wanted += [kind for kind in fields[name].values() if kind]
    lines = [f"  {{{', '.join(map(_quoted, body[:3]))}}}," for body in bodies]
    tables = [
        f"  [{_quoted(name)}] = {{"
        + ", ".join(f"[{_quoted(field)}] = {_quoted(kind)}" for field, kind in sorted(of.items()))
        + "},"
        for name, of in sorted(fields.items())
    ]
    return "\n".join(["local BODIES = {", *lines, "}", "local FIELDS = {", *tables, "}", ""])


def _bodies(
    described: descriptor_pb2.FileDescriptorSet, messages: Messages
) -> Iterator[tuple[str, str, str, Sequence[str]]]:
    """HTTP method, Lua pattern of the path, message, fields that are in the path."""
    for file in described.file:
        for service in file.service:
            for method in service.method:
                rule = method.options.Extensions[annotations_pb2.http]
                verb = rule.WhichOneof("pattern")
                if verb is None or not rule.body:
                    continue
                kind = method.input_type
                if rule.body != "*":
                    fields = {field.name: field for field in messages[kind].field}
                    kind = fields[rule.body].type_name
                path = getattr(rule, verb)
                yield verb.upper(), _pattern(path), kind, _VARIABLE.findall(path)


def _pattern(path: str) -> str:
    pieces = [re.sub(r"([^\w/:])", r"%\1", piece) for piece in re.split(r"\{\w+\}", path)]
    return f"^{'[^/]+'.join(pieces)}$"


def _fields(
    message: descriptor_pb2.DescriptorProto, messages: Messages, without: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Name → message, or nothing where anything may stand."""
    for field in message.field:
        if field.name in without:
            continue
        inner = messages.get(field.type_name) if field.type == _FIELD.TYPE_MESSAGE else None
        is_plain = inner is not None and not inner.options.map_entry
        kind = field.type_name if is_plain and not field.type_name.startswith(_WELL_KNOWN) else ""
        yield field.name, kind
        yield field.json_name, kind


def _messages(described: descriptor_pb2.FileDescriptorSet) -> Messages:
    found: dict[str, descriptor_pb2.DescriptorProto] = {}

    def add(message: descriptor_pb2.DescriptorProto, scope: str) -> None:
        name = f"{scope}.{message.name}"
        found[name] = message
        for nested in message.nested_type:
            add(nested, name)

    for file in described.file:
        for message in file.message_type:
            add(message, f".{file.package}")
    return found


def _quoted(text: str) -> str:
    """JSON's strings of letters, digits and such are Lua's too."""
    return json.dumps(text)
