"""AccountsService: proto to model and back."""

from __future__ import annotations

import re
from typing import Any

from cellpay.accounts.v1 import accounts_pb2 as pb
from cellpay.accounts.v1 import accounts_pb2_grpc
from sqlalchemy import select

from cells.accounts.model import Direction, Movement
from cells.accounts.rules import CloseAccount, MoveMoney, OpenAccount
from cells.answers import not_found, resource_of
from cells.ledger.model import Account, AccountKind, AccountState, Reason
from cells.ledger.tables import ACCOUNTS, entries
from cells.ledger.worker import Lanes
from cells.reading import ReadEngine, fetch, fetch_row
from cells.replica import staleness_of
from cells.requests import (
    Checker,
    idempotency_of,
    masked,
    money,
    page_start,
    page_token,
    timeout_of,
    timestamp,
)
from cells.risk.asking import Asked, requested
from cells.risk.cases.model import Operation
from cells.risk.screening import Screening
from router.ids import Kind, Purpose, account_id, slot_of_id
from router.minting import mint_now
from router.slots import slot_of_user

# As this method says them: no other digits, none that no 64 bits hold.
_SEQUENCE = re.compile(r"[0-9]{1,18}")
_KINDS = {
    pb.Account.KIND_PERSON: AccountKind.PERSON,
    pb.Account.KIND_MERCHANT: AccountKind.MERCHANT,
}
_KINDS_OUT = {kind: value for value, kind in _KINDS.items()}
_STATES_OUT = {
    AccountState.OPEN: pb.Account.STATE_OPEN,
    AccountState.CLOSED: pb.Account.STATE_CLOSED,
}


def account_message(account: Account) -> pb.Account:
    return pb.Account(
        account_id=account.account_id,
        user_id=account.user_id,
        currency=account.currency,
        kind=_KINDS_OUT.get(AccountKind(account.kind), pb.Account.KIND_UNSPECIFIED),
        state=_STATES_OUT[AccountState(account.state)],
        create_time=timestamp(account.created_at),
    )


def _movement_message(movement: Movement) -> pb.Movement:
    incoming = movement.direction == Direction.IN
    return pb.Movement(
        movement_id=movement.movement_id,
        account_id=movement.account_id,
        user_id=movement.user_id,
        direction=pb.Movement.DIRECTION_IN if incoming else pb.Movement.DIRECTION_OUT,
        amount=money(movement.currency, movement.amount),
        create_time=timestamp(movement.created_at),
    )


