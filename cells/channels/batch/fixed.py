"""Batch files of lines of one length; where each field stands is configuration.

A head, a line an item, a tail with their number and sum. Places are counted in bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import datetime
from io import BytesIO
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked

from cells.channels.batch.model import (
    FILE_BYTES_MAX,
    ITEMS_MAX,
    BadFile,
    Item,
    Result,
    Results,
    Unwritable,
)
from cells.statements.fixed_format import strip_fill
from cells.statements.layouts import Place
from cells.statements.model import Limits, StatementFault
from cells.statements.rows import raw_lines

_HEAD = {"kind": Place(2, 3), "message_id": Place(5, 35), "time": Place(40, 14)}
_RESULT_HEAD = {**_HEAD, "status": Place(54, 4), "reason": Place(58, 4)}
_PAYOUT = {
    "reference": Place(2, 35), "amount": Place(37, 16, "0", "right"), "currency": Place(53, 3),
    "bank": Place(56, 16), "number": Place(72, 34), "holder": Place(106, 80),
}  # fmt: skip
_RESULT = {
    "reference": Place(2, 35), "status": Place(37, 4), "reason": Place(41, 4),
    "bank_reference": Place(45, 35), "amount": Place(80, 16, "0", "right"),
    "currency": Place(96, 3), "clearing_date": Place(99, 8),
}  # fmt: skip
_TAIL = {"count": Place(2, 10, "0", "right"), "sum": Place(12, 18, "0", "right")}
_DIGITS = re.compile(r"[0-9]{1,18}", re.ASCII)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_PAY, _ASK, _ANSWER = "PAY", "ASK", "RES"


@checked(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class FixedBatchLayout:
    format: Literal["fixed"] = "fixed"
    length: int = 200
    charset: Literal["ascii", "utf-8", "gb18030"] = "ascii"
    head: Mapping[str, Place] = field(default_factory=lambda: _HEAD)
    payout: Mapping[str, Place] = field(default_factory=lambda: _PAYOUT)
    query: Mapping[str, Place] = field(default_factory=lambda: {"reference": Place(2, 35)})
    result_head: Mapping[str, Place] = field(default_factory=lambda: _RESULT_HEAD)
    result: Mapping[str, Place] = field(default_factory=lambda: _RESULT)
    tail: Mapping[str, Place] = field(default_factory=lambda: _TAIL)

    def __post_init__(self) -> None:
        for places, known in (
            (self.head, _HEAD), (self.payout, _PAYOUT), (self.query, {"reference"}),
            (self.result_head, _RESULT_HEAD), (self.result, _RESULT), (self.tail, _TAIL),
        ):  # fmt: skip
            if set(places) != set(known):
                raise ValueError(f"a record has the fields {sorted(known)}")
            for name, place in places.items():
                if place.start < 2 or place.start + place.length - 1 > self.length:
                    raise ValueError(f"{name} has no place in the line")


class FixedFormat:
    suffix = "txt"

    def __init__(self, layout: FixedBatchLayout) -> None:
        self._layout = layout

    def check(self, item: Item) -> None:
        if item.amount <= 0:
            raise Unwritable("the amount is not above zero")
        self._payout(item)

    def write_payouts(self, message_id: str, items: Sequence[Item], now: datetime) -> bytes:
        lines = [self._payout(item) for item in items]
        return self._file(_PAY, message_id, now, lines, sum(item.amount for item in items))

    def write_queries(self, message_id: str, references: Sequence[str], now: datetime) -> bytes:
        lines = [
            self._line("D", self._layout.query, {"reference": reference})
            for reference in references
        ]
        return self._file(_ASK, message_id, now, lines, 0)

    def read_results(self, data: bytes) -> Results:
        layout = self._layout
        if len(data) > FILE_BYTES_MAX:
            raise BadFile(f"more than {FILE_BYTES_MAX} bytes")
        try:
            lines = [
                (line.number, line.text.encode(layout.charset))
                for line in raw_lines(BytesIO(data), layout.charset, Limits(), tabs=False)
            ]
        except StatementFault as fault:
            raise BadFile(f"line {fault.line}: {fault.message}") from fault
        for number, raw in lines:
            if len(raw) != layout.length:
                raise BadFile(f"line {number}: {len(raw)} bytes instead of {layout.length}")
        if len(lines) < 2 or lines[0][1][:1] != b"H" or lines[-1][1][:1] != b"T":
            raise BadFile("it has no head or no tail")
        head = self._texts(lines[0], layout.result_head)
        tail = self._texts(lines[-1], layout.tail)
        if head["kind"] != _ANSWER:
            raise BadFile("it is no result file")
        items = tuple(self._result(line) for line in lines[1:-1])
        if tail["count"] != str(len(items)):
            raise BadFile(f"it says {tail['count'][:12]} results and has {len(items)}")
        return Results(head["message_id"], head["status"], head["reason"], items)

    def _result(self, line: tuple[int, bytes]) -> Result:
        number, raw = line
        if raw[:1] != b"D" or number > ITEMS_MAX + 1:
            raise BadFile(f"line {number}: no result, or one too many")
        texts = self._texts(line, self._layout.result)
        if not texts["reference"] or not texts["status"]:
            raise BadFile(f"line {number}: a result without a reference or a status")
        amount = texts["amount"]
        if amount and not _DIGITS.fullmatch(amount):
            raise BadFile(f"line {number}: the amount is no number")
        day = texts["clearing_date"]
        if day and not (_DIGITS.fullmatch(day) and len(day) == 8):
            raise BadFile(f"line {number}: the clearing date is none")
        return Result(
            texts["reference"], texts["status"], texts["reason"], texts["bank_reference"],
            int(amount) if amount and texts["currency"] else None, texts["currency"],
            f"{day[:4]}-{day[4:6]}-{day[6:]}" if day else "",
        )  # fmt: skip

    def _texts(self, line: tuple[int, bytes], places: Mapping[str, Place]) -> dict[str, str]:
        number, raw = line
        texts = {}
        for name, place in places.items():
            part = raw[place.start - 1 : place.start - 1 + place.length]
            try:
                text = part.decode(self._layout.charset)
            except UnicodeDecodeError as error:
                raise BadFile(f"line {number}: {name} cuts a character in two") from error
            right = place.align == "right"
            texts[name] = strip_fill(text, place.fill) if right else text.rstrip(place.fill)
        return texts

    def _file(
        self, kind: str, message_id: str, now: datetime, lines: Sequence[bytes], total: int
    ) -> bytes:
        layout = self._layout
        values = {"kind": kind, "message_id": message_id, "time": now.strftime("%Y%m%d%H%M%S")}
        head = self._line("H", layout.head, values)
        tail = self._line("T", layout.tail, {"count": str(len(lines)), "sum": str(total)})
        return b"".join([head, *lines, tail])

    def _payout(self, item: Item) -> bytes:
        return self._line(
            "D",
            self._layout.payout,
            {
                "reference": item.reference,
                "amount": str(item.amount),
                "currency": item.currency,
                "bank": item.account.bank,
                "number": item.account.number,
                "holder": item.account.holder,
            },
        )

    def _line(self, tag: str, places: Mapping[str, Place], values: Mapping[str, str]) -> bytes:
        line = bytearray(b" " * self._layout.length)
        line[0:1] = tag.encode()
        for name, place in places.items():
            text = values[name]
            try:
                raw = text.encode(self._layout.charset)
            except UnicodeEncodeError as error:
                raise Unwritable(f"{name} has characters that the file has not") from error
            if len(raw) > place.length or _CONTROL.search(text):
                raise Unwritable(f"{name} does not fit into the file")
            fill = place.fill.encode()
            raw = (
                raw.rjust(place.length, fill)
                if place.align == "right"
                else raw.ljust(place.length, fill)
            )
            line[place.start - 1 : place.start - 1 + place.length] = raw
        return bytes(line) + b"\n"
