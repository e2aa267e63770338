"""Sealing with Tink: AES-256-GCM for fields, HMAC-SHA-256 for look-ups.

What is sealed is bound to its place (slot, user, instrument, field) and to what is decided by facts
that stand beside it in the clear (kind, scheme, bank, expiry): a row that somebody copies to
another user, or whose bank somebody changes, does not open.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import Any

import tink
from tink import aead, mac, secret_key_access

from cells.vault.model import Details, KeyPurpose, SealedField, StoredInstrument

_TOKEN = secret_key_access.TOKEN
_TEMPLATES = {
    KeyPurpose.FIELD: aead.aead_key_templates.AES256_GCM,
    KeyPurpose.LOOKUP: mac.mac_key_templates.HMAC_SHA256_256BITTAG,
}
_PRIMITIVES = {KeyPurpose.FIELD: aead.Aead, KeyPurpose.LOOKUP: mac.Mac}
aead.register()
mac.register()


class SealBroken(Exception):
    """It was not sealed by this key for this place, or has been changed since."""


@dataclass(frozen=True, slots=True)
class DataKey:
    """A data key in the clear, within this process."""

    version: int
    primitive: Any = field(repr=False)


def new_material(purpose: KeyPurpose) -> bytes:
    """A key as the KMS gets it."""
    handle = tink.new_keyset_handle(_TEMPLATES[purpose])
    material: bytes = tink.proto_keyset_format.serialize(handle, _TOKEN)
    return material


def open_material(purpose: KeyPurpose, version: int, material: bytes) -> DataKey:
    try:
        handle = tink.proto_keyset_format.parse(material, _TOKEN)
        return DataKey(version, handle.primitive(_PRIMITIVES[purpose]))
    except tink.TinkError:
        raise SealBroken("the data key cannot be read") from None


def place_of(instrument: StoredInstrument, name: SealedField) -> bytes:
    """What a field's seal is bound to."""
    return json.dumps(
        [
            "cellpay.vault.1", instrument.slot, instrument.user_id, instrument.instrument_id, name,
            instrument.kind, instrument.scheme, instrument.bank, instrument.expires,
        ]
    ).encode()  # fmt: skip


def seal(key: DataKey, instrument: StoredInstrument, name: SealedField, value: str) -> str:
    """Base 64; empty for an empty value, which tells only that nothing was said."""
    if not value:
        return ""
    sealed = key.primitive.encrypt(value.encode(), place_of(instrument, name))
    return base64.b64encode(sealed).decode("ascii")


def unseal(key: DataKey, instrument: StoredInstrument, name: SealedField) -> str:
    """Raises SealBroken."""
    sealed = instrument.sealed(name)
    if not sealed:
        return ""
    try:
        data = base64.b64decode(sealed, validate=True)
        value: bytes = key.primitive.decrypt(data, place_of(instrument, name))
        # Base 64 has several texts for some bytes; only ours is taken.
        if base64.b64encode(data).decode("ascii") != sealed:
            raise binascii.Error
    except (tink.TinkError, binascii.Error, ValueError):
        raise SealBroken(f"{instrument.instrument_id}: {name} does not open") from None
    return value.decode()


def sealed_as(key: DataKey, instrument: StoredInstrument, details: Details) -> StoredInstrument:
    """The instrument with all that is said of it, sealed by this key."""
    values: dict[str, Any] = {
        f"{name}_sealed": seal(key, instrument, name, details.value(name)) for name in SealedField
    }
    return instrument._replace(field_key=key.version, **values)


def resealed(before: DataKey, after: DataKey, instrument: StoredInstrument) -> StoredInstrument:
    """The same under another key. Raises SealBroken."""
    values: dict[str, Any] = {
        f"{name}_sealed": seal(after, instrument, name, unseal(before, instrument, name))
        for name in SealedField
    }
    return instrument._replace(field_key=after.version, **values)


def lookup_id(key: DataKey, details: Details) -> str:
    """The keyed hash by which the same number of the same user is found. Another user's is
    another hash: nobody learns from it who shares a card."""
    # A card's bank is what the table of BINs says today; an account's is part of its number.
    bank = "" if details.scheme else details.bank
    said = json.dumps(["cellpay.vault.1", details.user_id, details.kind, bank, details.number])
    digest: bytes = key.primitive.compute_mac(said.encode())
    return base64.b64encode(digest).decode("ascii")
