"""Refusals carry their details over the wire and back."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from cells.answers import resource_of, status_of
from cells.ledger.model import Accepted, Reason, Refused
from router.errors import STATUS_DETAILS_KEY, Refusal, Violation, bad_request, details_of


class Failed:
    def __init__(self, refusal: Refusal) -> None:
        self._trailing = ((STATUS_DETAILS_KEY, refusal.to_status().SerializeToString()),)

    def trailing_metadata(self) -> Any:
        return self._trailing


def test_reason_metadata_violations_and_retry_delay_survive_the_wire() -> None:
    refusal = Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "LANE_FULL",
        "later",
        metadata={"cell": "a"},
        violations=[Violation("amount", "too much")],
        retry_after_ms=1500,
    )
    details = details_of(Failed(refusal))
    assert details.reason == "LANE_FULL"
    assert details.metadata == {"cell": "a"}
    assert details.violations == (Violation("amount", "too much"),)
    assert details.retry_after_ms == 1500


def test_a_bad_request_names_the_first_fault_and_counts_the_others() -> None:
    refusal = bad_request([Violation("a", "is wrong"), Violation("b", "is wrong too")])
    assert refusal.message == "a: is wrong (and 1 more)"
    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT


def test_an_error_without_details_has_an_empty_reason() -> None:
    class Bare:
        def trailing_metadata(self) -> Any:
            return None

    assert details_of(Bare()).reason == ""


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_one_status_and_only_what_passes_is_retried(reason: Reason) -> None:
    retried = status_of(reason) == grpc.StatusCode.UNAVAILABLE
    assert retried == (reason in {Reason.NOT_OWNER, Reason.RISK_UNAVAILABLE})


def test_an_outcome_is_its_resource_or_a_refusal() -> None:
    assert resource_of(Accepted("thing")) == "thing"
    with pytest.raises(Refusal) as caught:
        resource_of(Refused(Reason.INSUFFICIENT_FUNDS, "no money", {"left": "1"}))
    assert caught.value.reason == "INSUFFICIENT_FUNDS"
    assert caught.value.metadata == {"left": "1"}
