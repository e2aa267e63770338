"""What must not be told is taken out of texts, fields, tracebacks and error details."""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import Any

import grpc
import pytest
import structlog
from sqlalchemy.exc import IntegrityError

from router import logs
from router.errors import Refusal, Violation
from router.redaction import REDACTED, redacted, redacted_value

VISA = "4111111111111111"
SECRETS = [
    "password=CANARY",
    "Authorization: Bearer CANARY.abc",
    "postgresql+asyncpg://cellpay:CANARY@db:5432/pay",
    '{"secret": "CANARY", "n": 1}',
    "{'holder': 'CANARY', 'n': 1}",
    "api_key=CANARY&x=1",
    "-----BEGIN RSA PRIVATE KEY-----\nCANARY\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\nCANARY",
    "[SQL: INSERT …]\n[parameters: ('CANARY', 1)]",
    "DETAIL:  Key (slot, name)=(1, CANARY) already exists.",
    "DETAIL:  Failing row contains (1, CANARY, null).",
    "invalid input for query argument $3: 'CANARY' (an integer is required)",
    'invalid input syntax for type bigint: "CANARY"',
    '"keyData": {"value": "GiDmCANARYmCANARYm=",\n "keyMaterialType": "SYMMETRIC"}',
]
PANS = [
    VISA,
    "4111 1111 1111 1111",
    "4111-1111-1111-1111",
    "378282246310005",
    "6222021234567890128",
    # An ISO 8583 message has it among other digits.
    "0200702405802000000016" + VISA + "000000000000010000",
]


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_taken_out_of_text(text: str) -> None:
    assert "CANARY" not in redacted(text)
    assert REDACTED in redacted(text)


@pytest.mark.parametrize("pan", PANS)
@pytest.mark.parametrize("around", ["{}", "card {}.", "x='{}'", '{{"a":"{}"}}', "é{}ü", "pay_{}"])
def test_card_numbers_are_taken_out_of_text(pan: str, around: str) -> None:
    assert pan not in redacted(around.format(pan))


@pytest.mark.parametrize(
    "text",
    [
        "slot 512 is at home in cell a, not in b",
        "pay_7Z01JDQ6T5R8V3K4M9XWEB2CHN5G",
        "2026-11-24T18:16:05.123456Z",
        "the key cannot be retired",
        "http://127.0.0.1:8080/path",
        # Luhn's digit is wrong.
        "4111111111111112",
        "123456789012",
    ],
)
def test_what_is_harmless_stays(text: str) -> None:
    assert redacted(text) == text


def test_values_are_looked_at_in_depth_and_by_their_names() -> None:
    value = {
        "pan": "1",
        "card_number": 5,
        "client-secret": b"x",
        "nested": [{"holder": "ANN", "n": 1}, VISA, int(VISA)],
        "bytes": VISA.encode(),
        "error": ValueError(VISA),
        "amount_minor_units": int(VISA),
        "idempotency_key": "k",
        "passes": 3,
        "empty": None,
    }
    said = redacted_value(value)
    assert said["pan"] == said["card_number"] == said["client-secret"] == REDACTED
    assert said["nested"] == [{"holder": REDACTED, "n": 1}, REDACTED, REDACTED]
    assert VISA not in said["bytes"]
    assert VISA not in said["error"]
    assert said["amount_minor_units"] == int(VISA)
    assert (said["idempotency_key"], said["passes"], said["empty"]) == ("k", 3, None)


def test_a_structure_without_end_ends() -> None:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    assert REDACTED in json.dumps(redacted_value(loop))


def test_error_details_and_messages_hold_none() -> None:
    refusal = Refusal(
        grpc.StatusCode.INVALID_ARGUMENT, "X", f"{VISA} is wrong",
        metadata={"value": VISA, "secret": "CANARY", "slot": "5"},
        violations=[Violation("number", f"'{VISA}' is no ID")],
    )  # fmt: skip
    told = f"{refusal}{refusal.to_status()}{refusal.violations}"
    assert VISA not in told
    assert "CANARY" not in told
    assert refusal.metadata["slot"] == "5"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a configured process writes to standard error."""
    written = io.StringIO()
    root = logging.getLogger()
    handlers, level, hook = root.handlers, root.level, sys.excepthook
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", written)
        logs.configure_logs(process="test")
        yield written
    root.handlers, sys.excepthook = handlers, hook
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def fail_like_a_database() -> None:
    """With parameters in its text, as they would be without `hide_parameters`."""
    raise IntegrityError("INSERT", {"pan": "CANARY-1"}, Exception(f"Key (a)=({VISA}) exists"))


def test_no_sink_of_a_process_tells(lines: io.StringIO) -> None:
    log = structlog.get_logger("a test")
    log.info("paid with %s" % VISA, pan="CANARY-2", nested={"cvv": "CANARY-3"})  # noqa: UP031
    try:
        fail_like_a_database()
    except IntegrityError:
        log.exception("a request failed")
        logging.getLogger("library").exception("password=CANARY-4")
        error = sys.exc_info()
    assert error[0] is not None
    assert error[1] is not None
    sys.excepthook(error[0], error[1], error[2])
    told = lines.getvalue()
    assert "CANARY" not in told
    assert VISA not in told
    # It still says what happened, three times, and where.
    assert told.count("fail_like_a_database") >= 3
    assert json.loads(told.splitlines()[0])["process"] == "test"
