"""Slots: the unit of routing, ownership and migration.

`slot = crc32(user_id as UTF-8) % 1024`, with the IEEE 802.3 CRC-32 (polynomial 0xEDB88320, the one
of zlib, PNG and gzip), so that any language can redo it. Test vectors: testdata/vectors.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple
from zlib import crc32

SLOT_COUNT = 1024
SLOT_HEADER = "x-cellpay-slot"
USER_HEADER = "x-user-id"


class SlotRange(NamedTuple):
    """Slots first..last, both included."""

    first: int
    last: int

    def __contains__(self, slot: object) -> bool:
        return isinstance(slot, int) and self.first <= slot <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    def slots(self) -> range:
        return range(self.first, self.last + 1)


def slot_of_user(user_id: str) -> int:
    return crc32(user_id.encode("utf-8")) % SLOT_COUNT


def ranges_of(slots: Iterable[int]) -> Iterator[SlotRange]:
    """The fewest ranges that hold exactly these slots, in order."""
    first = last = -1
    for slot in sorted(set(slots)):
        if slot == last + 1 and first >= 0:
            last = slot
            continue
        if first >= 0:
            yield SlotRange(first, last)
        first = last = slot
    if first >= 0:
        yield SlotRange(first, last)


def parse_range(text: str) -> SlotRange:
    """`"7"` or `"0-340"`. Raises ValueError with a sentence for people."""
    first_text, dash, last_text = text.partition("-")
    try:
        first = int(first_text)
        last = int(last_text) if dash else first
    except ValueError:
        raise ValueError(f"{text!r} is not a slot or a range of slots like 0-340") from None
    if not 0 <= first <= last < SLOT_COUNT:
        raise ValueError(f"{text!r} is outside 0-{SLOT_COUNT - 1} or runs backwards")
    return SlotRange(first, last)
