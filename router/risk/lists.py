"""Lists that rules ask by `in_list("name", value)`: the document, and what it answers. Pure.

One document is one list; the policy's name is the list's. An entry counts until its `until`, by the
clock of whoever asks: seconds between two cells' clocks are seconds of an entry's life.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Annotated, NamedTuple

from pydantic import AwareDatetime, ConfigDict, Field, with_config

from router.redaction import without_pans

ENTRIES_MAX = 20_000
# Python's own `datetime.max`, in ms: what has no end.
_FOR_EVER_MS = 253_402_300_800_000
_DOCUMENT = with_config(ConfigDict(extra="forbid", allow_inf_nan=False))
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Holds(StrEnum):
    # Compared as they are, letter by letter.
    VALUES = "values"
    # IP addresses and CIDR ranges, of both versions.
    ADDRESSES = "addresses"


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Entry:
    value: Annotated[str, Field(min_length=1, max_length=256)]
    # Absent: for ever.
    until: AwareDatetime | None = None
    # For people: who asked for it, which case.
    note: Annotated[str, Field(max_length=256)] = ""


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class RiskList:
    entries: Annotated[tuple[Entry, ...], Field(max_length=ENTRIES_MAX)] = ()
    holds: Holds = Holds.VALUES
    description: Annotated[str, Field(max_length=512)] = ""


def faults(document: RiskList) -> Iterator[tuple[str, str]]:
    """What is wrong beyond the document's shape: (field, why)."""
    seen: set[str] = set()
    for number, entry in enumerate(document.entries):
        at = f"entries[{number}].value"
        if without_pans(entry.note) != entry.note:
            yield f"entries[{number}].note", "looks like it has a card's number"
        if without_pans(entry.value) != entry.value:
            # Not quoted: it may be one.
            yield at, "looks like a card's number; a list holds card tokens"
        elif document.holds == Holds.ADDRESSES and _network_of(entry.value) is None:
            yield at, f"{entry.value} is no IP address and no CIDR range"
        elif entry.value in seen:
            yield at, f"{entry.value} stands here twice"
        seen.add(entry.value)


class _Asked(NamedTuple):
    """One list, ready to be asked: value, or (prefix length, network) → until when, in ms."""

    values: Mapping[str, int]
    ranges: Mapping[int, tuple[tuple[int, Mapping[int, int]], ...]]


class Lists:
    """All lists in force. `contains` is what rules ask."""

    def __init__(self, documents: Mapping[str, RiskList], clock_ms: Callable[[], float]) -> None:
        """`clock_ms`: Unix time, for entries that end."""
        self.names = frozenset(documents)
        self._clock_ms = clock_ms
        self._lists = {name: _asked(document) for name, document in documents.items()}

    def contains(self, name: str, value: str) -> bool:
        """Now. A list that is not there has nothing in it."""
        return self._contains(self._clock_ms, name, value)

    def at(self, at_ms: float) -> Callable[[str, str], bool]:
        """The same question for another time."""
        return partial(self._contains, lambda: at_ms)

    def _contains(self, clock_ms: Callable[[], float], name: str, value: str) -> bool:
        asked = self._lists.get(name)
        if asked is None or not value:
            return False
        until = asked.values.get(value)
        if until is not None:
            # Most entries have no end, and need no clock.
            return until == _FOR_EVER_MS or until > clock_ms()
        return bool(asked.ranges) and _in_ranges(asked.ranges, value, clock_ms)


def _asked(document: RiskList) -> _Asked:
    if document.holds == Holds.VALUES:
        return _Asked({entry.value: _until_ms(entry) for entry in document.entries}, {})
    networks: dict[int, dict[int, dict[int, int]]] = {}
    for entry in document.entries:
        network = _network_of(entry.value)
        if network is None:
            continue
        shift = network.max_prefixlen - network.prefixlen
        same_length = networks.setdefault(network.version, {}).setdefault(shift, {})
        number = int(network.network_address) >> shift
        same_length[number] = max(_until_ms(entry), same_length.get(number, 0))
    # The number of different lengths is what a question costs: usually a few.
    return _Asked({}, {version: tuple(sorted(of.items())) for version, of in networks.items()})


def _in_ranges(
    ranges: Mapping[int, tuple[tuple[int, Mapping[int, int]], ...]],
    value: str,
    clock_ms: Callable[[], float],
) -> bool:
    try:
        address = _mapped(ipaddress.ip_address(value))
    except ValueError:
        return False
    number = int(address)
    for shift, networks in ranges.get(address.version, ()):
        until = networks.get(number >> shift)
        if until is not None and (until == _FOR_EVER_MS or until > clock_ms()):
            return True
    return False


def _mapped(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """`::ffff:192.0.2.1` is 192.0.2.1."""
    inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return inner or address


def _network_of(value: str) -> _Network | None:
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        return None
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        inner = network.network_address.ipv4_mapped
        if inner is not None:
            return ipaddress.IPv4Network((int(inner), network.prefixlen - 96))
    return network


def _until_ms(entry: Entry) -> int:
    return _FOR_EVER_MS if entry.until is None else int(entry.until.timestamp() * 1000)
