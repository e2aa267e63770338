"""Message authentication codes, and the working keys that travel under a zone master key."""

from __future__ import annotations

import hmac

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from cells.channels.iso8583.dialect import KeyScheme, MacAlgorithm

MAC_BYTES = 8
_CHECK_BYTES = 3
_BLOCK = 8
_ZEROS = bytes(16)


class KeyRefused(Exception):
    """A key that is not what it claims to be. Its text never holds any of it."""


class Mac:
    """A MAC under one working key."""

    def __init__(self, algorithm: MacAlgorithm, key: bytes) -> None:
        self._algorithm = algorithm
        match algorithm:
            case MacAlgorithm.X9_19:
                if len(key) != 16:
                    raise KeyRefused("a retail MAC takes a double-length TDES key")
                # DES is TDES with one key thrice.
                self._single = TripleDES(key[:8] * 3)
                self._double = TripleDES(_triple(key))
            case MacAlgorithm.AES_CMAC:
                if len(key) not in {16, 24, 32}:
                    raise KeyRefused("AES keys have 16, 24 or 32 bytes")
                self._aes = AES(key)
            case MacAlgorithm.NONE:
                raise KeyRefused("no MAC, no key")

    def of(self, data: bytes) -> bytes:
        if self._algorithm is MacAlgorithm.AES_CMAC:
            cmac = CMAC(self._aes)
            cmac.update(data)
            return cmac.finalize()[:MAC_BYTES]
        padded = data + bytes(-len(data) % _BLOCK)
        head, last = padded[:-_BLOCK], padded[-_BLOCK:]
        chained = bytes(_BLOCK)
        if head:
            encryptor = Cipher(self._single, modes.CBC(chained)).encryptor()
            chained = encryptor.update(head)[-_BLOCK:]
        return Cipher(self._double, modes.CBC(chained)).encryptor().update(last)

    def verify(self, data: bytes, mac: bytes) -> bool:
        return hmac.compare_digest(self.of(data), mac)


def unwrap_key(scheme: KeyScheme, master: bytes, text: str) -> bytes:
    """A working key out of a message's hex digits: the wrapped key, then six of its check value.

    Raises KeyRefused.
    """
    digits = text.strip()
    try:
        wrapped, check = bytes.fromhex(digits[:-6]), bytes.fromhex(digits[-6:])
    except ValueError:
        raise KeyRefused("a key that is no hex digits") from None
    match scheme:
        case KeyScheme.TDES_ECB:
            if len(wrapped) != 16:
                raise KeyRefused("a key that is not of double length")
            decryptor = Cipher(TripleDES(_triple(master)), modes.ECB()).decryptor()
            key = decryptor.update(wrapped)
        case KeyScheme.AES_KW:
            try:
                key = aes_key_unwrap(master, wrapped)
            except (InvalidUnwrap, ValueError):
                raise KeyRefused("a key that was not wrapped under our master key") from None
    if not hmac.compare_digest(check_value(scheme, key), check):
        raise KeyRefused("a key with another check value")
    return key


def wrap_key(scheme: KeyScheme, master: bytes, key: bytes) -> str:
    """The reverse, for whoever hands out keys."""
    match scheme:
        case KeyScheme.TDES_ECB:
            encryptor = Cipher(TripleDES(_triple(master)), modes.ECB()).encryptor()
            wrapped = encryptor.update(key)
        case KeyScheme.AES_KW:
            wrapped = aes_key_wrap(master, key)
    return (wrapped + check_value(scheme, key)).hex().upper()


def check_value(scheme: KeyScheme, key: bytes) -> bytes:
    match scheme:
        case KeyScheme.TDES_ECB:
            encryptor = Cipher(TripleDES(_triple(key)), modes.ECB()).encryptor()
            return encryptor.update(bytes(_BLOCK))[:_CHECK_BYTES]
        case KeyScheme.AES_KW:
            if len(key) not in {16, 24, 32}:
                raise KeyRefused("AES keys have 16, 24 or 32 bytes")
            cmac = CMAC(AES(key))
            cmac.update(_ZEROS)
            return cmac.finalize()[:_CHECK_BYTES]


def _triple(key: bytes) -> bytes:
    """A double-length key as the three keys that it stands for."""
    if len(key) not in {16, 24}:
        raise KeyRefused("TDES keys have 16 or 24 bytes")
    return key if len(key) == 24 else key + key[:8]
