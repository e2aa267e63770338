"""No sink holds what must be nowhere: planted canaries, and everything that a run has written.

Each sink has a control beside them, which must be found: a search that finds nothing proves little.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import secrets
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
import redis.asyncio
from cellpay.accounts.v1 import accounts_pb2
from cellpay.money.v1.money_pb2 import Money
from cellpay.notifications.v1 import notifications_pb2
from cellpay.orders.v1 import orders_pb2
from cellpay.payments.v1 import payments_pb2
from cellpay.vault.v1 import instruments_pb2 as pb
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy import text

from control.cellctl.session import Session
from router.client import Mesh
from router.errors import STATUS_DETAILS_KEY, Refusal
from router.redaction import is_luhn
from tests.integration import sinks
from tests.integration.behind import eventually
from tests.integration.collector import Collector
from tests.integration.test_vault import vault_of
from tests.integration.test_webhooks import Receiver, receiving

pytestmark = pytest.mark.mesh
_NEXT_YEAR = datetime.now(UTC).year + 1


def new_pan() -> str:
    """A Visa that nobody has had before."""
    while True:
        number = f"4{random.randrange(10**15):015}"
        if is_luhn(number) and len(set(number)) > 5:
            return number


def spellings(secret: str) -> list[bytes]:
    """How a text may look in a file: as it is, in hexadecimal, in base 64, with separators."""
    plain = secret.encode()
    found = [plain, plain.hex().encode(), plain.hex().upper().encode()]
    # Wherever it begins in what was encoded: without the ends that depend on their neighbours.
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + plain)
        found.append(encoded[4 if shift else 0 : -4])
    if secret.isdigit():
        pieces = [secret[place : place + 4] for place in range(0, len(secret), 4)]
        found += [" ".join(pieces).encode(), "-".join(pieces).encode()]
    return found


class Canaries:
    def __init__(self) -> None:
        # The second one goes where no number belongs.
        self.pan, self.lost = new_pan(), new_pan()
        self.holder = f"CANARY {secrets.token_hex(6)}"
        self.phone = f"1{random.randrange(10**10):010}7777"
        self.identity = f"ID{secrets.token_hex(8)}"
        self.secret = secrets.token_hex(24)

    def all(self) -> list[str]:
        return [self.pan, self.lost, self.holder, self.phone, self.identity]


async def told(call: Any) -> bytes:
    """All that a failed call tells its caller."""
    with pytest.raises((grpc.aio.AioRpcError, Refusal)) as caught:
        await call
    error = caught.value
    if isinstance(error, Refusal):
        return f"{error!r} {error} {error.metadata} {error.to_status()}".encode()
    assert isinstance(error, grpc.aio.AioRpcError)
    details = [value for key, value in error.trailing_metadata() or () if key == STATUS_DETAILS_KEY]
    return f"{error!r} {error.details()} {details} {error.debug_error_string()}".encode()


async def plant(mesh: Mesh, user_id: str, canaries: Canaries) -> str:
    """A card with all that may be said of it, said twice, and an account; one of them removed."""
    request = pb.RegisterCardRequest(
        user_id=user_id, number=canaries.pan, expiry_year=_NEXT_YEAR, expiry_month=3,
        holder=canaries.holder, phone=canaries.phone, identity_number=canaries.identity,
        idempotency_key="canary",
    )  # fmt: skip
    made = await mesh.instruments.RegisterCard(request)
    await mesh.instruments.RegisterCard(request)
    await mesh.instruments.GetInstrument(
        pb.GetInstrumentRequest(instrument_id=made.instrument_id), timeout=30
    )
    account = await mesh.instruments.RegisterBankAccount(
        pb.RegisterBankAccountRequest(
            user_id=user_id, number=canaries.lost, bank="BANKDEFF", holder=canaries.holder
        )
    )
    await mesh.instruments.RemoveInstrument(
        pb.RemoveInstrumentRequest(instrument_id=account.instrument_id)
    )
    return made.instrument_id


async def misplace(mesh: Mesh, user_id: str, canaries: Canaries) -> list[bytes]:
    """Mistakes of callers, with a number where none belongs; returns what they were told."""
    wrong = {"expiry_year": _NEXT_YEAR, "expiry_month": 3, "holder": canaries.holder}
    calls = [
        mesh.instruments.RegisterCard(
            pb.RegisterCardRequest(user_id=user_id, number=canaries.pan[:-1], **wrong)  # type: ignore[arg-type]
        ),
        mesh.instruments.RegisterCard(
            pb.RegisterCardRequest(user_id=user_id, number=canaries.pan, expiry_year=_NEXT_YEAR)
        ),
        mesh.instruments.RegisterCard(
            pb.RegisterCardRequest(
                user_id=user_id, number=canaries.pan, expiry_year=2020, expiry_month=1,
                holder=canaries.holder, phone=canaries.phone, identity_number=canaries.identity,
            )
        ),
        mesh.instruments.GetInstrument(pb.GetInstrumentRequest(instrument_id=canaries.lost)),
        mesh.instruments.ListInstruments(
            pb.ListInstrumentsRequest(user_id=user_id, page_token=canaries.lost)
        ),
        mesh.accounts.OpenAccount(
            accounts_pb2.OpenAccountRequest(user_id=user_id, currency=canaries.lost)
        ),
        mesh.payments.Pay(payments_pb2.PayRequest(order_id=canaries.lost)),
        mesh.instruments.GetInstrument(
            pb.GetInstrumentRequest(
                instrument_id="ins_00" + "0" * 26, read_mask=FieldMask(paths=[canaries.lost])
            )
        ),
    ]  # fmt: skip
    return [await told(call) for call in calls]


async def pay(
    mesh: Mesh, payer: str, shop: str, canaries: Canaries, receiver: Receiver
) -> orders_pb2.Order:
    """A payment that a webhook tells of, signed with a secret of the shop."""
    for user_id, kind in ((payer, 1), (shop, 2)):
        await mesh.accounts.OpenAccount(
            accounts_pb2.OpenAccountRequest(user_id=user_id, currency="USD", kind=kind)  # type: ignore[arg-type]
        )
    await mesh.accounts.Deposit(
        accounts_pb2.DepositRequest(user_id=payer, amount=Money(currency="USD", minor_units=500))
    )
    await mesh.notifications.SetEndpoint(
        notifications_pb2.SetEndpointRequest(
            merchant_id=shop, url=f"{receiver.url}/canary", secret=canaries.secret.encode()
        )
    )
    order = await mesh.orders.CreateOrder(
        orders_pb2.CreateOrderRequest(
            payer_id=payer, merchant_id=shop, amount=Money(currency="USD", minor_units=500)
        )
    )
    await mesh.payments.Pay(payments_pb2.PayRequest(order_id=order.order_id))
    return order


async def break_a_seal(session: Session, instrument_id: str) -> bytes:
    """A cell finds that somebody changed a row: what it tells and logs of it."""
    async with session.database() as engine, engine.begin() as connection:
        await connection.execute(
            text("UPDATE instruments SET number_sealed = 'AAAA' WHERE instrument_id = :id"),
            {"id": instrument_id},
        )
    async with vault_of(session, "a") as vault:
        return await told(vault.reveal(instrument_id))


def found(content: bytes, needles: Iterable[bytes]) -> bool:
    return any(needle in content for needle in needles)


async def test_no_sink_holds_a_number_a_name_or_a_key_after_a_run(
    session: Session, mesh: Mesh, collector: Collector
) -> None:
    since, canaries = time.time() - 1, Canaries()
    payer, shop = f"canary-{secrets.token_hex(4)}", f"canary-shop-{secrets.token_hex(4)}"
    everything: dict[str, list[tuple[str, bytes]]] = {}
    async with receiving() as receiver:
        instrument_id = await plant(mesh, payer, canaries)
        errors = await misplace(mesh, payer, canaries)
        order = await pay(mesh, payer, shop, canaries, receiver)
        errors.append(await break_a_seal(session, instrument_id))

        async def delivered() -> bool:
            return bool(receiver.received)

        await eventually(delivered)
        everything["webhooks"] = [
            ("webhook", json.dumps(item.headers).encode() + item.body) for item in receiver.received
        ]
    async with asyncio.timeout(60):
        # Every process sends a few times a second: until the payment is there.
        while (traces := collector.raw()).find(order.order_id.encode()) < 0:
            await asyncio.sleep(0.2)
    everything["traces"] = [("all spans", traces)]
    async with session.store() as store:
        await store.commit(expect={}, puts={"/cellpay/test-canaries": payer})
    cache = redis.asyncio.Redis.from_url(session.state.redis_url("a"))
    await cache.set("test-canaries", payer)
    everything["errors"] = [("an error", error) for error in errors]
    everything["database"] = [item async for item in sinks.database(session)]
    everything["stream"] = [item async for item in sinks.stream(session)]
    everything["redis"] = [item async for item in sinks.caches(session)]
    everything["etcd"] = [item async for item in sinks.etcd(session)]
    everything["files"] = list(sinks.files(session, since))
    everything["processes"] = list(sinks.processes(session))
    await cache.delete("test-canaries")
    await cache.aclose()
    async with session.store() as store:
        await store.commit(expect={}, puts={}, deletes=["/cellpay/test-canaries"])
    check(everything, session, canaries, payer, order.order_id, instrument_id)


def check(
    everything: dict[str, list[tuple[str, bytes]]],
    session: Session,
    canaries: Canaries,
    payer: str,
    order_id: str,
    instrument_id: str,
) -> None:
    keystore = json.loads((session.data / "keystore" / "master.json").read_bytes())
    keys = [key["keyData"]["value"] for one in keystore["keys"].values() for key in one["key"]]
    assert keys
    needles = [needle for secret in canaries.all() for needle in spellings(secret)]
    needles += [needle for key in keys for needle in (key.encode(), base64.b64decode(key))]
    needles += spellings(canaries.secret)
    for sink, contents in everything.items():
        for name, content in contents:
            assert not found(content, needles), f"{sink}: {name} holds a canary"
    controls = {
        "webhooks": order_id,
        "errors": "is not a Cellpay ID",
        "database": payer,
        "stream": order_id,
        "traces": order_id,
        "redis": payer,
        "etcd": payer,
        # The log of the cell that removed an instrument.
        "files": "an instrument was removed",
        "processes": "cells.serve",
    }
    assert controls.keys() == everything.keys()
    for sink, control in controls.items():
        assert any(control.encode() in content for _, content in everything[sink]), sink
    assert any(instrument_id.encode() in content for _, content in everything["database"])
