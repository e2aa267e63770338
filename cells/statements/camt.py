"""ISO 20022 camt.053 (bank to customer statement), versions 02 to 08, read as a stream.

An entry with several details gives a line for each, whose `batch` names the entry; an entry that
only counts what is in it gives one line of kind batch. Sources: the message definition reports of
camt.053.001.02 and .08 (iso20022.org), the Swiss Payment Standards' guidelines for cash management.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import BinaryIO
from zoneinfo import ZoneInfo

from cells.statements.layouts import CamtLayout
from cells.statements.model import (
    Claimed,
    FaultReason,
    Limits,
    LineKind,
    LineStatus,
    StatementFault,
    StatementLine,
    Totals,
)
from cells.statements.money import minor_units
from cells.statements.rules import check_day
from cells.statements.xml_stream import Element, XmlStream

_NAMESPACE = re.compile(r"urn:iso:std:iso:20022:tech:xsd:camt\.053\.001\.0[2-8]")
_RECORDS = frozenset({"Ntry", "TxsSummry", "Bal", "Acct", "FrToDt", "Id", "GrpHdr"})
_STATUSES = {
    "BOOK": LineStatus.BOOKED,
    "PDNG": LineStatus.PENDING,
    "FUTR": LineStatus.PENDING,
    "INFO": LineStatus.PENDING,
}
_FEES = frozenset({"CHRG", "FEES", "COMM", "INTR"})
# What a bank writes where the sender gave none (EPC, Swiss Payment Standards).
_NOT_PROVIDED = "NOTPROVIDED"


class CamtReading:
    """One pass over a file. Believe nothing before it has ended without a StatementFault."""

    def __init__(
        self, file: BinaryIO, layout: CamtLayout, channel: str, day: date, limits: Limits
    ) -> None:
        self._file = file
        self._layout = layout
        self._channel = channel
        self._day = day
        self._limits = limits
        self._zone = ZoneInfo(layout.time_zone)
        self._ready: list[StatementLine] = []
        self._lines = 0
        self._statements = 0
        # Of the statement that is read now.
        self._skipped = False
        self._statement_id = ""
        self._begun = Element("Stmt", 0, 0)
        self._sums = _Sums()
        self._entry = _EntryDetails()
        self.claimed = Claimed()
        self.totals: dict[str, Totals] = {}

    def __iter__(self) -> Iterator[StatementLine]:
        stream = XmlStream(
            _RECORDS, self._record, self._root, self._limits, on_inner=self._detail, inner="TxDtls"
        )
        self._stream = stream
        for _ in stream.feed_all(self._file):
            for line in self._ready:
                totals = self.totals.get(line.currency, _NOTHING)
                self.totals[line.currency] = totals.plus(line)
            yield from self._ready
            self._ready.clear()
        if not self._statements:
            what = f"of account {self._layout.account}" if self._layout.account else "at all"
            raise StatementFault(FaultReason.WRONG_CHANNEL, f"the file has no statement {what}")
        self._end_statement()
        if self.claimed.clearing_date is None:
            raise StatementFault(
                FaultReason.WRONG_DAY, "neither a period nor a closing balance says which day it is"
            )

    def _root(self, namespace: str, tag: str) -> None:
        if tag != "Document" or not _NAMESPACE.fullmatch(namespace):
            raise StatementFault(
                FaultReason.MALFORMED,
                f"the root is {tag[:32]!r} of {namespace[:64]!r}, no camt.053 of versions 02 to 08",
                line=1,
            )

    def _record(self, path: tuple[str, ...], record: Element) -> None:
        if path[:3] != ("Document", "BkToCstmrStmt", "Stmt"):
            return
        if record.tag == "Id":
            self._begin_statement(record)
        elif record.tag == "Acct":
            self._take_account(record)
        elif self._skipped:
            return
        elif record.tag == "FrToDt":
            # A period that ends at midnight is of the day before.
            end = record.value("ToDtTm")
            ended = "FrDtTm" if end[10:19] == "T00:00:00" else "ToDtTm"
            self._take_day(record, record.value(ended)[:10])
        elif record.tag == "Bal":
            self._take_balance(record)
        elif record.tag == "TxsSummry":
            self._sums.summary = record
        elif record.tag == "Ntry":
            self._take_entry(record)

    def _begin_statement(self, record: Element) -> None:
        if self._statements and not self._skipped:
            self._end_statement()
        self._skipped = False
        self._sums = _Sums()
        self._statement_id = record.text
        self._begun = record

    def _take_account(self, record: Element) -> None:
        found = record.value("Id", "IBAN") or record.value("Id", "Othr", "Id")
        self._skipped = bool(self._layout.account) and found != self._layout.account
        if self._skipped:
            return
        self._statements += 1
        if self._statements > 1:
            raise record.fault(
                FaultReason.MALFORMED, "two statements in one file, and no account is configured"
                if not self._layout.account else f"two statements of account {found}",
            )  # fmt: skip
        self.claimed = replace(self.claimed, statement_id=self._statement_id)

    def _take_day(self, record: Element, text: str) -> None:
        try:
            day = date.fromisoformat(text)
        except ValueError as error:
            raise record.fault(FaultReason.FIELD, f"{text[:32]!r} is no date") from error
        with _Placed(record):
            check_day(day, self._day)
        self.claimed = replace(self.claimed, clearing_date=day)

    def _take_balance(self, record: Element) -> None:
        code = record.value("Tp", "CdOrPrtry", "Cd")
        if code not in {"OPBD", "PRCD", "CLBD"}:
            return
        amount, currency = _amount_of(record)
        if code == "CLBD":
            self._take_day(record, (record.value("Dt", "Dt") or record.value("Dt", "DtTm"))[:10])
            self._sums.closing[currency] = amount
        elif code == "OPBD" or currency not in self._sums.opening:
            self._sums.opening[currency] = amount

    def _detail(self, detail: Element) -> None:
        """A TxDtls, as soon as it has ended; the entry's own amount has come before it."""
        entry = self._stream.outer
        if entry is None or entry.tag != "Ntry" or self._skipped:
            return
        known = self._entry
        if known.waiting is not None:
            known.settled += self._emit(entry, known.waiting, alone=False)
        known.waiting = detail
        known.count += 1

    def _take_entry(self, entry: Element) -> None:
        known, self._entry = self._entry, _EntryDetails()
        amount, currency = _amount_of(entry)
        alone = known.count <= 1
        if known.waiting is None:
            self._emit_whole(entry, amount, currency)
        else:
            known.settled += self._emit(entry, known.waiting, alone=alone)
            self._check_details(entry, known.settled, known.count, amount, currency)
        self._sums.count(amount, currency, booked=self._status(entry) is LineStatus.BOOKED)

    def _check_details(
        self, entry: Element, settled: int, count: int, amount: int, currency: str
    ) -> None:
        """An entry is what its details settle, or that less the charges of the entry itself."""
        if settled == amount:
            return
        fee, included = _charges(entry, currency, self._layout)
        if not included or settled - fee != amount:
            raise entry.fault(
                FaultReason.WRONG_TOTAL,
                f"the entry is of {amount}, its {count} details are of {settled}",
            )
        batch = entry.value("AcctSvcrRef") or entry.value("NtryRef") or _batch_reference(entry)
        self._put(
            entry, entry, reference=batch, bank_reference=entry.value("AcctSvcrRef"),
            kind=LineKind.FEE, amount=-fee, fee=0, currency=currency, batch=batch,
        )  # fmt: skip

    def _emit(self, entry: Element, detail: Element, *, alone: bool) -> int:
        """A detail as a line. What it does not say, its entry says. Gives what it settles."""
        whole, currency = _amount_of(entry)
        amount, own = _detail_amount(detail, whole, currency)
        if alone:
            # The entry is what was booked; the detail's amount may be before charges, or of the
            # currency that the sender knew.
            amount = whole
        elif own is None:
            raise detail.fault(FaultReason.AMOUNT, "one of several details has no amount")
        elif own != currency:
            raise detail.fault(FaultReason.CURRENCY, f"a detail of {own} in an entry of {currency}")
        fee, included = _charges(detail, currency, self._layout)
        if alone and not fee:
            fee, included = _charges(entry, currency, self._layout)
        fee = fee if included else 0
        refs = detail.find("Refs") or detail
        bank_reference = refs.value("AcctSvcrRef")
        batch = ""
        if alone:
            bank_reference = bank_reference or entry.value("AcctSvcrRef")
        else:
            batch = entry.value("AcctSvcrRef") or entry.value("NtryRef") or _batch_reference(entry)
        self._put(
            entry, detail,
            reference=_first(refs, self._layout.references), bank_reference=bank_reference,
            kind=self._kind(entry, detail, amount),
            amount=amount + fee, fee=fee, currency=currency, batch=batch,
        )  # fmt: skip
        return amount

    def _emit_whole(self, entry: Element, amount: int, currency: str) -> None:
        """An entry without details."""
        fee, included = _charges(entry, currency, self._layout)
        fee = fee if included else 0
        batch = _batch_reference(entry)
        of_many = entry.value("NtryDtls", "Btch", "NbOfTxs") not in {"", "0", "1"}
        self._put(
            entry, entry,
            reference=batch or entry.value("NtryRef"),
            bank_reference=entry.value("AcctSvcrRef"),
            kind=LineKind.BATCH if of_many else self._kind(entry, entry, amount),
            amount=amount + fee, fee=fee, currency=currency, batch=batch if of_many else "",
        )  # fmt: skip

    def _put(
        self,
        entry: Element,
        where: Element,
        *,
        reference: str,
        bank_reference: str,
        kind: LineKind,
        amount: int,
        fee: int,
        currency: str,
        batch: str,
    ) -> None:
        for text in (reference, bank_reference, batch):
            if len(text) > self._limits.field_characters_max:
                raise where.fault(FaultReason.TOO_LARGE, "a reference is too long")
        self._lines += 1
        if self._lines > self._limits.lines_max:
            raise where.fault(FaultReason.TOO_LARGE, f"more than {self._limits.lines_max} lines")
        self._ready.append(
            StatementLine(
                self._channel, self._day, self._lines, reference, "", bank_reference, kind,
                amount, fee, currency, self._status(entry), self._booked_at(entry), batch,
            )
        )  # fmt: skip

    def _status(self, entry: Element) -> LineStatus:
        text = entry.value("Sts", "Cd") or entry.value("Sts")
        status = _STATUSES.get(text)
        if status is None:
            raise entry.fault(FaultReason.FIELD, f"{text[:32]!r} is no status of an entry")
        return status

    def _booked_at(self, entry: Element) -> datetime | None:
        text = entry.value("BookgDt", "DtTm")
        if not text:
            return None
        try:
            parsed = datetime.fromisoformat(text)
        except ValueError as error:
            raise entry.fault(FaultReason.FIELD, f"{text[:32]!r} is no time") from error
        if parsed.tzinfo is None:
            parsed = parsed.replace(tzinfo=self._zone)
        return parsed.astimezone(UTC)

    def _kind(self, entry: Element, detail: Element, amount: int) -> LineKind:
        for code in (*_codes(detail), *_codes(entry)):
            if code in self._layout.kinds:
                return self._layout.kinds[code]
        parts = next(iter((*_codes(detail), *_codes(entry))), "").split("-")
        if entry.value("RvslInd") in {"true", "1"}:
            return LineKind.VOID
        if parts[-1] in _FEES:
            return LineKind.FEE
        if amount >= 0:
            return LineKind.PURCHASE
        # Merchants' card business that costs us money gives something back.
        return LineKind.REFUND if "MCRD" in parts else LineKind.PAYOUT

    def _end_statement(self) -> None:
        with _Placed(self._begun):
            self._sums.check(balances=self._layout.check_balances)


