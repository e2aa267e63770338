"""A refund that needs its merchant's home waits while refunds are deferred or that home is away."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from cells.breakers.board import Breaker
from cells.payments.model import Refund, RefundState
from cells.payments.refunding import Refunding
from router.policies.model import Breakers, Dependency, Forced

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(("deferred", "force"), [(True, None), (False, Forced.OPEN)])
async def test_it_stays_pending_and_nobody_is_asked(deferred: bool, force: Forced | None) -> None:
    breaker = Breaker(Dependency.FUNDING)
    breaker.tune(Breakers(Dependency.FUNDING, force=force))
    nobody: Any = None
    refund = Refund(7, "ref", "pay", "ann", "shop", 5, "USD", RefundState.PENDING, "", NOW)
    refunding = Refunding(nobody, nobody, 1.0, breaker, deferred=lambda: deferred)
    assert await refunding.advance(refund) is refund
