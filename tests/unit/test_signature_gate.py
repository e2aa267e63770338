"""The gate before a cell's services, called as by an edge: hosts, and whom a policy means.

With its nonces, its keys from etcd and a real Envoy it is tested in tests/integration.
"""

from __future__ import annotations

import time
from typing import Any

import grpc
import pytest
from cellpay.orders.v1 import orders_pb2
from cellpay.transfers.v1 import transfers_pb2

from router.errors import Refusal
from router.home import find_method, slot_finder
from router.identity import CERTIFICATE_HEADER, spiffe_id
from router.policies.model import SignatureMode, Signatures
from router.signing.call import RECEIVED
from router.signing.gate import TOLD, Novelty, SignatureGate
from router.signing.model import Algorithm, Authentic, SignedMessage
from router.signing.rules import header
from tests.property.test_signing import KEYS, SIGNERS

ORDER = "cellpay.orders.v1.OrdersService/CreateOrder"
TRANSFER = "cellpay.transfers.v1.TransfersService/CreateTransfer"
DONE = object()


class Remembering:
    async def take(self, slot: int, signed: Authentic, ahead_max_s: int) -> Novelty:
        return Novelty.NEW

    async def give_back(self, signed: Authentic) -> None:
        raise AssertionError("nothing was unavailable")


class Call:
    """What an edge passes on of a merchant's call."""

    def __init__(self, merchant: str, *headers: tuple[str, str]) -> None:
        shown = (CERTIFICATE_HEADER, f"URI={spiffe_id('merchant', merchant)}")
        self._metadata = (shown, *headers)

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_subject_alternative_name": [spiffe_id("edge", "edge").encode()]}


def gate(*hosts: str) -> SignatureGate:
    return SignatureGate(lambda: KEYS, Remembering(), lambda algorithm: None, hosts=hosts)


async def called(at: SignatureGate, method: str, request: Any, call: Call) -> Any:
    async def done(request: Any, context: Any) -> Any:
        return DONE

    found = find_method(f"/{method}")
    assert found is not None
    finder = slot_finder(found.input_type)
    assert finder is not None
    RECEIVED.set(request.SerializeToString())
    return await at.wrap(method, found.input_type, finder, done)(request, call)


async def sent(at: SignatureGate, host: str) -> Any:
    """A signed order, meant for this host and sent to it."""
    request = orders_pb2.CreateOrderRequest(
        payer_id="ann", merchant_id="shop", idempotency_key="key"
    )
    signer = SIGNERS[Algorithm.ED25519]
    message = SignedMessage(
        "POST", f"/{ORDER}", host, "application/grpc", "", request.SerializeToString()
    )
    text = header(signer.sign(message, int(time.time()), "n" * 16))
    told = ((f"{TOLD}host", host), (f"{TOLD}type", "application/grpc"), ("authorization", text))
    return await called(at, ORDER, request, Call("shop", *told))


@pytest.mark.parametrize("host", ["pay.example.com", "PAY.example.com", "pay.example.com:8444"])
async def test_a_request_for_one_of_our_names_is_taken(host: str) -> None:
    assert await sent(gate("pay.example.com", "api.example.com"), host) is DONE
    assert await sent(gate(), host) is DONE


@pytest.mark.parametrize(
    "host", ["test.example.com", "pay.example.com.test", "pay.example.com:x", "", "8444"]
)
async def test_a_request_that_was_signed_for_another_system_is_not(host: str) -> None:
    with pytest.raises(Refusal) as refused:
        await sent(gate("pay.example.com"), host)
    assert refused.value.code == grpc.StatusCode.UNAUTHENTICATED
    assert refused.value.reason == "SIGNATURE_OF_OTHER_HOST"


@pytest.mark.parametrize(
    ("method", "request_", "merchant", "passes"),
    [
        (TRANSFER, transfers_pb2.CreateTransferRequest(payer_id="shop"), "shop", False),
        # Whoever has stolen the certificate names somebody else.
        (TRANSFER, transfers_pb2.CreateTransferRequest(payer_id="ann"), "shop", False),
        (TRANSFER, transfers_pb2.CreateTransferRequest(payer_id="shop"), "other", False),
        (TRANSFER, transfers_pb2.CreateTransferRequest(payer_id="ann"), "other", True),
        (ORDER, orders_pb2.CreateOrderRequest(payer_id="a", merchant_id="shop"), "other", False),
        (ORDER, orders_pb2.CreateOrderRequest(payer_id="a", merchant_id="other"), "other", True),
    ],
)
async def test_what_is_wanted_of_a_merchant_is_wanted_of_his_certificate(
    method: str, request_: Any, merchant: str, passes: bool
) -> None:
    at = gate()
    at.apply([Signatures(mode=SignatureMode.REQUIRED, merchants=("shop",))])
    if passes:
        assert await called(at, method, request_, Call(merchant)) is DONE
        return
    with pytest.raises(Refusal) as refused:
        await called(at, method, request_, Call(merchant))
    assert refused.value.reason == "SIGNATURE_REQUIRED"
