"""Who asks: what a request says is checked, what an edge saw goes before it; and no part of it is
what an idempotency key stands for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cellpay.accounts.v1.accounts_pb2 import WithdrawRequest
from cellpay.payments.v1.payments_pb2 import PayRequest
from cellpay.risk.v1.risk_pb2 import RiskContext
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from cells.requests import Checker, idempotency_of
from cells.risk.asking import NOWHERE, Whence, requested, seen_by_edge
from cells.risk.cases.codes import is_code, provisioning_uri, step_of
from cells.risk.cases.model import TRANSITIONS, CaseState, Conclusion
from cells.risk.cases.rules import conclude
from router.identity import spiffe_id
from router.risk.model import Action

SECRET = b"12345678901234567890"


class Call:
    """What grpc.aio tells of a call."""

    def __init__(self, kind: str, **headers: str) -> None:
        self._name = spiffe_id(kind, "x")
        self._headers = [(name.replace("_", "-"), value) for name, value in headers.items()]

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"peer_spiffe_id": [self._name.encode()]}

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self._headers


def read(**fields: str) -> tuple[Whence, list[str]]:
    check = Checker()
    whence = requested(check, PayRequest(risk_context=RiskContext(**fields)))
    return whence, [violation.field.removeprefix("risk_context.") for violation in check.violations]


def test_a_request_without_context_is_from_nowhere() -> None:
    assert requested(Checker(), PayRequest()) is NOWHERE


@pytest.mark.parametrize(
    ("said", "ip"),
    [("203.0.113.7", "203.0.113.7"), ("2001:DB8::0:1", "2001:db8::1"), (" 10.0.0.1", "10.0.0.1")],
)
def test_addresses_are_written_one_way(said: str, ip: str) -> None:
    assert read(ip_address=said) == (Whence(ip=ip), [])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ip_address", "300.1.1.1"),
        ("ip_address", "localhost"),
        ("ip_country", "Germany"),
        ("ip_country", "de"),
        ("device_id", "x" * 65),
        ("device_id", "a\x1eb"),
        ("card_token", "a\nb"),
    ],
)
def test_what_is_no_such_thing_is_refused_by_its_field(field: str, value: str) -> None:
    assert read(**{field: value})[1] == [field]


def test_an_edges_address_goes_before_what_the_client_says() -> None:
    said = Whence("d", "203.0.113.7", "DE")
    seen = seen_by_edge(said, Call("edge", x_forwarded_for="192.0.2.1, 198.51.100.9"))
    # The country was that of another address.
    assert seen == Whence("d", "198.51.100.9", "")
    same = seen_by_edge(said, Call("edge", x_forwarded_for="203.0.113.7"))
    assert same == said


def test_a_service_is_believed_and_its_headers_are_not() -> None:
    said = Whence("d", "203.0.113.7", "DE")
    assert seen_by_edge(said, Call("service", x_forwarded_for="198.51.100.9")) == said


def test_who_asks_is_no_part_of_what_an_idempotency_key_stands_for() -> None:
    def digest(request: Any) -> bytes:
        return idempotency_of(Checker(), "Pay", request).request_hash

    plain = PayRequest(order_id="o", idempotency_key="k")
    told = PayRequest(order_id="o", idempotency_key="k", risk_context=RiskContext(device_id="d"))
    assert digest(plain) == digest(told)
    assert told.risk_context.device_id == "d"
    other = PayRequest(order_id="p", idempotency_key="k", risk_context=RiskContext(device_id="d"))
    assert digest(other) != digest(told)
    assert digest(WithdrawRequest(user_id="u", idempotency_key="k")) != digest(plain)


def test_codes_are_those_of_rfc_6238() -> None:
    """Its appendix B has eight digits, of which an app shows the last six."""
    for unix_s, code in ((59, "287082"), (1111111109, "081804"), (20000000000, "353130")):
        assert step_of(SECRET, code, unix_s) == unix_s // 30


def test_a_code_counts_a_step_before_and_after_its_own_and_no_longer() -> None:
    code = TOTP(SECRET, 6, SHA1(), 30).generate(3000).decode()
    found = [step_of(SECRET, code, unix_s) for unix_s in (2940, 2970, 3000, 3030, 3060)]
    assert found == [0, 100, 100, 100, 0]
    assert step_of(SECRET, "000000", 3000) == 0


@pytest.mark.parametrize("text", ["", "12345", "1234567", "12345x", "\uff11" * 6, "-12345"])
def test_only_six_digits_are_a_code(text: str) -> None:
    assert not is_code(text)


def test_an_apps_link_names_us_and_hides_nothing_of_the_label() -> None:
    uri = provisioning_uri(SECRET, "ann@example.com")
    assert uri.startswith("otpauth://totp/Cellpay:ann%40example.com?")
    assert "issuer=Cellpay" in uri


def test_what_rules_say_comes_to_what_the_cases_allow() -> None:
    """The table in `conclude`, whole."""
    states = [None, *CaseState]
    for action in Action:
        for challenge in states:
            for review in states:
                for answerable in (True, False):
                    found, why = conclude(action, challenge, review, answerable=answerable)
                    if CaseState.FAILED in (challenge, review):
                        assert (found, bool(why)) == (Conclusion.DENY, True)
                    elif action in (Action.ALLOW, Action.DENY):
                        assert found == Conclusion(action.value)
                    elif action == Action.REVIEW or not (
                        answerable or challenge == CaseState.PASSED
                    ):
                        passed = review == CaseState.PASSED
                        assert found == (Conclusion.ALLOW if passed else Conclusion.REVIEW)
                    else:
                        passed = challenge == CaseState.PASSED
                        assert found == (Conclusion.ALLOW if passed else Conclusion.CHALLENGE)


def test_the_page_shows_the_transitions_that_the_code_has() -> None:
    page = (Path(__file__).parents[2] / "docs/risk-decisions.md").read_text(encoding="utf-8")
    rows = [line for line in page.split("\n") if line.startswith("| `")]
    shown = {tuple(cell.strip(" `") for cell in row.strip("|").split("|")) for row in rows}
    held = {
        (str(state), str(event), str(after))
        for state, events in TRANSITIONS.items()
        for event, after in events.items()
    }
    assert held <= shown, json.dumps(sorted(held - shown))
