"""Merchants without gRPC: HTTP/JSON through Envoy's transcoder to the home cell."""

from __future__ import annotations

import json
import ssl
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio
from cellpay.accounts.v1 import accounts_pb2
from yarl import URL

from control.cellctl.session import Session
from router.client import Mesh
from router.slots import slot_of_user

pytestmark = pytest.mark.mesh
# Any of these in a path must come out as it went in.
ODD = ("plain", "a/b", "100%", "50%25", "a b", "q?x=1", "h#1", "co:lon", "中文", "é☃", "..")


class Http:
    """A merchant's client: JSON in, status and JSON out."""

    def __init__(self, client: aiohttp.ClientSession, base: str, tls: ssl.SSLContext) -> None:
        self._client, self._base, self._tls = client, base, tls

    async def __call__(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body)
        # Not to be quoted again: what stands in the path is what is tested.
        url = URL(f"https://{self._base}{path}", encoded=True)
        sent = {"content-type": "application/json", **headers}
        async with self._client.request(method, url, data=data, headers=sent, ssl=self._tls) as got:
            text = await got.text()
            return got.status, json.loads(text) if text.startswith("{") else text


@asynccontextmanager
async def over_http(session: Session) -> AsyncIterator[Http]:
    files = session.tls("client")
    tls = ssl.create_default_context(cafile=files.ca)
    tls.load_cert_chain(files.certificate, files.key)
    async with aiohttp.ClientSession() as client:
        yield Http(client, session.http_address, tls)


@pytest_asyncio.fixture(scope="module")
async def http(session: Session) -> AsyncIterator[Http]:
    async with over_http(session) as http:
        yield http


async def _open(http: Http, user_id: str, kind: str = "KIND_PERSON") -> Any:
    status, account = await http(
        "POST",
        f"/v1/users/{quote(user_id, safe='')}/accounts",
        {"currency": "USD", "kind": kind, "idempotency_key": "open"},
    )
    assert status == 200, account
    return account


@pytest.mark.parametrize("odd", ODD)
async def test_a_user_whatever_his_name_finds_his_home_by_the_path(
    http: Http, mesh: Mesh, odd: str
) -> None:
    user_id = odd if odd == ".." else f"{odd}-{uuid.uuid4().hex[:8]}"
    if odd == "..":
        # A dot segment is no name in a URL (RFC 3986, 5.2.4), so there is no such path.
        status, refused = await http("GET", "/v1/users/../balances/USD")
        assert (status, refused["code"]) == (404, 5)
        return
    account = await _open(http, user_id)
    assert account["user_id"] == user_id
    found = await mesh.accounts.GetAccount(
        accounts_pb2.GetAccountRequest(account_id=account["account_id"])
    )
    assert found.user_id == user_id
    assert slot_of_user(found.user_id) == slot_of_user(user_id)


async def test_an_order_is_made_paid_and_refunded_over_http(http: Http) -> None:
    run = uuid.uuid4().hex[:12]
    merchant, payer = f"shop-{run}", f"payer-{run}"
    await _open(http, merchant, "KIND_MERCHANT")
    await _open(http, payer)
    money = {"currency": "USD", "minor_units": "1000"}
    status, _ = await http(
        "POST", f"/v1/users/{payer}/deposits", {"amount": money, "idempotency_key": "d"}
    )
    assert status == 200
    order_body = {"merchant_id": merchant, "amount": money, "idempotency_key": "o"}
    status, order = await http("POST", f"/v1/users/{payer}/orders", order_body)
    assert (status, order["state"]) == (200, "STATE_OPEN")
    paths = [f"/v1/orders/{order['order_id']}:pay"] * 3
    paid = [await http("POST", path, {"idempotency_key": "p"}) for path in paths]
    assert {status for status, _ in paid} == {200}
    assert len({payment["payment_id"] for _, payment in paid}) == 1
    payment = paid[0][1]["payment_id"]
    status, refund = await http(
        "POST",
        f"/v1/payments/{payment}/refunds",
        {"amount": {"currency": "USD", "minor_units": 400}, "idempotency_key": "r"},
    )
    assert (status, refund["state"]) == (200, "STATE_SUCCEEDED")
    status, found = await http("GET", f"/v1/payments/{payment}?read_mask=refunded,state")
    assert status == 200
    assert found["refunded"] == {"currency": "USD", "minor_units": "400"}
    status, balance = await http("GET", f"/v1/users/{payer}/balances/USD")
    assert (status, balance["available"]["minor_units"]) == (200, "400")
    assert balance["held"] == {"currency": "USD", "minor_units": "0"}
    status, listed = await http("GET", f"/v1/users/{payer}/payments?page_size=1")
    assert (status, listed["payments"][0]["payment_id"]) == (200, payment)


async def test_a_misspelled_amount_refunds_nothing(http: Http) -> None:
    run = uuid.uuid4().hex[:12]
    merchant, payer = f"shop-{run}", f"payer-{run}"
    await _open(http, merchant, "KIND_MERCHANT")
    await _open(http, payer)
    money = {"currency": "USD", "minor_units": "1000"}
    await http("POST", f"/v1/users/{payer}/deposits", {"amount": money, "idempotency_key": "d"})
    order_body = {"merchant_id": merchant, "amount": money, "idempotency_key": "o"}
    _, order = await http("POST", f"/v1/users/{payer}/orders", order_body)
    path = f"/v1/orders/{order['order_id']}:pay"
    _, payment = await http("POST", path, {"idempotency_key": "p"})
    refunds = f"/v1/payments/{payment['payment_id']}/refunds"
    few = {"currency": "USD", "minor_units": 1}
    for body, field in (
        ({"amout": few, "idempotency_key": "r"}, "amout"),
        ({"amount": {**few, "minor_unit": 5}, "idempotency_key": "r"}, "amount.minor_unit"),
    ):
        status, refused = await http("POST", refunds, body)
        assert (status, refused["code"]) == (400, 3)
        assert refused["details"][0]["field_violations"][0]["field"] == field
    status, balance = await http("GET", f"/v1/users/{payer}/balances/USD")
    assert (status, balance["available"]["minor_units"]) == (200, "0")


