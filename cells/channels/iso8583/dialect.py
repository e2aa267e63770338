"""How one bank speaks ISO 8583: a document, not code.

The standard fixes little: field lengths and encodings, the header, the MAC, the numbers of network
messages and how a bank is asked for the outcome of another message differ from bank to bank. The
defaults are what most public specifications of ISO 8583:1987 hosts share; docs/channels.md names
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, with_config

from cells.channels.model import AnswerReason, Verdict

DOCUMENT = with_config(ConfigDict(extra="forbid", allow_inf_nan=False))

Mti = Annotated[str, Field(pattern=r"^0[1-8][0-9]{2}$")]
FieldNumber = Annotated[str, Field(pattern=r"^([2-9]|[1-9][0-9]|1[01][0-9]|12[0-8])$")]


class LengthForm(StrEnum):
    """What stands before each frame."""

    BINARY2 = "binary2"
    BINARY4 = "binary4"
    ASCII4 = "ascii4"
    BCD2 = "bcd2"


@DOCUMENT
@dataclass(frozen=True, slots=True)
class Header:
    length: LengthForm = LengthForm.BINARY2
    # The length counts its own bytes too.
    inclusive: bool = False
    # Ten hex digits before each of our messages; the bank's has as many, with any content.
    tpdu: Annotated[str, Field(pattern=r"^([0-9A-Fa-f]{10})?$")] = ""


class Base(StrEnum):
    """A specification of pyiso8583 that the bank's own fields are laid over."""

    # All in ASCII, the bitmap in hexadecimal digits.
    ASCII = "ascii"
    # The bitmap, the MAC and other binary fields as bytes; the rest in ASCII.
    BINARY = "binary"


@DOCUMENT
@dataclass(frozen=True, slots=True)
class FieldForm:
    """A field as pyiso8583 describes it (iso8583.specs)."""

    data_enc: str
    max_len: Annotated[int, Field(ge=0, le=9_999)]
    len_enc: str = "ascii"
    len_type: Annotated[int, Field(ge=0, le=4)] = 0
    len_count: str = "bytes"
    left_pad: str = ""
    right_pad: str = ""
    desc: str = ""


class MacAlgorithm(StrEnum):
    NONE = "none"
    # ANSI X9.19, which is ISO 9797-1 algorithm 3 with padding 1: the retail MAC, under TDES keys.
    X9_19 = "x9.19"
    # AES-CMAC (NIST SP 800-38B), its first eight bytes.
    AES_CMAC = "aes-cmac"


class KeyScheme(StrEnum):
    """How a working key travels under the zone master key."""

    # ANSI X9.24-1 of old: a double-length TDES key under TDES-ECB; its check value is the first
    # three bytes of eight zero bytes under it.
    TDES_ECB = "tdes-ecb"
    # RFC 3394 (NIST SP 800-38F) for AES; the check value is the first three bytes of the CMAC of
    # sixteen zero bytes under it, as ANSI X9.24-1:2017 has it.
    AES_KW = "aes-kw"


@DOCUMENT
@dataclass(frozen=True, slots=True)
class Keys:
    scheme: KeyScheme
    # Where the key stands in answers to a key request, in hex digits, with six of the check value.
    field: FieldNumber = "48"
    # A working key is asked for this often.
    change_s: Annotated[float, Field(gt=0)] = 86_400.0
    # Answers under the key before are still believed for this long after a change.
    overlap_s: Annotated[float, Field(ge=0)] = 30.0
    # So many wrong MACs in a row, and a new key is asked for.
    wrong_macs_max: Annotated[int, Field(ge=1)] = 3


@DOCUMENT
@dataclass(frozen=True, slots=True)
class Spelling:
    """A message: its type and its processing code (field 3)."""

    mti: Mti
    processing: Annotated[str, Field(pattern=r"^[0-9]{6}$")] = "000000"


@DOCUMENT
@dataclass(frozen=True, slots=True)
class Operations:
    """How each is asked for; null: this bank cannot."""

    authorise: Spelling | None = Spelling("0100")
    purchase: Spelling | None = Spelling("0200")
    capture: Spelling | None = Spelling("0220")
    refund: Spelling | None = Spelling("0200", "200000")
    payout: Spelling | None = Spelling("0200", "260000")
    query: Spelling | None = Spelling("0600")
    # A reversal is repeated until it is answered: these in order, and the last one ever again.
    reversal: tuple[Mti, ...] = ("0400", "0420", "0421")


@DOCUMENT
@dataclass(frozen=True, slots=True)
class Inquiry:
    """How a bank tells of another message. Field 39 speaks of the inquiry itself."""

    # The response code of the message asked for.
    code_field: FieldNumber = "60"
    # What stands there when that message was reversed.
    reversed_code: str = "R0"
    # The bank's word that what it cannot find (25) it will refuse, should it come yet. Without it,
    # "not found" leaves the outcome unknown: the message may be on its way.
    not_found_is_final: bool = False


@DOCUMENT
@dataclass(frozen=True, slots=True)
class Network:
    """Field 70 of network messages."""

    sign_on: str = "001"
    sign_off: str = "002"
    echo: str = "301"
    key_change: str = "101"


@DOCUMENT
@dataclass(frozen=True, slots=True)
class Meaning:
    """What a response code says of the request."""

    verdict: Verdict
    reason: AnswerReason = AnswerReason.NONE


@DOCUMENT
@dataclass(frozen=True, slots=True)
class Dialect:
    header: Header = Header()
    base: Base = Base.ASCII
    # The bank's own fields; `h`, `t`, `p` and `1` are the header, the type and the bitmaps.
    fields: Mapping[str, FieldForm] = field(default_factory=dict)
    mac: MacAlgorithm = MacAlgorithm.NONE
    keys: Keys | None = None
    operations: Operations = Operations()
    inquiry: Inquiry = Inquiry()
    network: Network = Network()
    # What an answer repeats of its request, and is found by.
    match: Annotated[tuple[FieldNumber, ...], Field(min_length=1)] = ("11", "37")
    # Our reference in full, beside its short form in field 37; and that of the original.
    reference_field: FieldNumber = "62"
    original_field: FieldNumber = "63"
    # The bank's name for what it did.
    bank_reference_field: FieldNumber = "38"
    # Fields that every financial message carries as they are (terminal, merchant, …).
    constants: Mapping[FieldNumber, str] = field(default_factory=dict)
    # Codes of field 39 that mean something else here than in `codes`, …
    codes: Mapping[str, Meaning] = field(default_factory=dict)
    # … and in answers to reversals.
    reversal_codes: Mapping[str, Meaning] = field(default_factory=dict)
    frame_bytes_max: Annotated[int, Field(ge=64, le=65_535)] = 4_096