class _Sums:
    """What one statement's entries add up to, against what it says."""

    def __init__(self) -> None:
        self.opening: dict[str, int] = {}
        self.closing: dict[str, int] = {}
        self.summary: Element | None = None
        self._entries = {"CRDT": 0, "DBIT": 0}
        self._amounts: dict[str, dict[str, int]] = {}
        self._booked: dict[str, int] = {}

    def count(self, amount: int, currency: str, *, booked: bool) -> None:
        side = "CRDT" if amount >= 0 else "DBIT"
        self._entries[side] += 1
        amounts = self._amounts.setdefault(currency, {"CRDT": 0, "DBIT": 0})
        amounts[side] += abs(amount)
        if booked:
            self._booked[currency] = self._booked.get(currency, 0) + amount

    def check(self, *, balances: bool) -> None:
        if self.summary is not None:
            self._check_summary(self.summary)
        if not balances:
            return
        for currency, closing in self.closing.items():
            if currency not in self.opening:
                continue
            found = self.opening[currency] + self._booked.get(currency, 0)
            if found != closing:
                raise StatementFault(
                    FaultReason.WRONG_TOTAL,
                    f"{currency}: the closing balance is {closing},"
                    f" opening balance and entries give {found}",
                )

    def _check_summary(self, summary: Element) -> None:
        currency = next(iter({*self._amounts, *self.opening, *self.closing}), "")
        amounts = self._amounts.get(currency, {"CRDT": 0, "DBIT": 0})
        # Sums over currencies add nothing up.
        one = len(self._amounts) <= 1 and bool(currency)
        for tag, sides in (
            ("TtlNtries", ("CRDT", "DBIT")),
            ("TtlCdtNtries", ("CRDT",)),
            ("TtlDbtNtries", ("DBIT",)),
        ):
            said = summary.find(tag)
            if said is None:
                continue
            number = said.value("NbOfNtries")
            found = sum(self._entries[side] for side in sides)
            if number and number != str(found):
                raise said.fault(
                    FaultReason.WRONG_COUNT, f"{tag} says {number[:20]} entries, there are {found}"
                )
            total = said.value("Sum")
            if total and one:
                with _Placed(said):
                    claimed = minor_units(total, currency)
                added = sum(amounts[side] for side in sides)
                if claimed != added:
                    raise said.fault(
                        FaultReason.WRONG_TOTAL, f"{tag} says {claimed}, its entries give {added}"
                    )


