"""What the SDK tries again, and how its retries stay few when a cell has too much to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from cellpay.accounts.v1 import accounts_pb2
from grpc.aio import AioRpcError, Metadata

from router.client.channel import CallPolicy, MeshChannel
from router.errors import STATUS_DETAILS_KEY, Refusal, rate_limited

PATH = "/cellpay.accounts.v1.AccountsService/GetBalance"
REQUEST = accounts_pb2.GetBalanceRequest(user_id="ann", currency="USD")
QUICK = CallPolicy(timeout_s=0.3, backoff_base_s=0.0001, backoff_cap_s=0.0001)
OFF = Refusal(grpc.StatusCode.UNAVAILABLE, "FEATURE_DEGRADED", "off")
AWAY = Refusal(grpc.StatusCode.UNAVAILABLE, "CELL_NOT_READY", "away")


class Cell:
    """Answers with each refusal in turn, and with success when there are no more."""

    def __init__(self) -> None:
        self.calls = 0
        self.answers: Iterator[Refusal | None] = iter(())

    def unary_unary(self, *_: Any) -> Any:
        async def call(*_: Any, **__: Any) -> str:
            self.calls += 1
            refusal = next(self.answers, None)
            if refusal is None:
                return "done"
            trailer = (STATUS_DETAILS_KEY, refusal.to_status().SerializeToString())
            raise AioRpcError(refusal.code, Metadata(), Metadata(trailer), refusal.message)

        return call


def _call(cell: Cell) -> tuple[Any, MeshChannel]:
    behind: Any = cell
    channel = MeshChannel(behind, QUICK)
    return channel.unary_unary(PATH), channel


async def test_what_is_switched_off_is_not_tried_again_and_what_is_away_is() -> None:
    cell = Cell()
    call, _ = _call(cell)
    cell.answers = iter([OFF])
    with pytest.raises(AioRpcError):
        await call(REQUEST)
    assert cell.calls == 1
    cell.answers = iter([AWAY, AWAY])
    assert await call(REQUEST) == "done"
    assert cell.calls == 4


async def test_retries_of_what_was_refused_for_load_end_with_their_budget_and_come_back() -> None:
    cell = Cell()
    call, channel = _call(cell)
    over = rate_limited("user", retry_after_ms=0)
    refused = 0
    for _ in range(300):
        cell.answers = iter([over])
        try:
            await call(REQUEST)
        except AioRpcError:
            refused += 1
    # A hundred tokens from the start; each success that a retry bought earns a tenth of one.
    assert cell.calls - 300 <= 100 + 30
    assert refused >= 150
    cell.answers = iter(())
    for _ in range(20):
        await call(REQUEST)
    assert channel.tokens >= 1
    cell.calls, cell.answers = 0, iter([over])
    assert await call(REQUEST) == "done"
    assert cell.calls == 2


async def test_retries_for_other_reasons_have_no_budget() -> None:
    cell = Cell()
    call, channel = _call(cell)
    channel.tokens = 0.0
    cell.answers = iter([AWAY] * 3)
    assert await call(REQUEST) == "done"
    assert cell.calls == 4
