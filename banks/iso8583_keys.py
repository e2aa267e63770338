"""The bank's key store for ISO 8583: working keys under the zone master key, and MACs.

Written apart from the customer's side, so that each checks the other.
"""

from __future__ import annotations

import hmac
import os

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, modes
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.keywrap import aes_key_wrap


class Vault:
    def __init__(self, algorithm: str, scheme: str, master: bytes) -> None:
        if (algorithm, scheme) not in {("x9.19", "tdes-ecb"), ("aes-cmac", "aes-kw")}:
            raise ValueError(f"no bank seals with {algorithm} under {scheme}")
        self._retail = algorithm == "x9.19"
        self._master = master
        # The newest last; requests under the one before are still on their way.
        self._keys: list[bytes] = []

    def change(self) -> str:
        """A new working key, wrapped, with its check value, in hex digits."""
        key = os.urandom(16)
        self._keys = [*self._keys[-1:], key]
        if self._retail:
            wrapped = _tdes(self._master).update(key)
            check = _tdes(key).update(bytes(8))[:3]
        else:
            wrapped = aes_key_wrap(self._master, key)
            check = _cmac(key, bytes(16))[:3]
        return (wrapped + check).hex().upper()

    def mac(self, data: bytes) -> bytes:
        return self._mac(self._keys[-1], data) if self._keys else bytes(8)

    def verify(self, data: bytes, seal: bytes) -> bool:
        return any(hmac.compare_digest(self._mac(key, data), seal) for key in self._keys)

    def _mac(self, key: bytes, data: bytes) -> bytes:
        if not self._retail:
            return _cmac(key, data)[:8]
        # ISO 9797-1 algorithm 3: DES in chains under the left half, and the last block once back
        # through the right half and forth through the left.
        padded = data + bytes(-len(data) % 8)
        left, right = key[:8] * 3, key[8:] * 3
        chain = Cipher(TripleDES(left), modes.CBC(bytes(8))).encryptor().update(padded)[-8:]
        back = Cipher(TripleDES(right), modes.ECB()).decryptor().update(chain)
        return Cipher(TripleDES(left), modes.ECB()).encryptor().update(back)


def _tdes(key: bytes) -> CipherContext:
    return Cipher(TripleDES(key + key[:8] if len(key) == 16 else key), modes.ECB()).encryptor()


def _cmac(key: bytes, data: bytes) -> bytes:
    cmac = CMAC(AES(key))
    cmac.update(data)
    return cmac.finalize()
