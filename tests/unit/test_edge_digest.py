"""The edge's digests are OpenSSL's, in the Lua that Envoy runs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from lupa.luajit21 import LuaRuntime

import router.edge
from router.signing.keys import digest_of
from router.signing.model import Algorithm

LENGTHS = [*range(140), 1000, 65_536]


@pytest.fixture(scope="module")
def lua() -> Any:
    source = (Path(router.edge.__file__).parent / "digest.lua").read_text("utf-8")
    runtime: Any = LuaRuntime(encoding=None)
    return runtime.execute(f"{source}\nreturn {{sha256 = sha256, sm3 = sm3}}".encode())


@pytest.mark.parametrize("length", LENGTHS)
def test_a_body_of_any_length_has_the_digest_that_openssl_makes_of_it(
    lua: Any, length: int
) -> None:
    body = random.Random(length).randbytes(length)
    expected = digest_of(Algorithm.RSA_PSS_SHA256, body).hex()
    assert lua[b"sha256"](body).decode() == expected
    assert lua[b"sm3"](body).decode() == digest_of(Algorithm.SM2_SM3, body).hex()


@pytest.mark.parametrize("filler", [b"\x00", b"\xff"])
def test_bytes_that_carry_into_every_sum_have_the_right_digest_too(lua: Any, filler: bytes) -> None:
    for body in (filler * 64, filler * 4096):
        assert lua[b"sha256"](body).decode() == digest_of(Algorithm.RSA_SHA256, body).hex()
        assert lua[b"sm3"](body).decode() == digest_of(Algorithm.SM2_SM3, body).hex()
