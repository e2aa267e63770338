"""The reference pages, made from the source itself: calls, errors, settings, commands, metrics.

    python -m control.cellctl.reference        writes docs/reference/*.md

What it says of a thing is the comment that stands above the thing, so that one place is kept right.
A test holds the committed pages to what this makes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2
from typer.main import get_command

from cells.answers import status_of
from cells.ledger.model import Reason
from control.cellctl.main import app
from router.edge.http import descriptors

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "reference"
_SOURCES = ("cells", "router", "control")
_SETTINGS = (
    ("A cell, its relay and its workers", "cells/settings.py"),
    ("A channel to a bank", "cells/channels/model.py"),
    ("Callbacks of clearing houses", "cells/channels/callbacks.py"),
    ("Statements", "cells/statements/fetch.py"),
    ("The reconciler", "cells/reconciliation/settings.py"),
    ("A controller", "control/settings.py"),
    ("Traces (`tracing`)", "router/tracing/model.py"),
    ("Client's TLS", "router/client/tls.py"),
    ("The console's sign-in", "control/cellctl/console/oidc.py"),
    ("A simulated bank", "banks/settings.py"),
)
_MADE = "<!-- Made by `make reference` from the source. Change the source. -->"
_SERVICE = 6
_METHOD = 2
_FIELD = descriptor_pb2.FieldDescriptorProto
_EVERYWHERE = {"data", "json", "as_json"}
_KINDS = {
    _FIELD.TYPE_STRING: "string",
    _FIELD.TYPE_BOOL: "bool",
    _FIELD.TYPE_BYTES: "bytes",
    _FIELD.TYPE_DOUBLE: "double",
    _FIELD.TYPE_FLOAT: "float",
    _FIELD.TYPE_INT32: "int32",
    _FIELD.TYPE_UINT32: "uint32",
    _FIELD.TYPE_INT64: "int64",
    _FIELD.TYPE_UINT64: "uint64",
}


def pages() -> dict[str, str]:
    """File name → text."""
    return {
        "rpcs.md": rpcs(),
        "errors.md": errors(),
        "settings.md": settings(),
        "cellctl.md": commands(),
        "metrics.md": metrics(),
    }


# Calls -------------------------------------------------------------------------------------------


def rpcs() -> str:
    described = descriptor_pb2.FileDescriptorSet.FromString(descriptors().read_bytes())
    files = [file for file in described.file if file.package.startswith("cellpay.")]
    lines = _opening(
        "Calls",
        "Every service of Cellpay, its methods and its messages. A method with a path can be "
        "called by [HTTP/JSON](../http.md) too. Errors are in [errors.md](errors.md).",
    )
    for file in sorted(files, key=lambda each: each.package):
        lines += _file(file)
    return _text(lines)


def _file(file: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
    notes = {
        tuple(location.path): " ".join(location.leading_comments.split())
        for location in file.source_code_info.location
        if location.leading_comments
    }
    if not (file.service or file.message_type):
        return
    yield f"## {file.package} ({file.name.rpartition('/')[2]})"
    yield ""
    for number, service in enumerate(file.service):
        yield f"### {service.name}"
        yield ""
        yield from _paragraph(notes.get((_SERVICE, number)))
        yield "| method | takes → gives | HTTP | |"
        yield "|---|---|---|---|"
        for place, method in enumerate(service.method):
            note = notes.get((_SERVICE, number, _METHOD, place), "")
            takes = f"{'stream ' if method.client_streaming else ''}{_last(method.input_type)}"
            gives = f"{'stream ' if method.server_streaming else ''}{_last(method.output_type)}"
            yield _row(f"`{method.name}`", f"{takes} → {gives}", _path(method), note)
        yield ""
    for number, message in enumerate(file.message_type):
        yield from _message(message, (4, number), notes, "")


def _message(
    message: descriptor_pb2.DescriptorProto,
    path: tuple[int, ...],
    notes: Mapping[tuple[int, ...], str],
    outer: str,
) -> Iterator[str]:
    if message.options.map_entry:
        return
    name = f"{outer}{message.name}"
    if message.field or message.enum_type:
        yield f"**{name}** {notes.get(path, '')}".rstrip()
        yield ""
    if message.field:
        yield "| field | type | |"
        yield "|---|---|---|"
        for place, item in enumerate(message.field):
            yield _row(f"`{item.name}`", _type(item, message), notes.get((*path, 2, place), ""))
        yield ""
    for place, enum in enumerate(message.enum_type):
        values = [
            f"`{value.name}`{_after(notes.get((*path, 4, place, 2, number)))}"
            for number, value in enumerate(enum.value)
        ]
        yield f"{name}.{enum.name}: {'; '.join(values)}"
        yield ""
    for place, inner in enumerate(message.nested_type):
        yield from _message(inner, (*path, 3, place), notes, f"{name}.")


def _type(item: descriptor_pb2.FieldDescriptorProto, owner: descriptor_pb2.DescriptorProto) -> str:
    for nested in owner.nested_type:
        if nested.options.map_entry and item.type_name.endswith(f".{owner.name}.{nested.name}"):
            key, value = (_type(each, nested) for each in nested.field)
            return f"map<{key}, {value}>"
    kind = _KINDS.get(item.type) or _last(item.type_name)
    return f"repeated {kind}" if item.label == _FIELD.LABEL_REPEATED else kind


def _path(method: descriptor_pb2.MethodDescriptorProto) -> str:
    if not method.options.HasExtension(annotations_pb2.http):
        return ""
    rule = method.options.Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    return f"`{verb.upper()} {getattr(rule, verb)}`" if verb else ""


# Errors ------------------------------------------------------------------------------------------


class _Raised(NamedTuple):
    reason: str
    status: str
    message: str
    where: str


def errors() -> str:
    lines = _opening(
        "Errors",
        "Every refusal is a gRPC status with a `google.rpc.ErrorInfo` of domain `cellpay`, whose "
        "`reason` is one of these and stable; its text is for people and is not. Bad input names "
        "every wrong field in a `google.rpc.BadRequest` beside it; what may be tried again later "
        "says when in a `google.rpc.RetryInfo`.",
    )
    lines += [
        "## Refused by the ledger's rules",
        "",
        "In order of precedence: the first that applies is answered. Nothing was executed.",
        "",
        "| reason | status |",
        "|---|---|",
    ]
    lines += [_row(f"`{reason}`", f"`{status_of(reason).name}`") for reason in Reason]
    lines += ["", "## Refused elsewhere", "", "| reason | status | what it says | from |"]
    lines.append("|---|---|---|---|")
    lines += [
        _row(f"`{item.reason}`", f"`{item.status}`", item.message, item.where) for item in _raised()
    ]
    return _text(lines)


def _raised() -> list[_Raised]:
    """Refusals that the code makes with a literal reason."""
    found: dict[tuple[str, str], _Raised] = {}
    for path, tree in _trees():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and _called(node) == "Refusal"):
                continue
            code, reason, message, *_ = [*node.args, None, None, None]
            for status, name in zip(_branches(code), _branches(reason), strict=False):
                if isinstance(name, ast.Constant) and isinstance(status, ast.Attribute):
                    item = _Raised(str(name.value), status.attr, _shape(message), path)
                    found.setdefault((item.reason, item.status), item)
    return [found[key] for key in sorted(found)]


def _branches(node: ast.expr | None) -> list[ast.expr | None]:
    """Both of what stands in a conditional expression, or the one."""
    return [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]


def _shape(node: ast.expr | None) -> str:
    """A message's text, what it fills in as `…`."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            _shape(part) if isinstance(part, ast.Constant) else "…" for part in node.values
        )
    return ""


