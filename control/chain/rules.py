"""What a link of the chain is, and where a chain breaks. Pure.

A record is stored as JSON, with `sequence` and `previous`. Its hash is over its key and its value
as stored, so nothing of it can change unseen; the head key names the last one, so the end cannot be
cut off unseen either. Who can rewrite every record *and* the head is seen only by a hash that was
noted outside (`cellctl audit verify --contains`).

Records from before the chain have no sequence. The first link's `previous` is the digest of them
all: they cannot change any more, nor can one be added to them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Head(NamedTuple):
    sequence: int
    sha256: str
    audit_id: str

    def to_json(self) -> str:
        return json.dumps(self._asdict())

    @staticmethod
    def from_json(text: str) -> Head:
        return Head(**json.loads(text))


class Broken(NamedTuple):
    """The first record that does not hold, and why."""

    audit_id: str
    problem: str


class Verdict(NamedTuple):
    broken: Broken | None
    # In the chain, and from before it.
    records: int
    unchained: int
    head: str


class _Link(NamedTuple):
    audit_id: str
    sequence: int
    previous: str
    sha256: str


def record_hash(key: str, value: str) -> str:
    return hashlib.sha256(f"{key}\n{value}".encode()).hexdigest()


def digest_of_unchained(records: Mapping[str, str]) -> str:
    """Of all records from before the chain, by key."""
    digest = hashlib.sha256()
    for key in sorted(records):
        digest.update(record_hash(key, records[key]).encode())
    return digest.hexdigest()


def link(
    head: Head | None, unchained: str, records: Iterable[tuple[str, str]]
) -> tuple[dict[str, str], Head]:
    """Records (key, JSON) as links behind the head, and the head behind them.

    `unchained`: the digest that a chain without a head begins with.
    """
    puts: dict[str, str] = {}
    sequence, previous = (head.sequence, head.sha256) if head else (0, unchained)
    audit_id = head.audit_id if head else ""
    for key, value in records:
        sequence += 1
        document = {**json.loads(value), "sequence": sequence, "previous": previous}
        puts[key] = json.dumps(document)
        previous, audit_id = record_hash(key, puts[key]), document["audit_id"]
    return puts, Head(sequence, previous, audit_id)


def is_chained(value: str) -> bool:
    try:
        return bool(json.loads(value).get("sequence"))
    except (ValueError, AttributeError):
        return False


def verify(records: Mapping[str, str], head: Head | None, contains: str = "") -> Verdict:
    """Walks the chain from its first link. `records`: everything under the audit log's prefix."""
    links: list[_Link] = []
    unchained: dict[str, str] = {}
    for key, value in records.items():
        found = _read(key, value)
        if isinstance(found, Broken):
            return Verdict(found, len(records), 0, head.sha256 if head else "")
        if found is None:
            unchained[key] = value
        else:
            links.append(found)
    links.sort(key=lambda item: item.sequence)
    broken = _walk(links, digest_of_unchained(unchained), head)
    if broken is None and contains and contains not in {item.sha256 for item in links}:
        broken = Broken("", f"no record has the hash {contains[:64]}: the log was rewritten")
    return Verdict(broken, len(links), len(unchained), head.sha256 if head else "")


def _read(key: str, value: str) -> _Link | Broken | None:
    """None: from before the chain."""
    name = key.rpartition("/")[2]
    try:
        document = json.loads(value)
        audit_id = document["audit_id"]
        sequence, previous = document.get("sequence", 0), document.get("previous", "")
        well_formed = isinstance(sequence, int) and isinstance(previous, str) and sequence >= 0
    except (ValueError, KeyError, TypeError, AttributeError):
        well_formed = False
    if not well_formed:
        return Broken(name, "is no audit record")
    if audit_id != name:
        return Broken(name, f"says that it is {audit_id}")
    if not sequence:
        return None
    return _Link(name, sequence, previous, record_hash(key, value))


def _walk(links: Sequence[_Link], unchained: str, head: Head | None) -> Broken | None:
    expected = unchained
    for number, item in enumerate(links, 1):
        if item.sequence > number:
            return Broken(
                item.audit_id, f"record {number} of the chain, before this one, is missing"
            )
        if item.sequence < number:
            return Broken(item.audit_id, f"there are two records {item.sequence}")
        if item.previous != expected:
            return Broken(item.audit_id, _mismatch(links, number))
        expected = item.sha256
    if head is None:
        if links:
            return Broken(links[-1].audit_id, "the chain's head is missing")
        return None
    if head.sequence > len(links):
        return Broken(head.audit_id, "the last record, which the head names, is missing")
    if head.sequence < len(links):
        return Broken(links[head.sequence].audit_id, "stands behind the chain's head")
    if links and head.sha256 != expected:
        return Broken(head.audit_id, "is not what the head was made of: it has been changed")
    return None


def _mismatch(links: Sequence[_Link], number: int) -> str:
    if number == 1:
        return "records from before the chain have been changed, added or removed"
    return f"{links[number - 2].audit_id}, before it, is not what it was made of"