class _EntryDetails:
    """The details of the entry that is open. The last waits, for whether it is the only one."""

    def __init__(self) -> None:
        self.waiting: Element | None = None
        self.count = 0
        self.settled = 0


class _Placed:
    """Gives a fault that has no place the place of an element."""

    def __init__(self, element: Element) -> None:
        self._element = element

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        if isinstance(error, StatementFault) and not error.line:
            error.line, error.column = self._element.line, self._element.column


_NOTHING = Totals()


def _amount_of(element: Element) -> tuple[int, str]:
    """Amt and CdtDbtInd of an entry or balance, as seen from us: CRDT is ours."""
    amount = element.find("Amt")
    side = element.value("CdtDbtInd")
    if amount is None or side not in {"CRDT", "DBIT"}:
        raise element.fault(FaultReason.AMOUNT, f"{element.tag} has no amount or no side")
    number, currency = _money(amount)
    return (number if side == "CRDT" else -number), currency


def _money(amount: Element) -> tuple[int, str]:
    currency = amount.attributes.get("Ccy", "")
    with _Placed(amount):
        number = minor_units(amount.text, currency)
    if number < 0:
        raise amount.fault(FaultReason.AMOUNT, "an amount of ISO 20022 has no sign")
    return number, currency


def _detail_amount(detail: Element, whole: int, currency: str) -> tuple[int, str | None]:
    """Version 08 has Amt and side; 02 has AmtDtls. Of its several amounts the first in the
    account's currency is meant."""
    side = detail.value("CdtDbtInd") or ("CRDT" if whole >= 0 else "DBIT")
    if side not in {"CRDT", "DBIT"}:
        raise detail.fault(FaultReason.FIELD, f"{side[:8]!r} is no side")
    candidates = [
        detail.find("Amt"),
        detail.find("AmtDtls", "TxAmt", "Amt"),
        detail.find("AmtDtls", "InstdAmt", "Amt"),
    ]
    found = [_money(candidate) for candidate in candidates if candidate is not None]
    if not found:
        return 0, None
    number, own = next((one for one in found if one[1] == currency), found[0])
    return (number if side == "CRDT" else -number), own


