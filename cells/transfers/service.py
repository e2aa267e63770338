"""TransfersService, FundingService and ParticipantService: proto to model and back."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from cellpay.transfers.v1 import (
    funding_pb2,
    funding_pb2_grpc,
    participant_pb2_grpc,
    transfers_pb2_grpc,
)
from cellpay.transfers.v1 import participant_pb2 as pb_branch
from cellpay.transfers.v1 import transfers_pb2 as pb

from cells.answers import resource_of
from cells.bulk import Bulk, status_bytes
from cells.ledger.model import Reason
from cells.ledger.worker import Lanes
from cells.reading import ReadEngine
from cells.requests import (
    Checker,
    idempotency_of,
    masked,
    money,
    timeout_of,
    timestamp,
)
from cells.resources import Resource
from cells.risk.asking import Asked, requested
from cells.risk.cases.model import Operation
from cells.risk.screening import Screening
from cells.transfers.coordinator import Coordinator
from cells.transfers.model import (
    Branch,
    BranchState,
    Transfer,
    TransferKind,
    TransferState,
)
from cells.transfers.rules import BeginTransfer, EndBranch, TryBranch
from cells.transfers.tables import TRANSFERS
from router.errors import Refusal
from router.ids import Kind, account_id, collection_account_id, slot_of_id
from router.minting import mint_now
from router.slots import slot_of_user

_STATES_OUT = {
    TransferState.TRYING: pb.Transfer.STATE_TRYING,
    TransferState.COMMITTING: pb.Transfer.STATE_COMMITTING,
    TransferState.CONFIRMED: pb.Transfer.STATE_CONFIRMED,
    TransferState.CANCELLING: pb.Transfer.STATE_CANCELLING,
    TransferState.CANCELLED: pb.Transfer.STATE_CANCELLED,
}
_BRANCH_STATES_OUT = {
    BranchState.TRIED: pb_branch.Branch.STATE_TRIED,
    BranchState.CONFIRMED: pb_branch.Branch.STATE_CONFIRMED,
    BranchState.CANCELLED: pb_branch.Branch.STATE_CANCELLED,
}

_TRANSFER = Resource(TRANSFERS, Kind.TRANSFER, Reason.TRANSFER_NOT_FOUND, "transfer")


def transfer_message(transfer: Transfer) -> pb.Transfer:
    return pb.Transfer(
        transfer_id=transfer.transfer_id,
        payer_id=transfer.payer_id,
        payee_id=transfer.payee_id,
        amount=money(transfer.currency, transfer.amount),
        state=_STATES_OUT[TransferState(transfer.state)],
        description=transfer.description,
        cancel_reason=transfer.cancel_reason,
        create_time=timestamp(transfer.created_at),
    )


def _branch_message(branch: Branch) -> pb_branch.Branch:
    return pb_branch.Branch(
        transfer_id=branch.transfer_id, state=_BRANCH_STATES_OUT[BranchState(branch.state)]
    )


def raise_when_cancelled(transfer: Transfer) -> None:
    if transfer.state in {TransferState.CANCELLING, TransferState.CANCELLED}:
        raise Refusal(
            # What the payee's cell refused is what the payer's caller hears. It is final under
            # this key, so nothing here may invite a retry.
            grpc.StatusCode.NOT_FOUND
            if transfer.cancel_reason == Reason.PAYEE_NOT_FOUND
            else grpc.StatusCode.FAILED_PRECONDITION,
            transfer.cancel_reason,
            "the transfer was cancelled; the payer keeps the money",
            metadata={"transfer_id": transfer.transfer_id},
        )


class TransfersService(transfers_pb2_grpc.TransfersServiceServicer):
    def __init__(self, screening: Screening, engine: ReadEngine, coordinator: Coordinator) -> None:
        self._screening = screening
        self._engine = engine
        self._coordinator = coordinator

    async def CreateTransfer(self, request: pb.CreateTransferRequest, context: Any) -> pb.Transfer:
        """Answers when the transfer has ended, or, when the payee's cell is slow, as it stands."""
        check = Checker()
        payer_id = check.name("payer_id", request.payer_id)
        payee_id = check.name("payee_id", request.payee_id)
        amount = check.amount("amount", request.amount)
        description = check.text("description", request.description)
        if payer_id and payer_id == payee_id:
            check.wrong("payee_id", "must not be the payer")
        idempotency = idempotency_of(check, "CreateTransfer", request)
        whence = requested(check, request)
        check.done()
        slot = slot_of_user(payer_id)
        currency = request.amount.currency
        command = BeginTransfer(
            slot, mint_now(Kind.TRANSFER, slot), mint_now(Kind.EVENT, slot), TransferKind.USER,
            payer_id, payee_id, account_id(payer_id, currency), account_id(payee_id, currency),
            amount, currency, description, idempotency,
        )  # fmt: skip
        asked = Asked(
            Operation.TRANSFER, slot, payer_id, idempotency.key, payer_id, payee_id, amount,
            currency, "", whence,
        )  # fmt: skip
        begun: Transfer = resource_of(await self._screening.submit(command, asked, context))
        # A caller that goes away does not stop what was begun.
        transfer = await asyncio.shield(self._coordinator.drive(begun))
        raise_when_cancelled(transfer)
        return transfer_message(transfer)

    async def GetTransfer(self, request: pb.GetTransferRequest, context: Any) -> pb.Transfer:
        transfer = await _TRANSFER.get(self._engine, request.transfer_id, context)
        return masked(transfer_message(transfer), request.read_mask)


