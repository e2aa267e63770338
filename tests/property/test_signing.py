"""Signed requests: what is signed is taken, and nothing else is, for every algorithm."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.signing.keys import BadKey, Signer, check_key, digest_of, is_signed, verify
from router.signing.model import (
    Algorithm,
    Authentic,
    Claims,
    Key,
    Reason,
    Refused,
    SignedMessage,
    Window,
)
from router.signing.rules import (
    Malformed,
    canonical,
    canonical_response,
    header,
    read_header,
    remember_until,
)

VECTORS = json.loads(
    (Path(__file__).parents[2] / "router" / "testdata" / "signing.json").read_text("utf-8")
)
NOW = 1_790_000_000
WINDOW = Window()
SIGNERS = {
    Algorithm(name): Signer(key["key_id"], Algorithm(name), key["private_pem"].encode())
    for name, key in VECTORS["keys"].items()
}
KEYS = {
    signer.key_id: Key(signer.key_id, "shop", signer.algorithm, signer.public)
    for signer in SIGNERS.values()
}
ALGORITHMS = st.sampled_from(list(Algorithm))
PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)
MESSAGES = st.builds(
    SignedMessage,
    method=st.sampled_from(["GET", "POST"]),
    target=st.text("abc/?&=%~'", max_size=20).map(lambda tail: f"/{tail}"),
    host=st.sampled_from(["pay.example.com", "test.example.com:8443"]),
    content_type=PRINTABLE,
    user_id=st.sampled_from(["", "ann", "安"]),
    body=st.binary(max_size=64),
)
NONCES = st.text("abcABC019_-", min_size=16, max_size=64)


def signed(
    algorithm: Algorithm, message: SignedMessage, timestamp: int = NOW, nonce: str = "n" * 16
) -> str:
    return header(SIGNERS[algorithm].sign(message, timestamp, nonce))


def reason_of(answer: Authentic | Refused) -> Reason | None:
    return answer.reason if isinstance(answer, Refused) else None


@settings(max_examples=30)
@given(ALGORITHMS, MESSAGES, NONCES)
def test_what_is_signed_is_taken_with_its_nonce_for_as_long_as_its_timestamp_is(
    algorithm: Algorithm, message: SignedMessage, nonce: str
) -> None:
    answer = verify(message, signed(algorithm, message, nonce=nonce), KEYS, NOW, WINDOW)
    assert isinstance(answer, Authentic)
    assert (answer.key.merchant_id, answer.nonce) == ("shop", nonce)
    assert answer.remember_until == NOW + WINDOW.old_max_s


CHANGES: list[tuple[str, Any]] = [
    ("method", "PUT"),
    ("target", "/other"),
    ("host", "evil.example.com"),
    ("content_type", "text/evil"),
    ("user_id", "mallory"),
    ("body", b"something that nobody signed"),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change[0])
@settings(max_examples=6)
@given(ALGORITHMS, MESSAGES)
def test_any_field_changed_on_the_way_is_found(
    change: tuple[str, Any], algorithm: Algorithm, message: SignedMessage
) -> None:
    text = signed(algorithm, message)
    changed = replace(message, **{change[0]: change[1]})
    assert reason_of(verify(changed, text, KEYS, NOW, WINDOW)) == Reason.WRONG


@settings(max_examples=30)
@given(ALGORITHMS, MESSAGES, st.integers(0, 10_000), st.integers(1, 255))
def test_any_byte_of_a_signature_changed_is_found(
    algorithm: Algorithm, message: SignedMessage, place: int, change: int
) -> None:
    claims = SIGNERS[algorithm].sign(message, NOW, "n" * 16)
    forged = bytearray(claims.signature)
    # Signatures of SM2 differ in length each time.
    forged[place % len(forged)] ^= change
    for signature in (bytes(forged), claims.signature[:-1], claims.signature + b"\0", b"x"):
        text = header(replace(claims, signature=signature))
        assert reason_of(verify(message, text, KEYS, NOW, WINDOW)) == Reason.WRONG
    # What was refused leaves nothing behind: the right one is still taken.
    assert isinstance(verify(message, header(claims), KEYS, NOW, WINDOW), Authentic)


@settings(max_examples=30)
@given(ALGORITHMS, ALGORITHMS, MESSAGES)
def test_a_key_signs_by_its_own_algorithm_alone(
    own: Algorithm, other: Algorithm, message: SignedMessage
) -> None:
    claims = SIGNERS[own].sign(message, NOW, "n" * 16)
    # Another algorithm under the same key, and the same signature under another's key.
    confused = header(replace(claims, algorithm=other))
    borrowed = header(replace(claims, algorithm=other, key_id=SIGNERS[other].key_id))
    expected = None if own == other else Reason.ALGORITHM_MISMATCH
    assert reason_of(verify(message, confused, KEYS, NOW, WINDOW)) == expected
    if own != other:
        assert reason_of(verify(message, borrowed, KEYS, NOW, WINDOW)) == Reason.WRONG


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"revoked": True}, Reason.KEY_REVOKED),
        ({"not_before": NOW + 1}, Reason.KEY_NOT_YET_VALID),
        ({"not_after": NOW}, Reason.KEY_EXPIRED),
        ({"not_after": NOW + 1}, None),
        ({"not_before": NOW}, None),
        ({"revoked": True, "not_after": 1}, Reason.KEY_REVOKED),
    ],
)
def test_a_key_is_good_in_its_time_and_until_it_is_revoked(
    change: dict[str, Any], reason: Reason | None
) -> None:
    message = SignedMessage("GET", "/", "h", "", "", b"")
    key_id = SIGNERS[Algorithm.RSA_SHA256].key_id
    keys = {key_id: replace(KEYS[key_id], **change)}
    text = signed(Algorithm.RSA_SHA256, message)
    assert reason_of(verify(message, text, keys, NOW, WINDOW)) == reason
    assert reason_of(verify(message, text, {}, NOW, WINDOW)) == Reason.KEY_UNKNOWN


@given(st.integers(-1000, 1000))
def test_a_timestamp_is_taken_within_the_window_and_a_nonce_is_remembered_as_long(
    off: int,
) -> None:
    message = SignedMessage("GET", "/", "h", "", "", b"")
    text = signed(Algorithm.RSA_SHA256, message, timestamp=NOW + off)
    reason = reason_of(verify(message, text, KEYS, NOW, WINDOW))
    if off >= WINDOW.ahead_max_s:
        assert reason == Reason.TIMESTAMP_AHEAD
    elif off <= -WINDOW.old_max_s:
        assert reason == Reason.TIMESTAMP_STALE
    else:
        assert reason is None
        until = remember_until(read_header(text))
        # One second before it may be taken, and so must be remembered; from then on it is not.
        assert until > NOW
        assert reason_of(verify(message, text, KEYS, until, WINDOW)) == Reason.TIMESTAMP_STALE
        assert isinstance(verify(message, text, KEYS, until - 1, WINDOW), Authentic)


def test_a_nonce_outlives_a_policy_that_made_the_window_shorter() -> None:
    message = SignedMessage("GET", "/", "h", "", "", b"")
    text = signed(Algorithm.RSA_SHA256, message, timestamp=NOW)
    short = verify(message, text, KEYS, NOW, Window(old_max_s=30))
    assert isinstance(short, Authentic)
    # The policy goes, and the request is in time again.
    then = verify(message, text, KEYS, short.remember_until, Window())
    assert reason_of(then) == Reason.TIMESTAMP_STALE


@given(MESSAGES, MESSAGES, NONCES, NONCES)
def test_two_requests_have_one_canonical_form_only_when_they_are_the_same(
    one: SignedMessage, other: SignedMessage, nonce: str, other_nonce: str
) -> None:
    forms = []
    for message, own in ((one, nonce), (other, other_nonce)):
        claims = Claims("k", Algorithm.SM2_SM3, NOW, own, b"")
        digest = digest_of(Algorithm.SM2_SM3, message.body)
        forms.append(canonical(message, claims, digest))
        assert forms[-1].count(b"\n") == 11
    assert (forms[0] == forms[1]) == ((one, nonce) == (other, other_nonce))
    answer = canonical_response(claims, bytes(32), 200, "", b"")
    assert answer != forms[0]


@pytest.mark.parametrize("bad", ["\n", "\r", "\0", "\x1f", "\x7f", "\u2028"])
@pytest.mark.parametrize("field", ["method", "target", "host", "content_type", "user_id"])
def test_a_value_that_could_pretend_to_be_two_has_no_form(field: str, bad: str) -> None:
    changed: dict[str, Any] = {field: f"/a{bad}b"}
    message = replace(SignedMessage("GET", "/", "h", "", "", b""), **changed)
    with pytest.raises(Malformed):
        SIGNERS[Algorithm.RSA_SHA256].sign(message, NOW, "n" * 16)


@given(st.text(max_size=200))
def test_no_header_makes_the_reader_fail_otherwise(text: str) -> None:
    for candidate in (text, f"CELLPAY1 {text}", f'CELLPAY1 key="{text}"'):
        try:
            claims = read_header(candidate)
        except Malformed:
            continue
        assert header(claims) == candidate


def test_a_header_has_one_text() -> None:
    text = signed(Algorithm.RSA_SHA256, SignedMessage("GET", "/", "h", "", "", b""))
    assert header(read_header(text)) == text
    first, *rest = text.removeprefix("CELLPAY1 ").split(",")
    for changed in (
        text.lower(),
        text.replace(",", ", "),
        f"{text},",
        f"{text},{first}",
        f'{text},extra="1"',
        "CELLPAY1 " + ",".join(rest),
        text.replace(f'"{NOW}"', f'"0{NOW}"'),
        text.replace(f'"{NOW}"', f'"+{NOW}"'),
        text.replace("rsa-v1_5-sha256", "none"),
        text + "\n",
    ):
        with pytest.raises(Malformed):
            read_header(changed)


@given(st.sampled_from(list(Algorithm)), st.permutations(range(5)))
def test_the_order_of_a_headers_parameters_says_nothing(
    algorithm: Algorithm, order: list[int]
) -> None:
    text = signed(algorithm, SignedMessage("GET", "/", "h", "", "", b""))
    parameters = text.removeprefix("CELLPAY1 ").split(",")
    assert read_header("CELLPAY1 " + ",".join(parameters[at] for at in order)) == read_header(text)


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: vector["name"])
def test_the_vectors_for_other_languages_hold(vector: dict[str, str]) -> None:
    algorithm = Algorithm(vector["algorithm"])
    message = SignedMessage(
        vector["method"],
        vector["target"],
        vector["host"],
        vector["content_type"],
        vector["user_id"],
        base64.b64decode(vector["body_base64"]),
    )
    claims = read_header(vector["authorization"])
    digest = digest_of(algorithm, message.body)
    assert digest.hex() == vector["digest_hex"]
    assert canonical(message, claims, digest).decode() == vector["canonical"]
    answer = verify(message, vector["authorization"], KEYS, claims.timestamp, WINDOW)
    assert isinstance(answer, Authentic)
    if algorithm == Algorithm.RSA_SHA256:
        again = SIGNERS[algorithm].sign(message, claims.timestamp, claims.nonce)
        assert header(again) == vector["authorization"]


OPTIONS = {
    Algorithm.RSA_SHA256: ["-sha256"],
    Algorithm.RSA_PSS_SHA256: [
        "-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32",
    ],
    Algorithm.SM2_SM3: ["-sm3", "-sigopt", "distid:1234567812345678"],
}  # fmt: skip


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_a_shell_with_openssl_signs_what_we_take(algorithm: Algorithm, tmp_path: Path) -> None:
    key = VECTORS["keys"][algorithm]
    private, said = tmp_path / "private.pem", b"CELLPAY1\nwhatever\n"
    private.write_text(key["private_pem"])
    if algorithm == Algorithm.ED25519:
        # It has no digest before it, so it wants a file whose length it knows.
        lines = tmp_path / "lines"
        lines.write_bytes(said)
        command = ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", str(private)]
        command += ["-in", str(lines)]
    else:
        command = ["openssl", "dgst", *OPTIONS[algorithm], "-sign", str(private)]
    done = subprocess.run(command, input=said, capture_output=True, check=True)
    public = base64.b64decode(key["public_der_base64"])
    assert is_signed(algorithm, public, done.stdout, said)
    assert not is_signed(algorithm, public, done.stdout, said + b"x")


def test_only_keys_of_their_algorithm_and_of_a_decent_size_are_registered() -> None:
    rsa, sm2 = SIGNERS[Algorithm.RSA_SHA256].public, SIGNERS[Algorithm.SM2_SM3].public
    wrong = [
        (Algorithm.SM2_SM3, rsa),
        (Algorithm.RSA_SHA256, sm2),
        *((algorithm, junk) for algorithm in Algorithm for junk in (b"", b"junk", rsa[:-1])),
    ]
    for algorithm, public in wrong:
        with pytest.raises(BadKey):
            check_key(algorithm, public)
    with pytest.raises(BadKey):
        Signer("k", Algorithm.SM2_SM3, VECTORS["keys"]["rsa-v1_5-sha256"]["private_pem"].encode())
