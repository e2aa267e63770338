"""The files of a bank that takes payouts in batches: pain.001, pacs.028 and pain.002, or lines of
fixed length, whose places the bank publishes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree

from banks.behaviour import DOCUMENT
from banks.model import Asked, Operation

_EXPONENTS = {"JPY": 0, "KRW": 0, "VND": 0, "KWD": 3, "BHD": 3, "TND": 3}


class Unreadable(ValueError):
    """A file that the bank refuses whole."""


@dataclass(frozen=True, slots=True)
class Batch:
    message_id: str
    asked: tuple[Asked, ...]


@dataclass(frozen=True, slots=True)
class ResultLine:
    reference: str
    status: str
    reason: str = ""
    bank_reference: str = ""
    amount: int = 0
    currency: str = ""
    clearing_date: str = ""


def read_pain(data: bytes) -> Batch:
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise Unreadable(str(error)) from error
    if root.tag.endswith("pain.001.001.09}Document"):
        return _payouts(root)
    if root.tag.endswith("pacs.028.001.03}Document"):
        found = root.findall("{*}FIToFIPmtStsReq/{*}TxInf/{*}OrgnlEndToEndId")
        message_id = root.findtext("{*}FIToFIPmtStsReq/{*}GrpHdr/{*}MsgId") or ""
        return Batch(message_id, tuple(_query(one.text or "") for one in found))
    raise Unreadable(root.tag)


def _payouts(root: ElementTree.Element) -> Batch:
    head = "{*}CstmrCdtTrfInitn/{*}GrpHdr"
    found = []
    for transfer in root.findall("{*}CstmrCdtTrfInitn/{*}PmtInf/{*}CdtTrfTxInf"):
        amount = transfer.find("{*}Amt/{*}InstdAmt")
        if amount is None:
            raise Unreadable("a transfer without an amount")
        currency = amount.get("Ccy", "")
        found.append(
            Asked(
                Operation.PAYOUT,
                transfer.findtext("{*}PmtId/{*}EndToEndId") or "",
                _minor(amount.text or "", currency),
                currency,
                transfer.findtext("{*}CdtrAcct/{*}Id/{*}Othr/{*}Id") or "",
            )
        )
    if root.findtext(f"{head}/{{*}}NbOfTxs") != str(len(found)):
        raise Unreadable("the number of transactions")
    return Batch(root.findtext(f"{head}/{{*}}MsgId") or "", tuple(found))


def write_pain(message_id: str, status: str, lines: Sequence[ResultLine]) -> bytes:
    root = ElementTree.Element("Document", xmlns="urn:iso:std:iso:20022:tech:xsd:pain.002.001.10")
    report = ElementTree.SubElement(root, "CstmrPmtStsRpt")
    _put(ElementTree.SubElement(report, "GrpHdr"), "MsgId", f"S-{message_id}")
    whole = ElementTree.SubElement(report, "OrgnlGrpInfAndSts")
    _put(whole, "OrgnlMsgId", message_id)
    _put(whole, "OrgnlMsgNmId", "pain.001.001.09")
    if status:
        _put(whole, "GrpSts", status)
    payment = ElementTree.SubElement(report, "OrgnlPmtInfAndSts")
    _put(payment, "OrgnlPmtInfId", message_id)
    for line in lines:
        one = ElementTree.SubElement(payment, "TxInfAndSts")
        _put(one, "OrgnlEndToEndId", line.reference)
        _put(one, "TxSts", line.status)
        if line.reason:
            reason = ElementTree.SubElement(ElementTree.SubElement(one, "StsRsnInf"), "Rsn")
            _put(reason, "Cd", line.reason)
        if line.bank_reference:
            _put(one, "AcctSvcrRef", line.bank_reference)
        original = ElementTree.SubElement(one, "OrgnlTxRef")
        if line.currency:
            amount = ElementTree.SubElement(
                ElementTree.SubElement(original, "Amt"), "InstdAmt", Ccy=line.currency
            )
            amount.text = decimal_of(line.amount, line.currency)
        if line.clearing_date:
            _put(original, "IntrBkSttlmDt", line.clearing_date)
    written: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return written


@DOCUMENT
@dataclass(frozen=True, slots=True)
class FixedPlaces:
    """Where fields stand: the first byte (from 1) and how many."""

    length: int = 200
    charset: str = "ascii"
    message_id: tuple[int, int] = (5, 35)
    kind: tuple[int, int] = (2, 3)
    payout: Mapping[str, tuple[int, int]] = field(
        default_factory=lambda: {
            "reference": (2, 35), "amount": (37, 16), "currency": (53, 3), "number": (72, 34),
        }
    )  # fmt: skip
    query: Mapping[str, tuple[int, int]] = field(default_factory=lambda: {"reference": (2, 35)})
    status: tuple[int, int] = (54, 4)
    result: Mapping[str, tuple[int, int]] = field(
        default_factory=lambda: {
            "reference": (2, 35), "status": (37, 4), "reason": (41, 4),
            "bank_reference": (45, 35), "amount": (80, 16), "currency": (96, 3),
            "clearing_date": (99, 8),
        }
    )  # fmt: skip
    count: tuple[int, int] = (2, 10)


def read_fixed(data: bytes, places: FixedPlaces) -> Batch:
    try:
        lines = data.decode(places.charset).splitlines()
    except UnicodeDecodeError as error:
        raise Unreadable("charset") from error
    raws = [line.encode(places.charset) for line in lines]
    if len(raws) < 2 or any(len(raw) != places.length for raw in raws):
        raise Unreadable("lines of another length")
    if int(_cut(raws[-1], places.count, places) or "0") != len(raws) - 2:
        raise Unreadable("the number of lines")
    message_id = _cut(raws[0], places.message_id, places)
    if _cut(raws[0], places.kind, places) == "ASK":
        return Batch(
            message_id,
            tuple(_query(_cut(raw, places.query["reference"], places)) for raw in raws[1:-1]),
        )
    found = []
    for raw in raws[1:-1]:
        texts = {name: _cut(raw, place, places) for name, place in places.payout.items()}
        if not re.fullmatch("[0-9]+", texts["amount"]):
            raise Unreadable("an amount")
        found.append(
            Asked(
                Operation.PAYOUT, texts["reference"], int(texts["amount"]), texts["currency"],
                texts["number"],
            )
        )  # fmt: skip
    return Batch(message_id, tuple(found))


def write_fixed(
    message_id: str, status: str, lines: Sequence[ResultLine], places: FixedPlaces
) -> bytes:
    head = _line("H", places, [(places.kind, "RES"), (places.message_id, message_id)])
    head = _fill(head, places.status, status)
    written = [head]
    for line in lines:
        values = {
            "reference": line.reference,
            "status": line.status,
            "reason": line.reason,
            "bank_reference": line.bank_reference,
            "amount": f"{line.amount:0{places.result['amount'][1]}d}" if line.currency else "",
            "currency": line.currency,
            "clearing_date": line.clearing_date.replace("-", ""),
        }
        written.append(
            _line("D", places, [(place, values[name]) for name, place in places.result.items()])
        )
    written.append(_line("T", places, [(places.count, f"{len(lines):0{places.count[1]}d}")]))
    return "".join(f"{line}\n" for line in written).encode(places.charset)


def decimal_of(amount: int, currency: str) -> str:
    exponent = _EXPONENTS.get(currency, 2)
    sign, amount = ("-", -amount) if amount < 0 else ("", amount)
    if not exponent:
        return f"{sign}{amount}"
    whole, part = divmod(amount, 10**exponent)
    return f"{sign}{whole}.{part:0{exponent}d}"


def _minor(text: str, currency: str) -> int:
    exponent = _EXPONENTS.get(currency, 2)
    whole, _, part = text.partition(".")
    if not (whole.isdigit() and len(part) <= exponent and (part.isdigit() or not part)):
        raise Unreadable("an amount")
    return int(whole + part.ljust(exponent, "0"))


def _query(reference: str) -> Asked:
    return Asked(Operation.QUERY, f"query-{reference}", 0, "", original=reference)


def _put(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = text


def _cut(raw: bytes, place: tuple[int, int], places: FixedPlaces) -> str:
    start, length = place
    return raw[start - 1 : start - 1 + length].decode(places.charset).strip()


def _line(tag: str, places: FixedPlaces, values: Sequence[tuple[tuple[int, int], str]]) -> str:
    line = tag.ljust(places.length)
    for place, text in values:
        line = _fill(line, place, text)
    return line


def _fill(line: str, place: tuple[int, int], text: str) -> str:
    start, length = place
    return line[: start - 1] + text[:length].ljust(length) + line[start - 1 + length :]
