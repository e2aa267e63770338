"""The reference pages are what the source says today."""

from __future__ import annotations

import pytest

from control.cellctl.reference import PAGES, pages

MADE = pages()


@pytest.mark.parametrize("name", sorted(MADE))
def test_a_reference_page_is_made_from_the_source_of_today(name: str) -> None:
    assert (PAGES / name).read_text(encoding="utf-8") == MADE[name], "run: make reference"


def test_the_pages_tell_of_what_is_surely_there() -> None:
    assert "| `SLOT_MOVED` | `UNAVAILABLE` |" in MADE["errors.md"]
    assert "| `NOT_HOME` | `FAILED_PRECONDITION` |" in MADE["errors.md"]
    assert "| `INSUFFICIENT_FUNDS` | `FAILED_PRECONDITION` |" in MADE["errors.md"]
    assert "### PaymentsService" in MADE["rpcs.md"]
    assert "`POST /v1/orders/{order_id}:pay`" in MADE["rpcs.md"]
    assert "| `lease_ttl_s` | `int` | `3` |" in MADE["settings.md"]
    assert "## `cellctl failover" in MADE["cellctl.md"]
    assert "`cellpay_transfers_in_doubt`" in MADE["metrics.md"]