async def test_a_bank_account_is_registered_and_a_payout_asked_for_over_http(http: Http) -> None:
    user = f"user-{uuid.uuid4().hex[:8]}"
    await _open(http, user)
    account = {"number": "DE89370400440532013000", "bank": "DEUTDEFF", "holder": "A. Person"}
    status, instrument = await http(
        "POST", f"/v1/users/{user}/bank-accounts", {**account, "idempotency_key": "b"}
    )
    assert (status, instrument["last_four"]) == (200, "3000")
    mine = f"/v1/instruments/{instrument['instrument_id']}"
    assert (await http("GET", mine))[1] == instrument
    status, listed = await http("GET", f"/v1/users/{user}/instruments")
    assert (status, listed["instruments"]) == (200, [instrument])
    wanted = {
        "instrument_id": instrument["instrument_id"],
        "amount": {"currency": "USD", "minor_units": 5},
        "idempotency_key": "p",
    }
    for noun in ("payouts", "charges"):
        status, asked = await http("POST", f"/v1/users/{user}/{noun}", wanted)
        # No money to send; and no bank of this mesh takes an account in dollars. It was understood.
        assert status != 404, asked
        assert "details" in asked or noun == "charges", asked
        status, listed = await http("GET", f"/v1/users/{user}/{noun}")
        assert (status, listed["next_page_token"]) == (200, "")
    status, removed = await http("POST", f"{mine}:remove", {"idempotency_key": "x"})
    assert (status, removed["state"]) == (200, "STATE_REMOVED")


async def test_no_card_number_is_taken_over_http(http: Http) -> None:
    card = {"number": "4111111111111111", "expiry_year": 2030, "expiry_month": 1, "holder": "A"}
    for noun in ("cards", "instruments"):
        status, refused = await http("POST", f"/v1/users/somebody/{noun}", card)
        assert (status, refused["code"]) == (404, 5)
        assert "4111" not in json.dumps(refused)


async def test_a_refusal_is_json_with_its_reason_and_fields(http: Http) -> None:
    payer = f"poor-{uuid.uuid4().hex[:8]}"
    await _open(http, payer)
    body = {"amount": {"currency": "USD", "minor_units": 1}, "idempotency_key": "w"}
    status, refused = await http("POST", f"/v1/users/{payer}/withdrawals", body)
    assert (status, refused["code"]) == (400, 9)
    (info,) = [item for item in refused["details"] if item["@type"].endswith("ErrorInfo")]
    assert info["reason"] == "INSUFFICIENT_FUNDS"
    status, refused = await http("POST", f"/v1/users/{payer}/withdrawals", {})
    assert (status, refused["code"]) == (400, 3)
    (bad,) = [item for item in refused["details"] if item["@type"].endswith("BadRequest")]
    assert {violation["field"] for violation in bad["field_violations"]} >= {"idempotency_key"}


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/", None, 404),
        ("GET", "/v1/orders/nonsense", None, 404),
        ("GET", "/v1/users/somebody/secrets", None, 404),
        ("POST", "/cellpay.payments.v1.PaymentsService/Pay", {}, 404),
        # Nothing of the cells' own conversation is offered here.
        ("POST", "/v1/users/x/../../cellpay.cell.v1.CellService/DrainSlots", {}, 404),
        ("DELETE", "/v1/users/somebody/balances/USD", None, 404),
        ("GET", "/v1/users/somebody/balances/USD?colour=red", None, 400),
        ("POST", "/v1/users/somebody/orders", {"colour": "red"}, 400),
        ("POST", "/v1/users/somebody/orders", {"description": "x" * 70_000}, 413),
    ],
)
async def test_what_is_no_request_is_refused_clearly(
    http: Http, method: str, path: str, body: Any, status: int
) -> None:
    got, said = await http(method, path, body)
    assert got == status, said


async def test_headers_cannot_send_a_request_to_another_home(http: Http) -> None:
    user_id = f"mine-{uuid.uuid4().hex[:8]}"
    away = (slot_of_user(user_id) + 512) % 1024
    forged = {"x-cellpay-slot": str(away), "x-user-id": "somebody-else"}
    status, account = await http(
        "POST",
        f"/v1/users/{user_id}/accounts",
        {"currency": "USD", "idempotency_key": "open"},
        **forged,
    )
    assert (status, account["user_id"]) == (200, user_id)


async def test_a_body_cannot_name_another_user_than_the_path(http: Http) -> None:
    status, _ = await http(
        "POST",
        "/v1/users/alice-of-path/accounts",
        {"user_id": "mallory-of-body", "currency": "USD", "idempotency_key": "open"},
    )
    assert status == 400


async def test_who_shows_no_certificate_is_not_heard(session: Session) -> None:
    tls = ssl.create_default_context(cafile=session.tls("client").ca)
    async with aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.ClientError):
            await client.get(f"https://{session.http_address}/v1/users/x/balances/USD", ssl=tls)
