"""Messages, MACs and wrapped keys that others published: read as they say, written as they are.

The messages are public; each names its source in tests/vectors/iso8583.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from banks.iso8583_keys import Vault
from cells.channels.iso8583.codec import Codec
from cells.channels.iso8583.dialect import Dialect, Keys, KeyScheme, MacAlgorithm
from cells.channels.iso8583.framing import Framer
from cells.channels.iso8583.mac import KeyRefused, Mac, check_value, unwrap_key, wrap_key
from cells.channels.iso8583.network import WorkingKeys

PATH = Path(__file__).resolve().parents[1] / "vectors/iso8583.json"
VECTORS: list[dict[str, Any]] = json.loads(PATH.read_text(encoding="utf-8"))
_DIALECT = TypeAdapter(Dialect)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_published_message_is_read_and_written_as_it_is(vector: dict[str, Any]) -> None:
    dialect = _DIALECT.validate_python(vector["dialect"])
    codec = Codec(dialect)
    if "frame" in vector:
        frame = bytes.fromhex(vector["frame"])
        framer = Framer(dialect.header, dialect.frame_bytes_max)
        (message,) = framer.feed(frame)
        assert framer.wrap(message) == frame
    else:
        message = vector.get("text", "").encode("ascii") or bytes.fromhex(vector["message"])
    fields = codec.decode(message)
    assert {name: fields[name] for name in fields if name not in {"p", "1"}} == vector["fields"]
    assert codec.encode(dict(vector["fields"]), None) == message
    assert vector["source"]


# ISO/IEC 9797-1, algorithm 3 with padding 1; the second is Bouncy Castle's ISO9797Alg3MacTest.
RETAIL = [
    ("0123456789ABCDEFFEDCBA9876543210", b"Now is the time for all ", "A1C72E74EA3FA9B6"),
    ("7CA110454A1A6E570131D9619DC1376E", b"Hello World !!!!", "F09B856213BAB83B"),
]


@pytest.mark.parametrize(("key", "data", "mac"), RETAIL)
def test_the_retail_mac_is_the_published_one(key: str, data: bytes, mac: str) -> None:
    assert Mac(MacAlgorithm.X9_19, bytes.fromhex(key)).of(data) == bytes.fromhex(mac)


def test_answers_under_the_key_before_are_believed_for_a_while() -> None:
    master = bytes(range(16))
    bank = Vault("aes-cmac", "aes-kw", master)

    def after_a_change(overlap_s: float) -> tuple[WorkingKeys, bytes]:
        scheme = Keys(KeyScheme.AES_KW, overlap_s=overlap_s)
        keys = WorkingKeys(Dialect(mac=MacAlgorithm.AES_CMAC, keys=scheme), master)
        assert keys.current is None
        keys.install(bank.change())
        under_the_first = bank.mac(b"answer")
        keys.install(bank.change())
        return keys, under_the_first

    keys, old = after_a_change(3_600)
    assert any(mac.verify(b"answer", old) for mac in keys.believed())
    assert keys.current is not None
    assert keys.current.of(b"answer") == bank.mac(b"answer")
    keys, old = after_a_change(0)
    assert not any(mac.verify(b"answer", old) for mac in keys.believed())


# RFC 4493, section 4, truncated to eight bytes.
CMAC = [
    ("", "BB1D6929E9593728"),
    ("6BC1BEE22E409F96E93D7E117393172A", "070A16B46B4D4144"),
    (
        "6BC1BEE22E409F96E93D7E117393172AAE2D8A571E03AC9C9EB76FAC45AF8E5130C81C46A35CE411",
        "DFA66747DE9AE630",
    ),
]


@pytest.mark.parametrize(("data", "mac"), CMAC)
def test_the_aes_cmac_is_the_published_one(data: str, mac: str) -> None:
    key = bytes.fromhex("2B7E151628AED2A6ABF7158809CF4F3C")
    assert Mac(MacAlgorithm.AES_CMAC, key).of(bytes.fromhex(data)) == bytes.fromhex(mac)


def test_an_aes_key_is_wrapped_as_in_rfc_3394() -> None:
    # Section 4.1.
    master = bytes.fromhex("000102030405060708090A0B0C0D0E0F")
    key = bytes.fromhex("00112233445566778899AABBCCDDEEFF")
    wrapped = "1FA68B0A8112B447AEF34BD8FB5A7B829D3E862371D2CFE5"
    text = wrap_key(KeyScheme.AES_KW, master, key)
    assert text == wrapped + check_value(KeyScheme.AES_KW, key).hex().upper()
    assert unwrap_key(KeyScheme.AES_KW, master, text) == key


def test_a_check_value_is_the_beginning_of_encrypted_zeros() -> None:
    # The check value that manuals print for this double-length key.
    key = bytes.fromhex("0123456789ABCDEFFEDCBA9876543210")
    assert check_value(KeyScheme.TDES_ECB, key).hex().upper() == "08D7B4"


@pytest.mark.parametrize(
    ("mac", "scheme", "master"),
    [
        (MacAlgorithm.X9_19, KeyScheme.TDES_ECB, "0123456789ABCDEFFEDCBA9876543210"),
        (MacAlgorithm.AES_CMAC, KeyScheme.AES_KW, "000102030405060708090A0B0C0D0E0F"),
    ],
)
def test_both_sides_make_the_same_of_a_key(
    mac: MacAlgorithm, scheme: KeyScheme, master: str
) -> None:
    bank = Vault(mac, scheme, bytes.fromhex(master))
    text = bank.change()
    ours = Mac(mac, unwrap_key(scheme, bytes.fromhex(master), text))
    for size in (0, 1, 8, 15, 16, 200):
        data = bytes(range(size))
        assert ours.verify(data, bank.mac(data))
        assert bank.verify(data, ours.of(data))
        assert not ours.verify(data + b"x", bank.mac(data))
    for spoiled in ("", "zz", text[:-6] + "000000", text[:-2], "00" * 16 + text[-6:]):
        with pytest.raises(KeyRefused) as refused:
            unwrap_key(scheme, bytes.fromhex(master), spoiled)
        assert text[:-6] not in str(refused.value)
    with pytest.raises(KeyRefused):
        unwrap_key(scheme, bytes(16), text)