def _charges(element: Element, currency: str, layout: CamtLayout) -> tuple[int, bool]:
    """What was kept, and whether the amount is after it. Other currencies' charges are not ours."""
    fee, included = 0, False
    for charges in element.all("Chrgs"):
        records = list(charges.all("Rcrd")) or [charges]
        for record in records:
            amount = record.find("Amt")
            if amount is None:
                continue
            number, own = _money(amount)
            if own != currency:
                continue
            says = record.value("ChrgInclInd")
            if says in {"true", "1"} or (not says and layout.charges == "included"):
                included = True
                fee += -number if record.value("CdtDbtInd") == "CRDT" else number
    return fee, included


def _codes(element: Element) -> tuple[str, ...]:
    code = element.find("BkTxCd")
    if code is None:
        return ()
    parts = (
        code.value("Domn", "Cd"),
        code.value("Domn", "Fmly", "Cd"),
        code.value("Domn", "Fmly", "SubFmlyCd"),
    )
    standard = "-".join(part for part in parts if part)
    return tuple(found for found in (standard, code.value("Prtry", "Cd")) if found)


def _first(refs: Element, tags: tuple[str, ...]) -> str:
    for tag in tags:
        text = refs.value(tag)
        if text and text != _NOT_PROVIDED:
            return text
    return ""


def _batch_reference(entry: Element) -> str:
    return entry.value("NtryDtls", "Btch", "PmtInfId") or entry.value("NtryDtls", "Btch", "MsgId")
