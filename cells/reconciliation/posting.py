"""What a break makes of the ledger: asked of the slot's home, once, whoever asks how often."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

import grpc
from cellpay.channels.v1 import channels_pb2 as pb
from cellpay.money.v1.money_pb2 import Money

from cells.reconciliation.model import Reported
from cells.reconciliation.rules import Posting, Side
from router.client import Mesh
from router.errors import details_of

_SIDES = {
    Side.CHANNEL: pb.SIDE_CHANNEL,
    Side.FEES: pb.SIDE_FEES,
    Side.SUSPENSE: pb.SIDE_SUSPENSE,
}
_TIMEOUT_S = 10.0
# Of who approved it; longer names end where the ledger's field does.
_NAME_CHARACTERS_MAX = 64
# The home says no, and would tomorrow.
_FOR_GOOD = frozenset({
    grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.PERMISSION_DENIED,
})  # fmt: skip


class PostingRefused(Exception):
    """The slot's home will not post this. A person must look."""


class PostingWaits(Exception):
    """The home cannot be reached, or does not say how it ended: to be asked again."""


class Poster(Protocol):
    """The mesh, or a list in tests. Saying the same again is saying it once."""

    async def post(self, posting: Posting) -> str:
        """The adjustment's ID. Raises PostingRefused, PostingWaits."""
        ...

    async def report(self, outcome: Reported) -> None:
        """That the bank has approved an attempt. Raises as `post` does."""
        ...


class MeshPoster:
    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def report(self, outcome: Reported) -> None:
        request = pb.ReportRequest(
            reference=outcome.attempt_id,
            channel=outcome.channel,
            verdict=pb.VERDICT_APPROVED,
            bank_reference=outcome.bank_reference,
            clearing_date=outcome.clearing_date,
        )
        with _judging_errors():
            await self._mesh.reports.Report(request, timeout=_TIMEOUT_S)

    async def post(self, posting: Posting) -> str:
        request = pb.AdjustRequest(
            subject_id=posting.subject_id,
            break_id=posting.break_id,
            channel=posting.channel,
            source=_SIDES[posting.source],
            target=_SIDES[posting.target],
            amount=Money(currency=posting.currency, minor_units=posting.amount),
            reason=posting.reason,
            approved_by=posting.approved_by[:_NAME_CHARACTERS_MAX],
        )
        with _judging_errors():
            adjustment = await self._mesh.adjustments.Adjust(request, timeout=_TIMEOUT_S)
        return adjustment.adjustment_id


@contextlib.contextmanager
def _judging_errors() -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        why = details_of(error).reason or error.code().name
        message = f"{why}: {error.details()}"
        if error.code() in _FOR_GOOD and why != "NOT_OWNER":
            raise PostingRefused(message) from error
        raise PostingWaits(message) from error
