"""Drives a transfer across cells to its end: step 5b of a payment's walk.

    trying ──try ok──▶ committing ──confirm──▶ confirmed
       └──refused / too late──▶ cancelling ──cancel──▶ cancelled

Every step is idempotent, and the decision is one row changed under the payer's fence, so the
request, its retry and the recovery of whoever owns the slot next may drive the same transfer at
once. Confirm and cancel are repeated for ever, by recovery, until they succeed (pitfall 4).
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

import grpc
import structlog
from cellpay.transfers.v1 import participant_pb2

from cells.answers import resource_of
from cells.ledger.worker import Lanes
from cells.requests import money
from cells.settings import TransferSettings
from cells.transfers.model import Transfer, TransferEvent, TransferState
from cells.transfers.rules import AdvanceTransfer
from router.errors import Refusal
from router.ids import Kind
from router.minting import mint_now
from router.tracing.current import span

log = structlog.get_logger(__name__)

# The payee's cell has decided: no. Anything else leaves the try in doubt.
_TRY_REFUSED = frozenset(
    {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.INVALID_ARGUMENT,
    }
)
_ELSEWHERE = frozenset({"NOT_HOME", "SLOT_MOVED", "NOT_OWNER"})


class Branches(Protocol):
    """The way to the payees' cells (branches.py)."""

    async def step(self, step: participant_pb2.BranchStep) -> None:
        """Raises Refusal: what the payee's cell says, or that it did not say."""
        ...


class Coordinator:
    def __init__(self, lanes: Lanes, branches: Branches, settings: TransferSettings) -> None:
        self._lanes = lanes
        self._branches = branches
        self._settings = settings

    async def drive(self, transfer: Transfer, *, now: datetime | None = None) -> Transfer:
        """Takes the transfer as far as it goes now; it may still be in doubt afterwards.

        `now` is the database's time, for recovery: a try older than the limit is cancelled.
        """
        if transfer.state == TransferState.TRYING:
            transfer = await self._decide(transfer, now)
        if transfer.state == TransferState.COMMITTING:
            return await self._end(transfer, confirm=True)
        if transfer.state == TransferState.CANCELLING:
            return await self._end(transfer, confirm=False)
        return transfer

    async def _decide(self, transfer: Transfer, now: datetime | None) -> Transfer:
        age_s = (now - transfer.created_at).total_seconds() if now else 0.0
        if age_s > self._settings.try_timeout_s:
            return await self._advance(transfer, TransferEvent.CANCEL, "TRY_TIMED_OUT")
        step = participant_pb2.BranchStep(
            payee_account_id=transfer.payee_account_id,
            transfer_id=transfer.transfer_id,
            kind=participant_pb2.BranchStep.KIND_TRY,
            amount=money(transfer.currency, transfer.amount),
        )
        try:
            with span("transfer.try", {"cellpay.transfer_id": transfer.transfer_id}):
                await self._branches.step(step)
        except Refusal as refusal:
            if refusal.code in _TRY_REFUSED and refusal.reason not in _ELSEWHERE:
                return await self._advance(transfer, TransferEvent.CANCEL, refusal.reason)
            log.info("a try has no answer", transfer=transfer.transfer_id, code=refusal.code.name)
            return transfer
        return await self._advance(transfer, TransferEvent.COMMIT, "")

    async def _end(self, transfer: Transfer, *, confirm: bool) -> Transfer:
        kinds = participant_pb2.BranchStep
        step = participant_pb2.BranchStep(
            payee_account_id=transfer.payee_account_id,
            transfer_id=transfer.transfer_id,
            kind=kinds.KIND_CONFIRM if confirm else kinds.KIND_CANCEL,
        )
        name = "transfer.confirm" if confirm else "transfer.cancel"
        try:
            with span(name, {"cellpay.transfer_id": transfer.transfer_id}):
                await self._branches.step(step)
        except Refusal as refusal:
            log.warning(
                "a branch does not end yet",
                transfer=transfer.transfer_id,
                confirm=confirm,
                code=refusal.code.name,
            )
            return transfer
        return await self._advance(transfer, TransferEvent.END, "")

    async def _advance(self, transfer: Transfer, event: TransferEvent, reason: str) -> Transfer:
        command = AdvanceTransfer(
            transfer.slot, transfer.transfer_id, mint_now(Kind.EVENT, transfer.slot), event, reason
        )
        advanced: Transfer = resource_of(await self._lanes.submit(command))
        return advanced
