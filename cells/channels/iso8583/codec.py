"""Fields to bytes and back, sealed with a MAC. pyiso8583 does the bitmaps and the fields.

Whatever the bytes, `decode` raises only Undecodable. Neither its text nor anything else here
repeats a field's content.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import iso8583
from iso8583.specs import default as binary_spec
from iso8583.specs import default_ascii as ascii_spec

from cells.channels.iso8583.dialect import Base, Dialect, MacAlgorithm
from cells.channels.iso8583.mac import MAC_BYTES, Mac

Fields = dict[str, str]

_PRIMARY, _SECONDARY = "64", "128"
_NO_MAC = "0" * (2 * MAC_BYTES)


class Undecodable(Exception):
    """Bytes that are no message of this bank's."""


class Unencodable(Exception):
    """Fields that this bank's specification has no room for."""


class Codec:
    def __init__(self, dialect: Dialect) -> None:
        self._spec = specification(dialect)
        self._sealed = dialect.mac is not MacAlgorithm.NONE
        self._in_bytes = {
            name: self._spec[name]["data_enc"] == "b" for name in (_PRIMARY, _SECONDARY)
        }
        for name in (_PRIMARY, _SECONDARY):
            size = MAC_BYTES if self._in_bytes[name] else 2 * MAC_BYTES
            if self._sealed and self._spec[name]["max_len"] != size:
                raise ValueError(f"field {name} has no room for a MAC of {MAC_BYTES} bytes")

    def encode(self, fields: Fields, mac: Mac | None) -> bytes:
        """Takes `fields` over: a MAC is added. Raises Unencodable."""
        place = ""
        if mac is not None:
            place = _place(fields)
            fields[place] = _NO_MAC
        try:
            message = bytes(iso8583.encode(fields, self._spec)[0])
        except iso8583.EncodeError as error:
            raise Unencodable(f"field {error.field}: {error.msg}") from None
        if mac is None:
            return message
        data, _ = self._split(message, place)
        seal = mac.of(data)
        fields[place] = seal.hex().upper()
        return data + (seal if self._in_bytes[place] else fields[place].encode("ascii"))

    def decode(self, message: bytes) -> Fields:
        try:
            return dict(iso8583.decode(message, self._spec)[0])
        except iso8583.DecodeError as error:
            raise Undecodable(f"field {error.field}: {error.msg}") from None
        except KeyError as error:
            raise Undecodable(f"field {error}, which the bank does not have") from None

    def verify(self, message: bytes, fields: Mapping[str, str], *macs: Mac) -> bool:
        """Whether a decoded message carries its MAC under one of these keys."""
        place = _place(fields)
        if place not in fields or not macs:
            return False
        data, seal = self._split(message, place)
        if not self._in_bytes[place]:
            try:
                seal = bytes.fromhex(seal.decode("ascii"))
            except ValueError:
                return False
        return any(mac.verify(data, seal) for mac in macs)

    def _split(self, message: bytes, place: str) -> tuple[bytes, bytes]:
        """The MAC is always the last field."""
        size = MAC_BYTES if self._in_bytes[place] else 2 * MAC_BYTES
        return message[:-size], message[-size:]


def _place(fields: Mapping[str, str]) -> str:
    """Field 64, or 128 of a message that has a second bitmap."""
    has_second = any(len(name) > 1 and name.isdigit() and int(name) > 64 for name in fields)
    return _SECONDARY if has_second else _PRIMARY


def specification(dialect: Dialect) -> dict[str, dict[str, Any]]:
    """pyiso8583's, with the bank's own fields laid over. Raises ValueError."""
    base = ascii_spec if dialect.base is Base.ASCII else binary_spec
    spec: dict[str, dict[str, Any]] = copy.deepcopy(dict(base))
    for name, form in dialect.fields.items():
        if name not in spec:
            raise ValueError(f"there is no field {name}")
        for encoding in (form.data_enc, form.len_enc):
            if encoding not in {"b", "bcd"}:
                try:
                    "0".encode(encoding)
                except LookupError:
                    raise ValueError(f"field {name}: no such encoding: {encoding}") from None
        if form.len_count not in {"bytes", "nibbles"}:
            raise ValueError(f"field {name}: lengths count bytes or nibbles")
        spec[name] = {
            "data_enc": form.data_enc,
            "len_enc": form.len_enc,
            "len_type": form.len_type,
            "max_len": form.max_len,
            "len_count": form.len_count,
            "desc": form.desc,
            **({"left_pad": form.left_pad} if form.left_pad else {}),
            **({"right_pad": form.right_pad} if form.right_pad else {}),
        }
    return spec
