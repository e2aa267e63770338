"""The OpenAPI document of the HTTP/JSON edge, made from the protos and their comments.

    python -m router.edge.openapi > docs/openapi.json

What protojson says is what Envoy's transcoder does: 64-bit integers are strings, times RFC 3339,
bytes base64, enums by name; fields keep their names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

from router.edge.http import described

_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS: dict[int, dict[str, Any]] = {
    _FIELD.TYPE_STRING: {"type": "string"},
    _FIELD.TYPE_BOOL: {"type": "boolean"},
    _FIELD.TYPE_BYTES: {"type": "string", "format": "byte"},
    _FIELD.TYPE_DOUBLE: {"type": "number", "format": "double"},
    _FIELD.TYPE_INT32: {"type": "integer", "format": "int32"},
    _FIELD.TYPE_UINT32: {"type": "integer", "format": "int64", "minimum": 0},
    _FIELD.TYPE_INT64: {"type": "string", "format": "int64", "pattern": "^-?[0-9]+$"},
    _FIELD.TYPE_UINT64: {"type": "string", "format": "uint64", "pattern": "^[0-9]+$"},
}
_WELL_KNOWN: dict[str, dict[str, Any]] = {
    ".google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    ".google.protobuf.Duration": {"type": "string", "pattern": "^-?[0-9.]+s$"},
    ".google.protobuf.FieldMask": {
        "type": "string",
        "description": "Names of fields, with commas between.",
    },
    ".google.protobuf.Any": {
        "type": "object",
        "properties": {"@type": {"type": "string"}},
        "additionalProperties": True,
    },
}
_VARIABLE = re.compile(r"\{(\w+)\}")
_ERROR = ".google.rpc.Status"


class _Protos:
    """All messages and enums by full name, with their comments."""

    def __init__(self, described: descriptor_pb2.FileDescriptorSet) -> None:
        self.messages: dict[str, descriptor_pb2.DescriptorProto] = {}
        self.enums: dict[str, descriptor_pb2.EnumDescriptorProto] = {}
        self.comments: dict[str, str] = {}
        self.services: list[tuple[str, descriptor_pb2.ServiceDescriptorProto]] = []
        for file in described.file:
            notes = {
                tuple(location.path): " ".join(location.leading_comments.split())
                for location in file.source_code_info.location
            }
            scope = f".{file.package}"
            for number, message in enumerate(file.message_type):
                self._add(message, scope, (4, number), notes)
            for enum in file.enum_type:
                self.enums[f"{scope}.{enum.name}"] = enum
            for number, service in enumerate(file.service):
                name = f"{scope}.{service.name}"
                self.services.append((name, service))
                self.comments[name] = notes.get((6, number), "")
                for place, method in enumerate(service.method):
                    comment = notes.get((6, number, 2, place), "")
                    self.comments[f"{name}.{method.name}"] = comment

    def _add(
        self,
        message: descriptor_pb2.DescriptorProto,
        scope: str,
        path: tuple[int, ...],
        notes: dict[tuple[int, ...], str],
    ) -> None:
        name = f"{scope}.{message.name}"
        self.messages[name] = message
        self.comments[name] = notes.get(path, "")
        for number, field in enumerate(message.field):
            self.comments[f"{name}.{field.name}"] = notes.get((*path, 2, number), "")
        for number, nested in enumerate(message.nested_type):
            self._add(nested, name, (*path, 3, number), notes)
        for enum in message.enum_type:
            self.enums[f"{name}.{enum.name}"] = enum


class _Document:
    def __init__(self, protos: _Protos) -> None:
        self._protos = protos
        self.schemas: dict[str, Any] = {}

    def paths(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for service_name, service in self._protos.services:
            for method in service.method:
                if not method.options.HasExtension(annotations_pb2.http):
                    continue
                rule: Any = method.options.Extensions[annotations_pb2.http]
                verb = rule.WhichOneof("pattern")
                path = getattr(rule, verb)
                operation = self._operation(f"{service_name}.{method.name}", method, path, rule)
                operation["tags"] = [service.name]
                found.setdefault(path, {})[verb] = operation
        return dict(sorted(found.items()))

    def _operation(
        self, name: str, method: descriptor_pb2.MethodDescriptorProto, path: str, rule: Any
    ) -> dict[str, Any]:
        in_path = set(_VARIABLE.findall(path))
        fields = self._protos.messages[method.input_type].field
        parameters = [
            self._parameter(method.input_type, field, "path")
            for field in fields
            if field.name in in_path
        ]
        operation: dict[str, Any] = {"operationId": method.name, "parameters": parameters}
        if comment := self._protos.comments[name]:
            operation["description"] = comment
        if rule.body:
            # What is not here the edge refuses (strict.lua).
            schema = self._object(method.input_type, without=in_path)
            schema["additionalProperties"] = False
            operation["requestBody"] = {"required": True, "content": _json_of(schema)}
        else:
            parameters += [
                self._parameter(method.input_type, field, "query")
                for field in fields
                if field.name not in in_path
            ]
        operation["responses"] = {
            "200": {"description": "OK", "content": _json_of(self._reference(method.output_type))},
            "default": {
                "description": "A google.rpc.Status; its details say why, and which fields.",
                "content": _json_of(self._reference(_ERROR)),
            },
        }
        return operation

    def _parameter(
        self, message: str, field: descriptor_pb2.FieldDescriptorProto, place: str
    ) -> dict[str, Any]:
        parameter: dict[str, Any] = {"name": field.name, "in": place}
        if place == "path":
            parameter["required"] = True
        schema = self._schema(field)
        if comment := self._protos.comments[f"{message}.{field.name}"]:
            parameter["description"] = comment
        return parameter | {"schema": schema}

    def _object(self, name: str, without: set[str] | None = None) -> dict[str, Any]:
        properties = {}
        for field in self._protos.messages[name].field:
            if field.name in (without or ()):
                continue
            schema = self._schema(field)
            if comment := self._protos.comments[f"{name}.{field.name}"]:
                schema = schema | {"description": comment}
            properties[field.name] = schema
        schema = {"type": "object", "properties": properties}
        if comment := self._protos.comments[name]:
            schema["description"] = comment
        return schema

    def _schema(self, field: descriptor_pb2.FieldDescriptorProto) -> dict[str, Any]:
        if field.type in _SCALARS:
            schema = dict(_SCALARS[field.type])
        elif field.type == _FIELD.TYPE_ENUM:
            values = self._protos.enums[field.type_name].value
            schema = {"type": "string", "enum": [value.name for value in values]}
        else:
            schema = self._reference(field.type_name)
        if field.label == _FIELD.LABEL_REPEATED:
            return {"type": "array", "items": schema}
        return schema

    def _reference(self, name: str) -> dict[str, Any]:
        if name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[name])
        short = name.lstrip(".")
        if short not in self.schemas:
            self.schemas[short] = {}
            self.schemas[short] = self._object(name)
        return {"$ref": f"#/components/schemas/{short}"}


def _json_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    protos = _Protos(described())
    made = _Document(protos)
    paths = made.paths()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Cellpay",
            "version": "v1",
            "description": "The same services as gRPC's, through Envoy. Every path names the user "
            "or the resource whose home cell answers.",
        },
        "tags": list(_tags(protos)),
        "paths": paths,
        "components": {"schemas": dict(sorted(made.schemas.items()))},
    }


def _tags(protos: _Protos) -> Iterator[dict[str, str]]:
    for name, service in protos.services:
        if any(method.options.HasExtension(annotations_pb2.http) for method in service.method):
            yield {"name": service.name, "description": protos.comments[name]}


if __name__ == "__main__":
    print(json.dumps(document(), indent=1, ensure_ascii=False))