class AccountsService(accounts_pb2_grpc.AccountsServiceServicer):
    def __init__(self, lanes: Lanes, engine: ReadEngine, screening: Screening) -> None:
        self._lanes = lanes
        self._engine = engine
        self._screening = screening

    async def OpenAccount(self, request: pb.OpenAccountRequest, context: Any) -> pb.Account:
        check = Checker()
        user_id = check.name("user_id", request.user_id)
        currency = check.currency("currency", request.currency)
        kind = _KINDS.get(request.kind, AccountKind.PERSON)
        if request.kind not in (*_KINDS, pb.Account.KIND_UNSPECIFIED):
            check.wrong("kind", f"{request.kind} is no kind of account")
        idempotency = idempotency_of(check, "OpenAccount", request)
        check.done()
        command = OpenAccount(slot_of_user(user_id), user_id, currency, kind, idempotency)
        return account_message(resource_of(await self._lanes.submit(command, timeout_of(context))))

    async def CloseAccount(self, request: pb.CloseAccountRequest, context: Any) -> pb.Account:
        check = Checker()
        identifier = check.identifier("account_id", request.account_id, Kind.ACCOUNT)
        idempotency = idempotency_of(check, "CloseAccount", request)
        check.done()
        command = CloseAccount(slot_of_id(identifier), identifier, idempotency)
        return account_message(resource_of(await self._lanes.submit(command, timeout_of(context))))

    async def GetAccount(self, request: pb.GetAccountRequest, context: Any) -> pb.Account:
        check = Checker()
        identifier = check.identifier("account_id", request.account_id, Kind.ACCOUNT)
        check.done()
        return masked(
            account_message(await self._balance_account(identifier, staleness_of(context))),
            request.read_mask,
        )

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Any) -> pb.Balance:
        check = Checker()
        user_id = check.name("user_id", request.user_id)
        currency = check.currency("currency", request.currency)
        check.done()
        account = await self._balance_account(account_id(user_id, currency), staleness_of(context))
        return pb.Balance(
            account_id=account.account_id,
            total=money(currency, account.balance),
            held=money(currency, account.held),
            available=money(currency, account.available),
        )

    async def _balance_account(self, identifier: str, staleness_max_s: float | None) -> Account:
        account = await fetch_row(
            self._engine, ACCOUNTS, slot_of_id(identifier), identifier, staleness_max_s
        )
        # Collection, clearing and external accounts are Cellpay's own; nobody outside reads them.
        if account is None or account.purpose != Purpose.BALANCE:
            raise not_found(Reason.ACCOUNT_NOT_FOUND, "account")
        return account

    async def ListEntries(
        self, request: pb.ListEntriesRequest, context: Any
    ) -> pb.ListEntriesResponse:
        check = Checker()
        identifier = check.identifier("account_id", request.account_id, Kind.ACCOUNT)
        size = check.page_size(request.page_size)
        start = page_start(check, request.page_token, 1)
        if start and not _SEQUENCE.fullmatch(start[0]):
            check.wrong("page_token", "is not a token that this method returned")
        check.done()
        account = await self._balance_account(identifier, staleness_of(context))
        statement = (
            select(entries)
            .where(entries.c.slot == account.slot, entries.c.account_id == identifier)
            .order_by(entries.c.sequence.desc())
            .limit(size + 1)
        )
        if start:
            statement = statement.where(entries.c.sequence < int(start[0]))
        rows = await fetch(self._engine, statement, staleness_of(context))
        listed = rows[:size]
        return pb.ListEntriesResponse(
            entries=[
                pb.Entry(
                    account_id=identifier,
                    sequence=row.sequence,
                    posting_id=row.posting_id,
                    kind=row.kind,
                    amount=money(account.currency, row.amount),
                    balance_after=money(account.currency, row.balance_after),
                    create_time=timestamp(row.created_at),
                )
                for row in listed
            ],
            next_page_token=page_token([str(listed[-1].sequence)]) if len(rows) > size else "",
        )

    async def Deposit(self, request: pb.DepositRequest, context: Any) -> pb.Movement:
        check = Checker()
        command = _move_command(check, request, Direction.IN, "Deposit")
        check.done()
        outcome = await self._lanes.submit(command, timeout_of(context))
        return _movement_message(resource_of(outcome))

    async def Withdraw(self, request: pb.WithdrawRequest, context: Any) -> pb.Movement:
        check = Checker()
        command = _move_command(check, request, Direction.OUT, "Withdraw")
        whence = requested(check, request)
        check.done()
        asked = Asked(
            Operation.WITHDRAW, command.slot, command.user_id, command.idempotency.key,
            command.user_id, "", command.amount, command.currency, "", whence,
        )  # fmt: skip
        outcome = await self._screening.submit(command, asked, context)
        return _movement_message(resource_of(outcome))


def _move_command(
    check: Checker,
    request: pb.DepositRequest | pb.WithdrawRequest,
    direction: Direction,
    method: str,
) -> MoveMoney:
    user_id = check.name("user_id", request.user_id)
    amount = check.amount("amount", request.amount)
    idempotency = idempotency_of(check, method, request)
    slot = slot_of_user(user_id)
    return MoveMoney(
        slot, mint_now(Kind.MOVEMENT, slot), user_id, direction, amount,
        request.amount.currency, idempotency,
    )  # fmt: skip
