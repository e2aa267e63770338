"""From a bank's unasked words to the home of what they speak of, over the mesh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import grpc
from cellpay.channels.v1 import channels_pb2 as pb
from cellpay.channels.v1 import channels_pb2_grpc

from cells.channels.model import AnswerReason, Heard, Verdict
from router.client.mesh import Mesh
from router.errors import Refusal

_VERDICTS: Mapping[Verdict, pb.Verdict.ValueType] = {
    Verdict.APPROVED: pb.VERDICT_APPROVED,
    Verdict.DECLINED: pb.VERDICT_DECLINED,
    Verdict.FAILED: pb.VERDICT_FAILED,
    Verdict.PENDING: pb.VERDICT_PENDING,
    Verdict.UNKNOWN: pb.VERDICT_UNKNOWN,
}
# Saying it again will be answered the same.
_FINAL = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
    }
)


class NotReported(Exception):
    """It did not reach its home. Worth another attempt, unless `final`: nobody there knows it."""

    def __init__(self, why: str, *, final: bool) -> None:
        super().__init__(why)
        self.final = final


class Reporter(Protocol):
    """The mesh, or what a test puts in its place. Idempotent; returns when the home has it."""

    async def report(self, heard: Heard) -> None:
        """Raises NotReported."""
        ...


class MeshReporter:
    def __init__(self, mesh: Mesh, timeout_s: float) -> None:
        self._reports: channels_pb2_grpc.ReportsServiceAsyncStub = (
            channels_pb2_grpc.ReportsServiceStub(cast(Any, mesh.channel))
        )
        self._timeout_s = timeout_s

    async def report(self, heard: Heard) -> None:
        answer = heard.answer
        request = pb.ReportRequest(
            reference=heard.reference,
            channel=heard.channel,
            verdict=_VERDICTS[answer.verdict],
            reason="" if answer.reason is AnswerReason.NONE else answer.reason.value,
            code=answer.code,
            bank_reference=answer.bank_reference,
            clearing_date=answer.clearing_date,
        )
        try:
            await self._reports.Report(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise NotReported(error.code().name, final=error.code() in _FINAL) from error
        except Refusal as error:
            raise NotReported(error.reason, final=error.code in _FINAL) from error