# Settings ----------------------------------------------------------------------------------------


def settings() -> str:
    lines = _opening(
        "Settings",
        "Settings are JSON documents, read once at the start; a field without a default must be "
        "given. Units are last in a name. A string `${file:/path}` is that file's content, for "
        "secrets.",
    )
    for title, name in _SETTINGS:
        source = (ROOT / name).read_text(encoding="utf-8")
        classes = [
            node
            for node in ast.parse(source).body
            if isinstance(node, ast.ClassDef) and re.search(r"Settings$|^TlsFiles$", node.name)
        ]
        lines += [f"## {title} (`{name}`)", ""]
        for each in classes:
            lines += _class(each, source.splitlines())
    return _text(lines)


def _class(node: ast.ClassDef, source: Sequence[str]) -> Iterator[str]:
    yield f"### {node.name}"
    yield ""
    yield from _paragraph(ast.get_docstring(node))
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    if not fields:
        return
    yield "| field | type | default | |"
    yield "|---|---|---|---|"
    for item in fields:
        default = _default(item.value)
        yield _row(
            f"`{ast.unparse(item.target)}`",
            f"`{ast.unparse(item.annotation)}`",
            f"`{default}`" if default else "",
            _above(source, item.lineno - 1),
        )
    yield ""


def _default(node: ast.expr | None) -> str:
    if node is None:
        return ""
    if isinstance(node, ast.Call) and _called(node) in {"field", "Field"}:
        made = {each.arg: each.value for each in node.keywords}
        for name in ("default_factory", "default"):
            if name in made:
                return ast.unparse(made[name])
        return ""
    return ast.unparse(node)


