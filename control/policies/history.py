"""Policies as they once were, from the audit log: each change stands in it with its document, in
the same commit and so at the same revision. A large risk document stands beside the log instead,
packed, and the log has its hash: the chain holds for it too. Pure."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from control.audit import ALLOWED
from router.policies.model import RISK_KINDS
from router.policies.rules import InvalidPolicy, Policy, PolicySet, parse, parse_name, policy_key
from router.store.model import Item

# Kind, name, sha256: documents that are too large for the audit log.
ARCHIVE_PREFIX = "/cellpay/policy-documents/"
INLINE_BYTES_MAX = 8 * 1024
# Of one policy.
ARCHIVED_MAX = 20
_SHA256 = "sha256:"
_DENIED = "denied"


class Change(NamedTuple):
    revision: int
    kind: str
    name: str
    # Empty: it was deleted, or its document is archived.
    document: str
    # Of an archived document.
    sha256: str = ""
    actor: str = ""
    reason: str = ""
    time_ms: int = 0
    cleared_by: str = ""

    @property
    def deleted(self) -> bool:
        return not (self.document or self.sha256)


def changes_of(records: Sequence[Item]) -> list[Change]:
    """Of policies, in the order in which they were made."""
    found = (_change_of(item) for item in sorted(records, key=lambda item: item.revision))
    return [change for change in found if change is not None]


def _change_of(item: Item) -> Change | None:
    try:
        record = json.loads(item.value)
        kind, verb = str(record["action"]).removeprefix("policy.").split(".")
        detail, verdict = str(record["detail"]), str(record["verdict"])
        who, why, when = str(record["actor"]), str(record["reason"]), int(record["time_ms"])
    except (ValueError, KeyError, TypeError):
        return None
    if verdict.startswith(_DENIED) or not str(record["action"]).startswith("policy."):
        return None
    cleared_by = verdict.removeprefix(ALLOWED).removeprefix(": ")
    if verb == "delete":
        return Change(item.revision, kind, detail, "", "", who, why, when, cleared_by)
    name, colon, document = detail.partition(": ")
    if verb != "set" or not colon:
        return None
    sha256 = ""
    if document.startswith(_SHA256):
        sha256, document = document.removeprefix(_SHA256).partition(",")[0], ""
    return Change(item.revision, kind, name, document, sha256, who, why, when, cleared_by)


def states(changes: Sequence[Change]) -> Iterator[PolicySet]:
    """What was in force after each change."""
    policies: dict[str, Policy] = {}
    for change in changes:
        if change.kind in RISK_KINDS:
            # Of these the documents are elsewhere; nobody asks for them here.
            continue
        key = policy_key(change.kind, change.name)
        if change.document:
            try:
                kind = parse_name(change.kind, change.name)
                document = parse(kind, change.document)
            except InvalidPolicy:
                # Of a time with other rules; it is no policy of today's.
                continue
            policies[key] = Policy(kind, change.name, change.revision, document)
        else:
            policies.pop(key, None)
        yield PolicySet(dict(policies))


def laid_over(policies: PolicySet, documents: Mapping[str, object]) -> PolicySet:
    """With other documents by `kind/name`; null takes one away. Raises InvalidPolicy."""
    found = dict(policies.policies)
    for path, document in documents.items():
        kind, _, name = path.partition("/")
        parsed = parse_name(kind, name)
        key = policy_key(kind, name)
        if document is None:
            found.pop(key, None)
        else:
            found[key] = Policy(parsed, name, 0, parse(parsed, json.dumps(document)))
    return PolicySet(found)


def detail_of(kind: str, name: str, document: str) -> str:
    """What the audit log says of a written policy."""
    if not _is_archived(kind, document):
        return f"{name}: {document}"
    size = len(document.encode())
    return f"{name}: {_SHA256}{_sha256_of(document)}, {size} bytes"


def archive_put(kind: str, name: str, document: str) -> Mapping[str, str]:
    """What to put beside the record; nothing when it has the document."""
    if not _is_archived(kind, document):
        return {}
    packed = base64.b64encode(zlib.compress(document.encode(), 9)).decode("ascii")
    return {archive_key(kind, name, _sha256_of(document)): packed}


def archive_key(kind: str, name: str, sha256: str) -> str:
    return f"{archive_prefix(kind, name)}{sha256}"


def archive_prefix(kind: str, name: str) -> str:
    return f"{ARCHIVE_PREFIX}{kind}/{name}/"


def unpacked(archived: str) -> str:
    return zlib.decompress(base64.b64decode(archived)).decode()


def outdated(archived: Mapping[str, Item], puts: Mapping[str, str]) -> list[str]:
    """Keys of documents of one policy that go, the oldest first, when `puts` come."""
    others = sorted(
        (item for key, item in archived.items() if key not in puts),
        key=lambda item: item.revision,
    )
    return [item.key for item in others[: max(0, len(others) + len(puts) - ARCHIVED_MAX)]]


def _is_archived(kind: str, document: str) -> bool:
    return kind in RISK_KINDS and len(document.encode()) > INLINE_BYTES_MAX


def _sha256_of(document: str) -> str:
    return hashlib.sha256(document.encode()).hexdigest()
