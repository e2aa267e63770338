"""A day's rows as a file: CSV, lines of fixed length, or camt.053, as this bank publishes them; and
what can be wrong with a file that has nothing to do with its rows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from xml.sax.saxutils import escape

from banks.batch_files import decimal_of
from banks.statement import FileFault, Row, RowKind, RowStatus

FORMATS = ("csv", "fixed", "camt.053")
_HASH_MODULUS = 10**12
_OPENING = 100_000_000


@dataclass(slots=True)
class _Sums:
    lines: int = 0
    credits: int = 0
    debits: int = 0
    fees: int = 0
    hash_total: int = 0
    # What was booked, less fees.
    settled: int = 0


def write(
    format_: str, channel: str, day: date, rows: Sequence[Row], fault: FileFault | None
) -> bytes:
    if fault is FileFault.EMPTY:
        return b""
    if fault is FileFault.GARBAGE:
        return b"\x00\x01\x02 no statement \xfe\xff" * 50
    if fault is FileFault.OTHER_CHANNEL:
        channel = f"not-{channel}"
    if fault is FileFault.WRONG_DAY:
        day += timedelta(days=1)
    sums = _sums_of(rows)
    first = next(iter(sums.values()))
    match fault:
        case FileFault.WRONG_TOTAL:
            first.credits += 1
            first.settled += 1
        case FileFault.WRONG_COUNT:
            first.lines += 1
        case FileFault.WRONG_HASH_TOTAL:
            first.hash_total = (first.hash_total + 1) % _HASH_MODULUS
    writers = {"csv": _csv, "fixed": _fixed, "camt.053": _camt}
    data = writers[format_](channel, day, rows, sums).encode()
    return _spoiled(format_, data, fault)


def _spoiled(format_: str, data: bytes, fault: FileFault | None) -> bytes:
    match fault:
        case FileFault.TRUNCATED:
            return data[: len(data) * 6 // 10]
        case FileFault.NO_TAIL:
            return b"".join(data.splitlines(keepends=True)[:-1])
        case FileFault.CHARSET:
            return data.replace(b"T", b"\xff", 1)
        case FileFault.BOMB | FileFault.EXTERNAL_ENTITY if format_ != "camt.053":
            return b"\x00" + data
        case FileFault.BOMB:
            entities = '<!ENTITY a "ha">' + "".join(
                f'<!ENTITY {chr(98 + number)} "{f"&{chr(97 + number)};" * 10}">'
                for number in range(20)
            )
            return data.replace(b"<Document", f"<!DOCTYPE x [{entities}]><Document".encode(), 1)
        case FileFault.EXTERNAL_ENTITY:
            outside = b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><Document'
            return data.replace(b"<Document", outside, 1).replace(b"<Id>", b"<Id>&e;", 1)
    return data


def _sums_of(rows: Iterable[Row]) -> dict[str, _Sums]:
    found: dict[str, _Sums] = {}
    for row in rows:
        sums = found.setdefault(row.currency, _Sums())
        sums.lines += 1
        sums.credits += max(row.amount, 0)
        sums.debits += max(-row.amount, 0)
        sums.fees -= row.fee
        digits = "".join(one for one in row.bank_reference if one in "0123456789")
        sums.hash_total = (sums.hash_total + int(digits[-12:] or "0")) % _HASH_MODULUS
        if row.status is RowStatus.BOOKED:
            sums.settled += row.amount + row.fee
    return found or {"CNY": _Sums()}


_STATUS = {RowStatus.BOOKED: "booked", RowStatus.FAILED: "rejected"}


def _csv(channel: str, day: date, rows: Sequence[Row], sums: dict[str, _Sums]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["#statement", f"{channel}-{day:%Y%m%d}", channel, day.isoformat()])
    writer.writerow(
        ["reference", "short_reference", "bank_reference", "kind", "amount", "fee", "currency",
         "status", "booked_at", "batch"]
    )  # fmt: skip
    for row in rows:
        writer.writerow(
            [row.reference, row.short_reference, row.bank_reference, row.kind.value,
             decimal_of(row.amount, row.currency), decimal_of(-row.fee, row.currency),
             row.currency, _STATUS[row.status], f"{row.booked_at:%Y-%m-%dT%H:%M:%SZ}", ""]
        )  # fmt: skip
    for currency, one in sums.items():
        writer.writerow(
            ["#total", currency, one.lines, decimal_of(one.credits, currency),
             decimal_of(one.debits, currency), decimal_of(one.fees, currency), one.hash_total]
        )  # fmt: skip
    return text.getvalue()


_KIND = {
    RowKind.PURCHASE: "P", RowKind.REFUND: "R", RowKind.VOID: "V", RowKind.PAYOUT: "O",
    RowKind.FEE: "F",
}  # fmt: skip


def _fixed(channel: str, day: date, rows: Sequence[Row], sums: dict[str, _Sums]) -> str:
    lines = [f"H{channel}-{day:%Y%m%d}".ljust(33) + channel.ljust(32) + f"{day:%Y%m%d}"]
    for row in rows:
        status = "B" if row.status is RowStatus.BOOKED else "R"
        lines.append(
            f"D{row.reference:<35}{row.short_reference:<12}{row.bank_reference:<24}"
            f"{_KIND[row.kind]}{row.amount:+016d}{-row.fee:012d}{row.currency}{status}"
            f"{row.booked_at:%Y%m%d%H%M%S}"
        )
    lines += [
        f"T{currency}{one.lines:010d}{one.credits:018d}{one.debits:018d}{one.fees:018d}"
        f"{one.hash_total:012d}"
        for currency, one in sums.items()
    ]
    return "".join(f"{line:<200}\n" for line in lines)


_CODES = {
    RowKind.PURCHASE: ("PMNT", "MCRD", "POSP"),
    RowKind.REFUND: ("PMNT", "MCRD", "RIMB"),
    RowKind.VOID: ("PMNT", "MCRD", "POSP"),
    RowKind.PAYOUT: ("PMNT", "ICDT", "DMCT"),
    RowKind.FEE: ("ACMT", "MDOP", "CHRG"),
}


def _camt(channel: str, day: date, rows: Sequence[Row], sums: dict[str, _Sums]) -> str:
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<Document xmlns="urn:iso:std:iso:20022:tech:xsd:camt.053.001.08"><BkToCstmrStmt>'
        f"<GrpHdr><MsgId>{channel}-{day:%Y%m%d}</MsgId>"
        f"<CreDtTm>{day}T23:59:59Z</CreDtTm></GrpHdr>\n"
        f"<Stmt><Id>{channel}-{day:%Y%m%d}</Id><CreDtTm>{day}T23:59:59Z</CreDtTm>"
        f"<FrToDt><FrDtTm>{day}T00:00:00Z</FrDtTm><ToDtTm>{day}T23:59:59Z</ToDtTm></FrToDt>"
        f"<Acct><Id><Othr><Id>{channel}</Id></Othr></Id></Acct>\n"
    ]
    for currency, one in sums.items():
        parts.append(_balance("OPBD", currency, _OPENING, day))
        parts.append(_balance("CLBD", currency, _OPENING + one.settled, day))
    lines = sum(one.lines for one in sums.values())
    parts.append(
        f"<TxsSummry><TtlNtries><NbOfNtries>{lines}</NbOfNtries></TtlNtries></TxsSummry>\n"
    )
    parts += [_entry(row) for row in rows]
    parts.append("</Stmt></BkToCstmrStmt></Document>\n")
    return "".join(parts)


def _entry(row: Row) -> str:
    domain, family, sub = _CODES[row.kind]
    settled = row.amount + row.fee
    charge = ""
    if row.fee:
        side = "DBIT" if row.fee < 0 else "CRDT"
        charge = (
            f"<Chrgs><Rcrd>{_amount(abs(row.fee), row.currency)}<CdtDbtInd>{side}</CdtDbtInd>"
            "<ChrgInclInd>true</ChrgInclInd></Rcrd></Chrgs>"
        )
    return (
        f"<Ntry>{_sided(settled, row.currency)}"
        f"<RvslInd>{'true' if row.kind is RowKind.VOID else 'false'}</RvslInd>"
        f"<Sts><Cd>{'BOOK' if row.status is RowStatus.BOOKED else 'INFO'}</Cd></Sts>"
        f"<BookgDt><DtTm>{row.booked_at:%Y-%m-%dT%H:%M:%SZ}</DtTm></BookgDt>"
        f"<AcctSvcrRef>{escape(row.bank_reference)}</AcctSvcrRef>"
        f"<BkTxCd><Domn><Cd>{domain}</Cd><Fmly><Cd>{family}</Cd>"
        f"<SubFmlyCd>{sub}</SubFmlyCd></Fmly></Domn></BkTxCd>{charge}"
        f"<NtryDtls><TxDtls><Refs><EndToEndId>{escape(row.reference)}</EndToEndId></Refs>"
        "</TxDtls></NtryDtls></Ntry>\n"
    )


def _balance(code: str, currency: str, amount: int, day: date) -> str:
    return (
        f"<Bal><Tp><CdOrPrtry><Cd>{code}</Cd></CdOrPrtry></Tp>{_sided(amount, currency)}"
        f"<Dt><Dt>{day}</Dt></Dt></Bal>\n"
    )


def _sided(amount: int, currency: str) -> str:
    side = "CRDT" if amount >= 0 else "DBIT"
    return f"{_amount(abs(amount), currency)}<CdtDbtInd>{side}</CdtDbtInd>"


def _amount(amount: int, currency: str) -> str:
    return f'<Amt Ccy="{currency}">{decimal_of(amount, currency)}</Amt>'