def _above(source: Sequence[str], line: int) -> str:
    """The comment that stands right above a line."""
    found: list[str] = []
    while line > 0 and (text := source[line - 1].strip()).startswith("#"):
        found.append(text.removeprefix("#").strip())
        line -= 1
    return " ".join(reversed(found))


# Commands ----------------------------------------------------------------------------------------


def commands() -> str:
    lines = _opening(
        "cellctl",
        "Every command takes `--as NAME` (another identity), `--approval ID` (what two people "
        "agreed to) and `--break-glass` (without the second person, loudly); see "
        "[access.md](../access.md). `--data DIR` is the mesh's directory (`.cellpay`); `--json` "
        "prints JSON where something is shown.",
    )
    root: Any = get_command(app)
    for name, command in sorted(root.commands.items()):
        lines += _command(f"cellctl {name}", command)
    return _text(lines)


def _command(path: str, command: Any) -> Iterator[str]:
    if command.hidden:
        return
    takes = [each for each in command.params if each.name != "help" and not each.hidden]
    named = [each for each in takes if each.param_type_name == "argument"]
    arguments = "".join(f" {each.name.upper()}{'…' if each.nargs < 0 else ''}" for each in named)
    yield f"## `{path}{arguments}`"
    yield ""
    yield from _paragraph(command.help)
    options = [
        each for each in takes if each.param_type_name == "option" and each.name not in _EVERYWHERE
    ]
    if options:
        yield "| option | |"
        yield "|---|---|"
        for each in options:
            spelt = ", ".join(f"`{name}`" for name in (*each.opts, *each.secondary_opts))
            yield _row(spelt, _spoken(each))
        yield ""
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from _command(f"{path} {name}", inner)


def _spoken(option: Any) -> str:
    default = option.default
    told = default is not None and not callable(default) and default not in (False, "", (), [])
    return f"{option.help or ''}{f' (`{default}`)' if told else ''}".strip()


# Metrics -----------------------------------------------------------------------------------------


def metrics() -> str:
    lines = _opening(
        "Metrics",
        "What `/metrics` of a cell or controller tells; dashboards and alert rules over them are "
        "in [deploy/observability](../../deploy/observability). There a counter's name ends in "
        "`_total`.",
    )
    lines += [
        "| metric | kind | |",
        "|---|---|---|",
    ]
    lines += [_row(f"`{name}`", kind, text) for name, (kind, text) in sorted(_metrics().items())]
    return _text(lines)


def _metrics() -> dict[str, tuple[str, str]]:
    """Every name of a metric that the code writes down with its help: as a call, a row or a key."""
    found = {}
    for _, tree in _trees():
        for node in ast.walk(tree):
            for kind, name, text in _told(node):
                if not (isinstance(name, ast.Constant) and isinstance(text, ast.Constant)):
                    continue
                if re.fullmatch(r"cellpay_[a-z0-9_]+", str(name.value)):
                    found[str(name.value)] = (kind, str(text.value))
    return found


def _told(node: ast.AST) -> Iterator[tuple[str, ast.expr, ast.expr]]:
    if isinstance(node, ast.Call) and len(node.args) >= 2:
        kind = _called(node).removesuffix("MetricFamily").lower().lstrip("_")
        yield kind, node.args[0], node.args[1]
    elif isinstance(node, ast.Tuple) and len(node.elts) >= 2:
        yield "counter", node.elts[0], node.elts[1]
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if key is not None and isinstance(value, ast.Tuple) and value.elts:
                yield "gauge", key, value.elts[0]


# Markdown ----------------------------------------------------------------------------------------


def _trees() -> Iterator[tuple[str, ast.Module]]:
    for folder in _SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _after(note: str | None) -> str:
    return f" ({note})" if note else ""


def _opening(title: str, text: str) -> list[str]:
    return [f"# {title}", "", _MADE, "", text, ""]


def _row(*cells: str) -> str:
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def _paragraph(text: str | None) -> Iterator[str]:
    if text:
        yield " ".join(text.split())
        yield ""


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    PAGES.mkdir(exist_ok=True)
    for name, text in pages().items():
        (PAGES / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
