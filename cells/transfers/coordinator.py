"""Drives a transfer across cells to its end: step 5b of a payment's walk.

    trying ──try ok──▶ committing ──confirm──▶ confirmed
       └──refused / too late──▶ cancelling ──cancel──▶ cancelled

Every step is idempotent, and the decision is one row changed under the payer's fence, so the
request, its retry and the recovery of whoever owns the slot next may drive the same transfer at
once. Confirm and cancel are repeated for ever, by recovery, until they succeed (pitfall 4).
"""

from __future__ import annotations

from datetime import datetime

import grpc
import structlog
from cellpay.transfers.v1 import participant_pb2

from cells.answers import resource_of
from cells.ledger.worker import Lanes
from cells.requests import money
from cells.settings import TransferSettings
from cells.transfers.model import Transfer, TransferEvent, TransferState
from cells.transfers.rules import AdvanceTransfer
from router.client import Mesh
from router.errors import details_of
from router.ids import Kind
from router.minting import mint_now

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


class Coordinator:
    def __init__(self, lanes: Lanes, mesh: Mesh, settings: TransferSettings) -> None:
        self._lanes = lanes
        self._mesh = mesh
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
        request = participant_pb2.TryBranchRequest(
            payee_account_id=transfer.payee_account_id,
            transfer_id=transfer.transfer_id,
            amount=money(transfer.currency, transfer.amount),
        )
        try:
            await self._mesh.participants.TryBranch(
                request, timeout=self._settings.branch_call_timeout_s
            )
        except grpc.aio.AioRpcError as error:
            reason = details_of(error).reason
            if error.code() in _TRY_REFUSED and reason not in _ELSEWHERE:
                return await self._advance(
                    transfer, TransferEvent.CANCEL, reason or error.code().name
                )
            log.info("a try has no answer", transfer=transfer.transfer_id, code=error.code().name)
            return transfer
        return await self._advance(transfer, TransferEvent.COMMIT, "")

    async def _end(self, transfer: Transfer, *, confirm: bool) -> Transfer:
        address = {
            "payee_account_id": transfer.payee_account_id,
            "transfer_id": transfer.transfer_id,
        }
        timeout = self._settings.branch_call_timeout_s
        try:
            if confirm:
                await self._mesh.participants.ConfirmBranch(
                    participant_pb2.ConfirmBranchRequest(**address), timeout=timeout
                )
            else:
                await self._mesh.participants.CancelBranch(
                    participant_pb2.CancelBranchRequest(**address), timeout=timeout
                )
        except grpc.aio.AioRpcError as error:
            log.warning(
                "a branch does not end yet",
                transfer=transfer.transfer_id,
                confirm=confirm,
                code=error.code().name,
            )
            return transfer
        return await self._advance(transfer, TransferEvent.END, "")

    async def _advance(self, transfer: Transfer, event: TransferEvent, reason: str) -> Transfer:
        command = AdvanceTransfer(
            transfer.slot, transfer.transfer_id, mint_now(Kind.EVENT, transfer.slot), event, reason
        )
        advanced: Transfer = resource_of(await self._lanes.submit(command))
        return advanced