class FundingService(funding_pb2_grpc.FundingServiceServicer):
    def __init__(self, lanes: Lanes, coordinator: Coordinator) -> None:
        self._lanes = lanes
        self._coordinator = coordinator

    async def FundCollection(
        self, request: funding_pb2.FundCollectionRequest, context: Any
    ) -> pb.Transfer:
        check = Checker()
        merchant_id = check.name("merchant_id", request.merchant_id)
        collection = check.identifier(
            "collection_account_id", request.collection_account_id, Kind.ACCOUNT
        )
        amount = check.amount("amount", request.amount)
        idempotency = idempotency_of(check, "FundCollection", request)
        check.done()
        slot = slot_of_user(merchant_id)
        currency = request.amount.currency
        if collection != collection_account_id(slot_of_id(collection), merchant_id, currency):
            check.wrong("collection_account_id", "is not this merchant's in this currency")
            check.done()
        command = BeginTransfer(
            slot, mint_now(Kind.TRANSFER, slot), mint_now(Kind.EVENT, slot), TransferKind.FUNDING,
            merchant_id, merchant_id, account_id(merchant_id, currency), collection,
            amount, currency, "", idempotency,
        )  # fmt: skip
        begun: Transfer = resource_of(await self._lanes.submit(command, timeout_of(context)))
        return transfer_message(await asyncio.shield(self._coordinator.drive(begun)))


def _step_command(step: pb_branch.BranchStep) -> TryBranch | EndBranch:
    check = Checker()
    account = check.identifier("payee_account_id", step.payee_account_id, Kind.ACCOUNT)
    transfer_id = check.identifier("transfer_id", step.transfer_id, Kind.TRANSFER)
    if step.kind == pb_branch.BranchStep.KIND_TRY:
        amount = check.amount("amount", step.amount)
        check.done()
        return TryBranch(slot_of_id(account), transfer_id, account, amount, step.amount.currency)
    if step.kind not in _ENDS:
        check.wrong("kind", "must be TRY, CONFIRM or CANCEL")
    check.done()
    return EndBranch(slot_of_id(account), transfer_id, account, _ENDS[step.kind])


def _trace_of(step: pb_branch.BranchStep) -> tuple[str, str]:
    kind = pb_branch.BranchStep.Kind.Name(step.kind).removeprefix("KIND_").lower()
    return f"branch.{kind}", step.traceparent


# Whether it confirms.
_ENDS = {
    pb_branch.BranchStep.KIND_CONFIRM: True,
    pb_branch.BranchStep.KIND_CANCEL: False,
}


class ParticipantService(participant_pb2_grpc.ParticipantServiceServicer):
    def __init__(self, lanes: Lanes, bulk: Bulk) -> None:
        self._lanes = lanes
        self._bulk = bulk

    async def TryBranch(
        self, request: pb_branch.TryBranchRequest, context: Any
    ) -> pb_branch.Branch:
        step = pb_branch.BranchStep(
            payee_account_id=request.payee_account_id, transfer_id=request.transfer_id,
            kind=pb_branch.BranchStep.KIND_TRY, amount=request.amount,
        )  # fmt: skip
        return await self._one(step, context)

    async def ConfirmBranch(
        self, request: pb_branch.ConfirmBranchRequest, context: Any
    ) -> pb_branch.Branch:
        return await self._end(request, pb_branch.BranchStep.KIND_CONFIRM, context)

    async def CancelBranch(
        self, request: pb_branch.CancelBranchRequest, context: Any
    ) -> pb_branch.Branch:
        return await self._end(request, pb_branch.BranchStep.KIND_CANCEL, context)

    async def AdvanceBranches(
        self, request: pb_branch.AdvanceBranchesRequest, context: Any
    ) -> pb_branch.AdvanceBranchesResponse:
        outcomes = await self._bulk.run(
            "steps", request.steps, _step_command, timeout_of(context), trace_of=_trace_of
        )
        return pb_branch.AdvanceBranchesResponse(
            results=[
                pb_branch.BranchResult(error_status=status_bytes(outcome))
                if isinstance(outcome, Refusal)
                else pb_branch.BranchResult(branch=_branch_message(outcome))
                for outcome in outcomes
            ]
        )

    async def _end(
        self,
        request: pb_branch.ConfirmBranchRequest | pb_branch.CancelBranchRequest,
        kind: pb_branch.BranchStep.Kind.ValueType,
        context: Any,
    ) -> pb_branch.Branch:
        step = pb_branch.BranchStep(
            payee_account_id=request.payee_account_id, transfer_id=request.transfer_id, kind=kind
        )
        return await self._one(step, context)

    async def _one(self, step: pb_branch.BranchStep, context: Any) -> pb_branch.Branch:
        outcome = await self._lanes.submit(_step_command(step), timeout_of(context))
        return _branch_message(resource_of(outcome))
