"""What field 39 says of a request, unless a bank means something else by it (Dialect.codes).

The values are those of ISO 8583:1987, table A.9 in most banks' reprints. A code is FAILED, so that
another bank may be asked, only where the standard's words leave no doubt that nothing was done; it
is UNKNOWN where whoever answered cannot know what the issuer did (20, 22, 68, 96, 98), and so is
every code that stands nowhere here.
"""

from __future__ import annotations

from collections.abc import Mapping

from cells.channels.iso8583.dialect import Meaning
from cells.channels.model import AnswerReason as Reason
from cells.channels.model import Verdict

_DECLINED: Mapping[Reason, tuple[str, ...]] = {
    Reason.DO_NOT_HONOUR: ("01", "02", "05", "17", "18", "55", "75", "38"),
    Reason.INSUFFICIENT_FUNDS: ("51",),
    Reason.INSTRUMENT_INVALID: ("14", "15", "39", "42", "44", "52", "53", "56", "78"),
    Reason.INSTRUMENT_EXPIRED: ("33", "54"),
    Reason.INSTRUMENT_STOLEN: ("04", "07", "41", "43"),
    Reason.NOT_PERMITTED: ("12", "25", "26", "36", "57", "62", "93"),
    Reason.SUSPECTED_FRAUD: ("34", "35", "37", "59", "66", "67"),
    Reason.LIMIT_EXCEEDED: ("61", "65"),
    Reason.AMOUNT_INVALID: ("13", "23", "64"),
}
_FAILED: Mapping[Reason, tuple[str, ...]] = {
    # 30 format error, 63 security violation, 97 and A0 a wrong MAC, 03 and 58 our own merchant or
    # terminal: nothing that the customer or the issuer did.
    Reason.CHANNEL_ERROR: ("03", "06", "19", "21", "30", "58", "63", "97", "A0"),
    Reason.CHANNEL_CLOSED: ("77", "90"),
    Reason.ISSUER_UNAVAILABLE: ("31", "91", "92"),
    Reason.UNSUPPORTED: ("24", "40"),
}
_UNKNOWN: Mapping[Reason, tuple[str, ...]] = {
    Reason.MALFORMED: ("20", "22", "96"),
    Reason.TIMED_OUT: ("68", "98"),
    # Approved in part: not what was asked.
    Reason.NOT_AUTHENTIC: ("10", "32"),
    # A duplicate: of what, and with which outcome, a query tells.
    Reason.CONNECTION_LOST: ("94",),
}

CODES: Mapping[str, Meaning] = {
    "00": Meaning(Verdict.APPROVED),
    "08": Meaning(Verdict.APPROVED),
    "11": Meaning(Verdict.APPROVED),
    "16": Meaning(Verdict.APPROVED),
    "09": Meaning(Verdict.PENDING),
    **{
        code: Meaning(verdict, reason)
        for verdict, table in (
            (Verdict.DECLINED, _DECLINED),
            (Verdict.FAILED, _FAILED),
            (Verdict.UNKNOWN, _UNKNOWN),
        )
        for reason, codes in table.items()
        for code in codes
    },
}

# A reversal of what the bank does not have leaves what it is to leave. (21 is "unable to back out":
# FAILED, as above.)
REVERSAL_CODES: Mapping[str, Meaning] = {
    **CODES,
    "25": Meaning(Verdict.APPROVED, Reason.NOT_FOUND),
}
UNLISTED = Meaning(Verdict.UNKNOWN, Reason.MALFORMED)
