"""A served call: what gRPC is asked once, and that no call hears another's answer."""

from __future__ import annotations

from typing import Any

from router.call import Call
from router.identity import caller_of, principal_of, spiffe_id

_SHOP = spiffe_id("merchant", "shop")


class Served:
    """A context of gRPC's; counts how often it is asked."""

    def __init__(self, kind: str, shown: str = "") -> None:
        self.asked: list[str] = []
        self._peer = spiffe_id(kind, "one").encode()
        self._metadata = (("x-forwarded-client-cert", f"URI={shown}"),) if shown else ()

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        self.asked.append("metadata")
        return self._metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        self.asked.append("auth")
        return {"x509_subject_alternative_name": [self._peer]}

    def time_remaining(self) -> float:
        self.asked.append("time")
        return float(len(self.asked))


def test_who_calls_and_for_whom_is_asked_of_grpc_once() -> None:
    served = Served("edge", _SHOP)
    call = Call(served)
    for _ in range(3):
        caller, principal = caller_of(call), principal_of(call)
        assert caller is not None
        assert principal is not None
        assert (caller.kind, principal.spiffe_id) == ("edge", _SHOP)
        call.invocation_metadata()
    assert sorted(served.asked) == ["auth", "metadata"]


def test_that_there_is_nobody_is_remembered_too() -> None:
    served = Served("edge")
    call = Call(served)
    assert [principal_of(call) for _ in range(3)] == [None] * 3
    assert sorted(served.asked) == ["auth", "metadata"]


def test_a_call_is_told_nothing_of_another() -> None:
    first, second = Call(Served("edge", _SHOP)), Call(Served("service"))
    found: list[Any] = [principal_of(each) for each in (first, second, first)]
    assert [each.kind for each in found] == ["merchant", "service", "merchant"]


def test_what_changes_during_a_call_is_asked_anew() -> None:
    call = Call(Served("service"))
    assert call.time_remaining() < call.time_remaining()
