"""Who said it, what it says, and what that means: the clearing house without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cells.channels.clearing.messages import Malformed, Sender, Status, Told, decode, encode
from cells.channels.clearing.rules import answer_of, outcome_of
from cells.channels.clearing.signing import (
    KEY_HEADER,
    NONCE_HEADER,
    SIGNATURE_HEADER,
    TIME_HEADER,
    NotAuthentic,
    Signer,
    Verifier,
)
from cells.channels.model import AnswerReason, BankAccount, Card, Operation, Request, Verdict
from tests.conformance.clearing_house import make_key

NOW = 1_800_000_000
BODY = b'{"a":1}'


@pytest.fixture(scope="module", params=["ed25519", "rsa"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Signer, Verifier]:
    folder: Path = tmp_path_factory.mktemp("keys")
    private, public = make_key(folder, "key", kind=request.param)
    return Signer("k1", private.read_bytes()), Verifier({"k1": public.read_bytes()})


def test_what_was_signed_is_believed_once_fresh(pair: tuple[Signer, Verifier]) -> None:
    signer, verifier = pair
    headers = signer.request("POST", "/v1/x", BODY, NOW)
    for age in (-300, 0, 300):
        signed = verifier.request(headers, "POST", "/v1/x", BODY, NOW + age, 300)
        assert signed.nonce == headers[NONCE_HEADER]
    for age in (-301, 301):
        with pytest.raises(NotAuthentic, match="ago"):
            verifier.request(headers, "POST", "/v1/x", BODY, NOW + age, 300)


def test_any_other_message_is_not_believed(pair: tuple[Signer, Verifier]) -> None:
    signer, verifier = pair
    good = signer.request("POST", "/v1/x", BODY, NOW)
    other = signer.request("POST", "/v1/x", BODY, NOW)
    assert other[NONCE_HEADER] != good[NONCE_HEADER]
    changes: list[tuple[dict[str, str], str, str, bytes]] = [
        (good, "PUT", "/v1/x", BODY),
        (good, "POST", "/v1/y", BODY),
        (good, "POST", "/v1/x", BODY + b" "),
        ({**good, TIME_HEADER: str(NOW + 1)}, "POST", "/v1/x", BODY),
        ({**good, NONCE_HEADER: other[NONCE_HEADER]}, "POST", "/v1/x", BODY),
        ({**good, SIGNATURE_HEADER: other[SIGNATURE_HEADER]}, "POST", "/v1/x", BODY),
        ({**good, SIGNATURE_HEADER: ""}, "POST", "/v1/x", BODY),
        ({**good, SIGNATURE_HEADER: "no base 64!"}, "POST", "/v1/x", BODY),
        ({**good, KEY_HEADER: "k2"}, "POST", "/v1/x", BODY),
        ({**good, NONCE_HEADER: "short"}, "POST", "/v1/x", BODY),
        ({**good, NONCE_HEADER: good[NONCE_HEADER] + "\nx"}, "POST", "/v1/x", BODY),
        ({}, "POST", "/v1/x", BODY),
    ]
    for headers, method, path, body in changes:
        with pytest.raises(NotAuthentic):
            verifier.request(headers, method, path, body, NOW, 300)


def test_an_answer_fits_its_own_request_only(pair: tuple[Signer, Verifier]) -> None:
    signer, verifier = pair
    nonce, other = "n" * 20, "m" * 20
    headers = signer.answer(200, nonce, BODY, NOW)
    verifier.answer(headers, 200, nonce, BODY)
    for changed, status, asked in (
        (headers, 200, other),
        (headers, 201, nonce),
        ({**headers, NONCE_HEADER: other}, 200, other),
    ):
        with pytest.raises(NotAuthentic):
            verifier.answer(changed, status, asked, BODY)
    # What one direction signed does not pass in the other.
    with pytest.raises(NotAuthentic):
        verifier.request(headers, "200", str(NOW), BODY, NOW, 300)


def test_weak_and_strange_keys_are_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    for key in (rsa.generate_private_key(65_537, 1024), ec.generate_private_key(ec.SECP256R1())):
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        with pytest.raises(ValueError, match="RSA"):
            Signer("k", pem)


GOOD: dict[str, Any] = {"reference": "r", "status": "approved", "amount": 1, "currency": "CNY"}


@pytest.mark.parametrize(
    "change",
    [
        {"amount": "1"}, {"amount": 1.0}, {"amount": True}, {"amount": -1}, {"amount": 2**63},
        {"status": "maybe"}, {"reference": "a b"}, {"reference": "r" * 65}, {"currency": "CNYX"},
        {"clearing_date": "24.11.2026"}, {"code": 5}, {"message": "m" * 300}, {"reference": None},
    ],
)  # fmt: skip
def test_a_field_of_another_kind_makes_no_message(change: dict[str, Any]) -> None:
    assert decode(json.dumps(GOOD).encode()).amount == 1
    with pytest.raises(Malformed):
        decode(json.dumps({**GOOD, **change}).encode())


@settings(max_examples=300)
@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*GOOD, "code", "x"]), inner, max_size=5)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_bytes_crash_the_reader(body: bytes) -> None:
    try:
        told = decode(body)
    except Malformed:
        return
    assert isinstance(told, Told)


def test_deep_and_large_bodies_are_refused() -> None:
    for body in (b"[" * 60_000, b'{"reference":"' + b"r" * 70_000, b'{"a":' * 5_000):
        with pytest.raises(Malformed):
            decode(body)


@given(st.sampled_from(Status), st.text("0123456789", max_size=2), st.sampled_from(Operation))
def test_every_status_and_code_has_a_verdict_and_no_lie_is_believed(
    status: Status, code: str, operation: Operation
) -> None:
    request = Request(operation, "r", 5, "CNY", original="o", original_amount=5)
    told = Told(reference="r", status=status, amount=5, currency="CNY", code=code, original="o")
    answer = answer_of(request, told, {})
    if status is Status.APPROVED and answer.verdict is not Verdict.UNKNOWN:
        assert answer.verdict is Verdict.APPROVED
    for change in ({"amount": 6}, {"currency": "USD"}, {"reference": "q"}):
        lie = answer_of(request, told.model_copy(update=change), {})
        if (
            operation is Operation.QUERY
            and status is Status.NOT_FOUND
            and "reference" not in change
        ):
            continue
        assert lie.verdict is Verdict.UNKNOWN
        assert lie.reason is AnswerReason.NOT_AUTHENTIC
    assert outcome_of(told, {}).verdict in Verdict


def test_a_card_travels_in_the_body_and_is_shown_nowhere() -> None:
    card = Card("6222020000000000001", "3012", "unionpay", "LI LEI")
    request = Request(Operation.AUTHORISE, "r", 5, "CNY", card, capture=False, merchant="茶")
    body = json.loads(encode(request, Sender("cellpay", "https://x/")))
    assert body["instrument"]["number"] == card.pan
    assert (body["capture"], body["merchant"], body["callback_url"]) == (False, "茶", "https://x/")
    assert card.pan not in repr(request)
    account = BankAccount("62", "b", "h")
    paid = json.loads(encode(Request(Operation.PAYOUT, "r", 5, "CNY", account), Sender("c")))
    assert paid["instrument"] == {"kind": "account", "number": "62", "bank": "b", "holder": "h"}
