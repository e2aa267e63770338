"""ISO 20022: pain.001.001.09 for payouts, pacs.028.001.03 to ask about them, pain.002.001.10 back.

The parts of them that a payout needs; element names and their order are the standard's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from io import BytesIO
from xml.etree.ElementTree import Element as Node
from xml.etree.ElementTree import SubElement, tostring

from cells.channels.batch.model import (
    FILE_BYTES_MAX,
    ITEMS_MAX,
    BadFile,
    Debtor,
    Item,
    Result,
    Results,
    Unwritable,
)
from cells.statements.model import Limits, StatementFault
from cells.statements.money import exponent_of, minor_units
from cells.statements.xml_stream import Element, XmlStream

_PAYOUTS = "urn:iso:std:iso:20022:tech:xsd:pain.001.001.09"
_QUERIES = "urn:iso:std:iso:20022:tech:xsd:pacs.028.001.03"
_RESULTS = re.compile(r"urn:iso:std:iso:20022:tech:xsd:pain\.002\.001\.(0[3-9]|1[0-4])")
_BIC = re.compile(r"[A-Z0-9]{4}[A-Z]{2}[A-Z0-9]{2}([A-Z0-9]{3})?", re.ASCII)
# XML 1.0 has no place for the other control characters, escaped or not.
_UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_REFERENCE_MAX, _NAME_MAX, _ACCOUNT_MAX = 35, 140, 34


class PainFormat:
    suffix = "xml"

    def __init__(self, debtor: Debtor) -> None:
        self._debtor = debtor

    def check(self, item: Item) -> None:
        for text, longest, what in (
            (item.reference, _REFERENCE_MAX, "reference"),
            (item.account.number, _ACCOUNT_MAX, "account number"),
            (item.account.holder, _NAME_MAX, "holder's name"),
            (item.account.bank, _REFERENCE_MAX, "bank's code"),
        ):
            if len(text) > longest or _UNWRITABLE.search(text):
                raise Unwritable(f"the {what} does not fit into the file")
        if item.amount <= 0:
            raise Unwritable("the amount is not above zero")
        _decimal(item.amount, item.currency)

    def write_payouts(self, message_id: str, items: Sequence[Item], now: datetime) -> bytes:
        root = Node("Document", xmlns=_PAYOUTS)
        initiation = SubElement(root, "CstmrCdtTrfInitn")
        head = _head(initiation, message_id, now)
        _put(head, "NbOfTxs", str(len(items)))
        # ISO 20022 sums the numbers, whatever their currencies.
        _put(head, "CtrlSum", _control_sum(items))
        _put(SubElement(head, "InitgPty"), "Nm", self._debtor.name)
        payment = SubElement(initiation, "PmtInf")
        _put(payment, "PmtInfId", message_id)
        _put(payment, "PmtMtd", "TRF")
        _put(SubElement(payment, "ReqdExctnDt"), "Dt", now.date().isoformat())
        _put(SubElement(payment, "Dbtr"), "Nm", self._debtor.name)
        _account(payment, "DbtrAcct", self._debtor.account)
        _agent(payment, "DbtrAgt", self._debtor.bank)
        for item in items:
            transfer = SubElement(payment, "CdtTrfTxInf")
            _put(SubElement(transfer, "PmtId"), "EndToEndId", item.reference)
            amount = SubElement(SubElement(transfer, "Amt"), "InstdAmt", Ccy=item.currency)
            amount.text = _decimal(item.amount, item.currency)
            _agent(transfer, "CdtrAgt", item.account.bank)
            _put(SubElement(transfer, "Cdtr"), "Nm", item.account.holder or "NOTPROVIDED")
            _account(transfer, "CdtrAcct", item.account.number)
        return _document(root)

    def write_queries(self, message_id: str, references: Sequence[str], now: datetime) -> bytes:
        root = Node("Document", xmlns=_QUERIES)
        asking = SubElement(root, "FIToFIPmtStsReq")
        _head(asking, message_id, now)
        for reference in references:
            _put(SubElement(asking, "TxInf"), "OrgnlEndToEndId", reference)
        return _document(root)

    def read_results(self, data: bytes) -> Results:
        if len(data) > FILE_BYTES_MAX:
            raise BadFile(f"more than {FILE_BYTES_MAX} bytes")
        reading = _Reading()
        try:
            return reading.read(data)
        except StatementFault as fault:
            raise BadFile(f"line {fault.line}: {fault.reason}: {fault.message}") from fault


class _Reading:
    def __init__(self) -> None:
        self._whole: Element | None = None
        self._items: list[Result] = []

    def read(self, data: bytes) -> Results:
        records = frozenset({"GrpHdr", "OrgnlGrpInfAndSts", "TxInfAndSts"})
        stream = XmlStream(records, self._record, self._root, Limits())
        for _ in stream.feed_all(BytesIO(data)):
            pass
        whole = self._whole
        if whole is None:
            raise BadFile("it does not say which file it answers")
        return Results(
            whole.value("OrgnlMsgId"),
            whole.value("GrpSts"),
            whole.value("StsRsnInf", "Rsn", "Cd"),
            tuple(self._items),
        )

    def _root(self, namespace: str, tag: str) -> None:
        if tag != "Document" or not _RESULTS.fullmatch(namespace):
            raise BadFile(f"the root is {tag[:32]!r}, no pain.002")

    def _record(self, path: tuple[str, ...], record: Element) -> None:
        if record.tag == "OrgnlGrpInfAndSts":
            if self._whole is not None:
                raise BadFile("it answers two files")
            self._whole = record
        elif record.tag == "TxInfAndSts":
            if len(self._items) >= ITEMS_MAX:
                raise BadFile(f"more than {ITEMS_MAX} results")
            self._items.append(_result(record))


def _result(record: Element) -> Result:
    amount = record.find("OrgnlTxRef", "Amt", "InstdAmt")
    number, currency = None, ""
    if amount is not None:
        currency = amount.attributes.get("Ccy", "")
        number = minor_units(amount.text, currency)
    reference, status = record.value("OrgnlEndToEndId"), record.value("TxSts")
    if not reference or not status:
        raise BadFile(f"line {record.line}: a result without a reference or a status")
    return Result(
        reference,
        status,
        record.value("StsRsnInf", "Rsn", "Cd"),
        record.value("AcctSvcrRef")[:64],
        number,
        currency,
        record.value("OrgnlTxRef", "IntrBkSttlmDt"),
    )


def _head(parent: Node, message_id: str, now: datetime) -> Node:
    head = SubElement(parent, "GrpHdr")
    _put(head, "MsgId", message_id)
    _put(head, "CreDtTm", now.strftime("%Y-%m-%dT%H:%M:%SZ"))
    return head


def _put(parent: Node, tag: str, text: str) -> None:
    SubElement(parent, tag).text = text


def _account(parent: Node, tag: str, number: str) -> None:
    _put(SubElement(SubElement(SubElement(parent, tag), "Id"), "Othr"), "Id", number)


def _agent(parent: Node, tag: str, bank: str) -> None:
    institution = SubElement(SubElement(parent, tag), "FinInstnId")
    if _BIC.fullmatch(bank):
        _put(institution, "BICFI", bank)
    else:
        _put(SubElement(institution, "ClrSysMmbId"), "MmbId", bank)


def _document(root: Node) -> bytes:
    written: bytes = tostring(root, encoding="utf-8", xml_declaration=True)
    return written


def _decimal(amount: int, currency: str) -> str:
    try:
        exponent = exponent_of(currency)
    except StatementFault as fault:
        raise Unwritable(fault.message) from fault
    if not exponent:
        return str(amount)
    whole, part = divmod(amount, 10**exponent)
    return f"{whole}.{part:0{exponent}d}"


def _control_sum(items: Sequence[Item]) -> str:
    """Exact, in thousandths: no currency of ISO 4217 in use has finer units but one (CLF, UYW),
    whose digits it keeps too."""
    total = sum(item.amount * 10 ** (4 - exponent_of(item.currency)) for item in items)
    whole, part = divmod(total, 10_000)
    return f"{whole}.{part:04d}".rstrip("0").rstrip(".")
