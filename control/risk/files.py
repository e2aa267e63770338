"""Risk documents as files: YAML or JSON, one document a file.

The kind is told by what is in it (`rules:`, `entries:`, `features:`, `data:`), the name is the
file's; `kind:` and `name:` say otherwise. Everything beside these two is the document.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from router.errors import Violation
from router.policies.model import RISK_KINDS, PolicyKind
from router.policies.risk import Reference, own_faults, rulebook_of
from router.policies.rules import InvalidPolicy, Policy, PolicySet, parse, parse_name, policy_key
from router.risk.compiling import Compiling

_SUFFIXES = (".yaml", ".yml", ".json")
_KIND_OF = {
    "rules": PolicyKind.RISK_RULES,
    "entries": PolicyKind.RISK_LISTS,
    "features": PolicyKind.RISK_FEATURES,
    "data": PolicyKind.RISK_MODEL,
}


class BadFile(ValueError):
    """A file that is no risk document, and why."""


class RiskFile(NamedTuple):
    path: Path
    kind: PolicyKind
    name: str
    # JSON.
    document: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


class Checked(NamedTuple):
    file: RiskFile
    violations: Sequence[Violation]
    # What is in it, for people.
    content: str = ""


def read_files(paths: Sequence[Path]) -> list[RiskFile]:
    """Of folders, every YAML and JSON file in them. Raises BadFile, OSError."""
    found = [read_file(path) for path in _flat(paths)]
    seen: dict[str, RiskFile] = {}
    for file in found:
        other = seen.setdefault(str(file), file)
        if other is not file:
            raise BadFile(f"{other.path} and {file.path} are both {file}")
    return found


def read_file(path: Path) -> RiskFile:
    """Raises BadFile, OSError."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadFile(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise BadFile(f"{path}: holds no fields")
    name = raw.pop("name", path.stem)
    kind = raw.pop("kind", None) or next((_KIND_OF[key] for key in _KIND_OF if key in raw), None)
    if kind not in RISK_KINDS:
        wanted = ", ".join(f"{key}:" for key in _KIND_OF)
        raise BadFile(f"{path}: has none of {wanted} and no kind: of risk")
    try:
        document = json.dumps(raw, default=_plain, ensure_ascii=False, separators=(",", ":"))
        return RiskFile(path, parse_name(kind, str(name)), str(name), document)
    except (TypeError, ValueError) as error:
        raise BadFile(f"{path}: {error}") from None


def check_files(files: Sequence[RiskFile]) -> list[Checked]:
    """Each among the others, as a mesh that had just these would check them; the cases too."""
    policies: dict[str, Policy] = {}
    broken: dict[str, Sequence[Violation]] = {}
    for file in files:
        try:
            document = parse(file.kind, file.document)
            policies[policy_key(file.kind, file.name)] = Policy(file.kind, file.name, 0, document)
        except InvalidPolicy as error:
            broken[str(file)] = error.violations
    book = rulebook_of(PolicySet(policies))
    compiling = Compiling()
    found = []
    for file in files:
        if str(file) in broken:
            found.append(Checked(file, broken[str(file)]))
            continue
        violations = own_faults(book, Reference(file.kind, file.name), compiling)
        found.append(Checked(file, violations, content_of(file.kind, file.document)))
    return found


def content_of(kind: str, document: str) -> str:
    """What a document holds, in a few words; empty when it is no document."""
    try:
        raw: Mapping[str, Any] = json.loads(document)
        match kind:
            case PolicyKind.RISK_RULES:
                rules = raw.get("rules", [])
                cases = sum(len(rule.get("cases", ())) for rule in rules)
                modes = [rule.get("mode", "live") for rule in rules]
                counts = ", ".join(
                    f"{modes.count(mode)} {mode}" for mode in sorted(set(modes)) if mode != "live"
                )
                return f"{len(rules)} rules{f' ({counts})' if counts else ''}, {cases} cases"
            case PolicyKind.RISK_LISTS:
                return f"{len(raw.get('entries', ()))} {raw.get('holds', 'values')}"
            case PolicyKind.RISK_FEATURES:
                return f"{len(raw.get('features', ()))} features"
            case _:
                return f"{raw.get('version')}, {raw.get('mode')}"
    except (ValueError, AttributeError, TypeError):
        return ""


def place_of(violation: Violation, document: str) -> str:
    """A field as people look for it: with the rule's, or the feature's, name."""
    field = violation.field.removeprefix("document.")
    head, bracket, rest = field.partition("[")
    number, _, _ = rest.partition("]")
    if not bracket or not number.isdigit():
        return field
    try:
        item = json.loads(document)[head][int(number)]
        return f"{field} ({item['name']})"
    except (ValueError, LookupError, TypeError):
        return field


def _flat(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        inside = sorted(item for item in path.iterdir() if item.suffix in _SUFFIXES)
        if not inside:
            raise BadFile(f"{path}: holds no {', '.join(_SUFFIXES)}")
        yield from inside


def _plain(value: object) -> str:
    if isinstance(value, date | datetime):
        return value.isoformat()
    raise TypeError(f"holds a {type(value).__name__}, which is no JSON")


class _Loader(yaml.SafeLoader):
    """A key that stands twice is a mistake: YAML would take the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} stands here twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
