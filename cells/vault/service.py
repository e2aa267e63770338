"""InstrumentsService: proto to model and back. A number goes in here and never comes out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from cellpay.vault.v1 import instruments_pb2 as pb
from cellpay.vault.v1 import instruments_pb2_grpc
from sqlalchemy import select

from cells.ledger.model import Idempotency, Reason
from cells.reading import ReadEngine, fetch
from cells.replica import staleness_of
from cells.requests import (
    Checker,
    idempotency_of,
    masked,
    page_start,
    page_token,
    timeout_of,
    timestamp,
)
from cells.resources import Resource
from cells.vault.model import Details, InstrumentKind, InstrumentState, StoredInstrument
from cells.vault.numbers import (
    BinTable,
    account_fault,
    bare,
    card_fault,
    country_of_account,
    expiry_fault,
)
from cells.vault.store import Vault
from cells.vault.tables import INSTRUMENTS, instruments
from router.ids import Kind
from router.slots import slot_of_user

_KINDS_OUT = {
    InstrumentKind.CARD: pb.Instrument.KIND_CARD,
    InstrumentKind.BANK_ACCOUNT: pb.Instrument.KIND_BANK_ACCOUNT,
}
_STATES_OUT = {
    InstrumentState.ACTIVE: pb.Instrument.STATE_ACTIVE,
    InstrumentState.REMOVED: pb.Instrument.STATE_REMOVED,
}
_NUMBER_CHARACTERS_MAX = 64
Registration = pb.RegisterCardRequest | pb.RegisterBankAccountRequest

_INSTRUMENT = Resource(INSTRUMENTS, Kind.INSTRUMENT, Reason.INSTRUMENT_NOT_FOUND, "instrument")


def instrument_message(row: StoredInstrument) -> pb.Instrument:
    return pb.Instrument(
        instrument_id=row.instrument_id,
        user_id=row.user_id,
        kind=_KINDS_OUT[InstrumentKind(row.kind)],
        state=_STATES_OUT[InstrumentState(row.state)],
        scheme=row.scheme,
        bank=row.bank,
        country=row.country,
        last_four=row.last_four,
        expiry_year=int(row.expires[:4] or 0),
        expiry_month=int(row.expires[5:] or 0),
        create_time=timestamp(row.created_at),
    )


class InstrumentsService(instruments_pb2_grpc.InstrumentsServiceServicer):
    def __init__(self, vault: Vault, engine: ReadEngine, bins: BinTable) -> None:
        self._vault = vault
        self._engine = engine
        self._bins = bins

    async def RegisterCard(self, request: pb.RegisterCardRequest, context: Any) -> pb.Instrument:
        check = Checker()
        number = _number(check, request.number)
        kind = self._bins.kind_of(number)
        if fault := card_fault(number, kind):
            check.wrong("number", fault)
        # The database's clock decides whether it is past; this only finds what was mistyped.
        this_year = datetime.now(UTC).year
        if fault := expiry_fault(request.expiry_year, request.expiry_month, this_year):
            check.wrong("expiry_month" if "month" in fault else "expiry_year", fault)
        details = Details(
            InstrumentKind.CARD,
            number=number,
            scheme=kind.scheme if kind else "",
            bank=kind.issuer if kind else "",
            country=kind.country if kind else "",
            expires=f"{request.expiry_year:04}-{request.expiry_month:02}",
            **_person(check, request),
        )
        return await self._register(check, "RegisterCard", request, details, context)

    async def RegisterBankAccount(
        self, request: pb.RegisterBankAccountRequest, context: Any
    ) -> pb.Instrument:
        check = Checker()
        number = _number(check, request.number)
        if fault := account_fault(number):
            check.wrong("number", fault)
        bank = check.name("bank", request.bank)
        details = Details(
            InstrumentKind.BANK_ACCOUNT,
            number=number,
            bank=bank,
            country=country_of_account(number, bank),
            **_person(check, request),
        )
        return await self._register(check, "RegisterBankAccount", request, details, context)

    async def _register(
        self, check: Checker, method: str, request: Registration, details: Details, context: Any
    ) -> pb.Instrument:
        idempotency = _idempotency_of(check, method, request, details.number)
        check.done()
        row = await self._vault.register(details, idempotency, timeout_of(context))
        return instrument_message(row)

    async def GetInstrument(self, request: pb.GetInstrumentRequest, context: Any) -> pb.Instrument:
        row = await _INSTRUMENT.get(self._engine, request.instrument_id, context)
        return masked(instrument_message(row), request.read_mask)

    async def ListInstruments(
        self, request: pb.ListInstrumentsRequest, context: Any
    ) -> pb.ListInstrumentsResponse:
        check = Checker()
        user_id = check.name("user_id", request.user_id)
        size = check.page_size(request.page_size)
        start = page_start(check, request.page_token, 1)
        check.done()
        statement = (
            select(*(instruments.c[name] for name in INSTRUMENTS.fields))
            .where(
                instruments.c.slot == slot_of_user(user_id),
                instruments.c.user_id == user_id,
                instruments.c.state == InstrumentState.ACTIVE,
            )
            .order_by(instruments.c.instrument_id.desc())
            .limit(size + 1)
        )
        if start:
            statement = statement.where(instruments.c.instrument_id < start[0])
        rows = [
            StoredInstrument(*row)
            for row in await fetch(self._engine, statement, staleness_of(context))
        ]
        listed = rows[:size]
        return pb.ListInstrumentsResponse(
            instruments=[instrument_message(row) for row in listed],
            next_page_token=page_token([listed[-1].instrument_id]) if len(rows) > size else "",
        )

    async def RemoveInstrument(
        self, request: pb.RemoveInstrumentRequest, context: Any
    ) -> pb.Instrument:
        check = Checker()
        identifier = check.identifier("instrument_id", request.instrument_id, Kind.INSTRUMENT)
        idempotency = idempotency_of(check, "RemoveInstrument", request)
        check.done()
        row = await self._vault.remove(identifier, idempotency, timeout_of(context))
        return instrument_message(row)


def _number(check: Checker, value: str) -> str:
    if len(value) > _NUMBER_CHARACTERS_MAX:
        check.wrong("number", f"has {len(value)} characters; at most {_NUMBER_CHARACTERS_MAX}")
        return ""
    return bare(value)


def _person(check: Checker, request: Registration) -> dict[str, str]:
    return {
        "user_id": check.name("user_id", request.user_id),
        "holder": check.text("holder", request.holder),
        "phone": check.text("phone", request.phone),
        "identity": check.text("identity_number", request.identity_number),
    }


def _idempotency_of(check: Checker, method: str, request: Registration, number: str) -> Idempotency:
    """The request's hash is kept, and whoever has it could try all numbers: so it holds only what
    is kept in the clear too. Whether a repeat says the same number the vault finds by its keyed
    hash."""
    kept = type(request)()
    kept.CopyFrom(request)  # type: ignore[arg-type]
    kept.number = number[-4:]
    for name in ("holder", "phone", "identity_number"):
        kept.ClearField(name)
    return idempotency_of(check, method, kept)
