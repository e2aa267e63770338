"""The vault on a real mesh: what is registered, what is answered, who can open it afterwards."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from cellpay.control.v1 import control_pb2, policies_pb2
from cellpay.vault.v1 import instruments_pb2 as pb
from sqlalchemy import select, text, update

from cells.channels.model import BankAccount, Card
from cells.ledger.worker import Lanes
from cells.reading import ReadEngine
from cells.settings import LaneSettings
from cells.vault.keyring import keys_of
from cells.vault.keystore import open_kms
from cells.vault.model import KeyState
from cells.vault.store import Vault
from cells.vault.tables import instruments
from control.cellctl.session import Session
from control.cellctl.vault import _counted
from router.client import Mesh
from router.errors import Refusal
from router.redaction import is_luhn
from router.slots import slot_of_user
from tests.integration.behind import eventually, going_on
from tests.integration.test_api import refused

pytestmark = pytest.mark.mesh
_numbers = itertools.count()
_NEXT_YEAR = datetime.now(UTC).year + 1
INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
VISA = "4111111111111111"
UNIONPAY = "6222021234567890128"


def new_user() -> str:
    return f"vault-{next(_numbers)}"


def card(user_id: str, number: str = VISA, **more: Any) -> pb.RegisterCardRequest:
    fields = {"expiry_year": _NEXT_YEAR, "expiry_month": 7, "holder": "ANN EXAMPLE", **more}
    return pb.RegisterCardRequest(user_id=user_id, number=number, **fields)


@asynccontextmanager
async def vault_of(session: Session, cell: str) -> AsyncIterator[Vault]:
    """The vault as a process of this cell has it."""
    kms = open_kms(str(session.data / "keystore" / "master.json"))
    async with session.database() as engine:
        lanes = Lanes(engine, cell, LaneSettings())
        async with going_on(*lanes.runners()):
            yield Vault(lanes, ReadEngine(engine), kms)


async def test_a_card_is_registered_shown_in_part_listed_and_removed(mesh: Mesh) -> None:
    user_id = new_user()
    made = await mesh.instruments.RegisterCard(card(user_id, "4111 1111-1111 1111"))
    assert made.instrument_id.startswith("ins_")
    assert (made.scheme, made.last_four) == ("visa", "1111")
    assert (made.expiry_year, made.expiry_month) == (_NEXT_YEAR, 7)
    assert (made.kind, made.state) == (pb.Instrument.KIND_CARD, pb.Instrument.STATE_ACTIVE)
    account = await mesh.instruments.RegisterBankAccount(
        pb.RegisterBankAccountRequest(
            user_id=user_id, number="DE89 3704 0044 0532 0130 00", bank="COBADEFFXXX"
        )
    )
    assert (account.kind, account.country) == (pb.Instrument.KIND_BANK_ACCOUNT, "DE")
    pages = []
    token = ""
    while True:
        page = await mesh.instruments.ListInstruments(
            pb.ListInstrumentsRequest(user_id=user_id, page_size=1, page_token=token)
        )
        pages.append([item.instrument_id for item in page.instruments])
        token = page.next_page_token
        if not token:
            break
    assert sorted(itertools.chain(*pages)) == sorted([made.instrument_id, account.instrument_id])
    assert all(len(page) <= 1 for page in pages)
    removed = await mesh.instruments.RemoveInstrument(
        pb.RemoveInstrumentRequest(instrument_id=made.instrument_id)
    )
    assert removed.state == pb.Instrument.STATE_REMOVED
    listed = await mesh.instruments.ListInstruments(pb.ListInstrumentsRequest(user_id=user_id))
    assert [item.instrument_id for item in listed.instruments] == [account.instrument_id]
    anew = await mesh.instruments.RegisterCard(card(user_id))
    assert anew.instrument_id != made.instrument_id
    again = await mesh.instruments.GetInstrument(
        pb.GetInstrumentRequest(instrument_id=made.instrument_id)
    )
    assert again.state == pb.Instrument.STATE_REMOVED


async def test_a_card_that_is_known_is_the_same_instrument(mesh: Mesh) -> None:
    user_id = new_user()
    first = await mesh.instruments.RegisterCard(card(user_id))
    renewed = await mesh.instruments.RegisterCard(card(user_id, expiry_year=_NEXT_YEAR + 3))
    assert renewed.instrument_id == first.instrument_id
    assert renewed.expiry_year == _NEXT_YEAR + 3
    other = await mesh.instruments.RegisterCard(card(new_user()))
    assert other.instrument_id != first.instrument_id


async def test_a_key_has_one_effect_and_another_number_is_refused(mesh: Mesh) -> None:
    user_id, key = new_user(), str(uuid.uuid4())
    first = await mesh.instruments.RegisterCard(card(user_id, idempotency_key=key))
    again = await mesh.instruments.RegisterCard(card(user_id, idempotency_key=key))
    assert again.instrument_id == first.instrument_id
    # The same last four digits: only the keyed hash tells them apart.
    other = card(user_id, _same_end(VISA), idempotency_key=key)
    await refused(
        mesh.instruments.RegisterCard(other),
        grpc.StatusCode.ALREADY_EXISTS,
        "EXISTS_WITH_DIFFERENT_INPUT",
    )


def _same_end(number: str) -> str:
    """Another valid number with the same scheme and last four digits."""
    for middle in range(1, 10**6):
        found = f"{number[:6]}{middle:06}{number[12:]}"
        if found != number and is_luhn(found):
            return found
    raise AssertionError


async def test_what_is_wrong_is_named_and_never_quoted(mesh: Mesh) -> None:
    calls = {
        "number": card(new_user(), "4111111111111112"),
        "expiry_month": card(new_user(), expiry_month=13),
        "holder": card(new_user(), holder="x" * 300),
    }
    for field, request in calls.items():
        with pytest.raises((grpc.aio.AioRpcError, Refusal)) as caught:
            await mesh.instruments.RegisterCard(request)
        assert field in str(caught.value)
        assert request.number not in str(caught.value)
    past = card(new_user(), expiry_year=2020)
    await refused(mesh.instruments.RegisterCard(past), PRECONDITION, "INSTRUMENT_EXPIRED")
    # A number where an ID belongs is quoted by the check, and redacted on its way out.
    with pytest.raises((grpc.aio.AioRpcError, Refusal, ValueError)) as caught:
        await mesh.instruments.GetInstrument(pb.GetInstrumentRequest(instrument_id=VISA))
    assert VISA not in str(caught.value)


async def test_a_vault_reveals_to_a_bank_what_was_registered_and_gives_facts_without_opening(
    session: Session, mesh: Mesh
) -> None:
    user_id = new_user()
    made = await mesh.instruments.RegisterCard(card(user_id, UNIONPAY))
    account = await mesh.instruments.RegisterBankAccount(
        pb.RegisterBankAccountRequest(
            user_id=user_id, number="6228480000000", bank="103100000026", holder="安"
        )
    )
    async with vault_of(session, "a") as vault:
        revealed = await vault.reveal(made.instrument_id, "chg_of-a-test")
        expiry = f"{_NEXT_YEAR % 100}07"
        assert revealed == Card(UNIONPAY, expiry, "unionpay", "ANN EXAMPLE")
        assert await vault.reveal(account.instrument_id) == BankAccount(
            "6228480000000", "103100000026", "安"
        )
        facts = await vault.facts(made.instrument_id)
        assert (facts.scheme, facts.bank, facts.country) == ("unionpay", "icbc", "CN")
        assert (await vault.facts(account.instrument_id)).country == "CN"
        request = pb.RemoveInstrumentRequest(instrument_id=made.instrument_id)
        await mesh.instruments.RemoveInstrument(request)
        for call in (vault.reveal, vault.facts):
            await refused(call(made.instrument_id), PRECONDITION, "INSTRUMENT_REMOVED")


async def test_a_row_that_is_copied_to_another_or_changed_does_not_open(
    session: Session, mesh: Mesh
) -> None:
    mine, theirs = new_user(), new_user()
    stolen = await mesh.instruments.RegisterCard(card(theirs, UNIONPAY))
    own = await mesh.instruments.RegisterCard(card(mine))
    async with session.database() as engine, vault_of(session, "a") as vault:
        chosen = select(instruments.c.number_sealed, instruments.c.field_key)
        async with engine.begin() as connection:
            source = instruments.c.instrument_id == stolen.instrument_id
            sealed, version = (await connection.execute(chosen.where(source))).one()
            await connection.execute(
                update(instruments)
                .where(instruments.c.instrument_id == own.instrument_id)
                .values(number_sealed=sealed, field_key=version)
            )
        await refused(vault.reveal(own.instrument_id), grpc.StatusCode.DATA_LOSS, "SEAL_BROKEN")
        assert await vault.reveal(stolen.instrument_id)
        async with engine.begin() as connection:
            changed = update(instruments).where(source).values(expires="2099-01")
            await connection.execute(changed)
        await refused(vault.reveal(stolen.instrument_id), grpc.StatusCode.DATA_LOSS, "SEAL_BROKEN")
        # Rows of a test that no later one should stumble over.
        async with engine.begin() as connection:
            for user_id in (mine, theirs):
                await connection.execute(
                    text("DELETE FROM instruments WHERE user_id = :user"), {"user": user_id}
                )


async def test_another_cell_opens_what_came_to_it_with_its_slot(
    session: Session, mesh: Mesh
) -> None:
    user_id = new_user()
    slot = slot_of_user(user_id)
    made = await mesh.instruments.RegisterCard(card(user_id))
    async with session.control() as control:
        listed = await control.ListCells(control_pb2.ListCellsRequest(), timeout=30)
        owner = next(
            cell.cell
            for cell in listed.cells
            if any(piece.first <= slot <= piece.last for piece in cell.slots)
        )
    for target in ("b" if owner == "a" else "a", owner):
        await moved(session, slot, target)
        # It finds the number by its keyed hash, and seals it anew.
        again = await mesh.instruments.RegisterCard(card(user_id))
        assert again.instrument_id == made.instrument_id
        async with vault_of(session, target) as vault:
            revealed = await vault.reveal(made.instrument_id)
            assert isinstance(revealed, Card)
            assert revealed.pan == VISA


async def moved(session: Session, slot: int, target: str) -> None:
    async with session.control() as control:
        operation = await control.StartOperation(
            control_pb2.StartOperationRequest(
                reason="a test of the vault", kind=control_pb2.Operation.KIND_MOVE,
                first=slot, last=slot, target=target,
            ),
            timeout=30,
        )  # fmt: skip
        identifier = operation.operation_id

        async def done() -> bool:
            found = await control.GetOperation(
                control_pb2.GetOperationRequest(operation_id=identifier), timeout=30
            )
            assert found.step != control_pb2.Operation.STEP_FAILED, found
            return found.step == control_pb2.Operation.STEP_DONE

        await eventually(done)


async def test_an_operator_rotates_keys_by_a_policy_and_every_row_is_sealed_anew(
    session: Session, mesh: Mesh
) -> None:
    users = [new_user() for _ in range(6)]
    made = {user: await mesh.instruments.RegisterCard(card(user)) for user in users}
    slots = {slot_of_user(user) for user in users}
    async with session.database() as engine, session.policies() as policies:
        async with engine.connect() as connection:
            now = (await connection.execute(text("SELECT now()"))).scalar_one()
        set_ = policies_pb2.SetPolicyRequest(
            kind="keys", name="by-hand", reason="a test",
            document=f'{{"rotate_before": "{now.isoformat()}"}}',
        )  # fmt: skip
        await policies.SetPolicy(set_, timeout=30)
        try:

            async def rotated() -> bool:
                for slot in slots:
                    states = [key.state for key in await keys_of(ReadEngine(engine), slot)]
                    if states.count(KeyState.RETIRED) < 2 or KeyState.OLD in states:
                        return False
                return True

            await eventually(rotated)
            counted = {(row[0], row[1]): row[3] for row in await _counted(session.data)}
            assert counted["field", "primary"] >= len(slots)
        finally:
            await policies.DeletePolicy(
                policies_pb2.DeletePolicyRequest(kind="keys", name="by-hand", reason="done"),
                timeout=30,
            )
        async with vault_of(session, "a") as vault:
            for user, instrument in made.items():
                revealed = await vault.reveal(instrument.instrument_id)
                assert isinstance(revealed, Card)
                assert revealed.pan == VISA
                again = await mesh.instruments.RegisterCard(card(user))
                assert again.instrument_id == instrument.instrument_id
