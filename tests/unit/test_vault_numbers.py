"""Numbers: check digits, schemes, issuers, expiry; and keys that are due."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cells.vault.model import KeyState, SlotKey
from cells.vault.numbers import (
    account_fault,
    bare,
    card_fault,
    country_of_account,
    expiry_fault,
    read_bins,
)
from cells.vault.rules import is_due, is_expired

NOW = datetime(2026, 11, 24, 18, tzinfo=UTC)
# Published test numbers of the schemes' processors.
CARDS = [
    ("4111111111111111", "visa"),
    ("4222222222222", "visa"),
    ("5555555555554444", "mastercard"),
    ("2223003122003222", "mastercard"),
    ("378282246310005", "amex"),
    ("3566002020360505", "jcb"),
    ("6200000000000005", "unionpay"),
    ("6222021234567890128", "unionpay"),
    ("6011111111111117", "discover"),
    ("30569309025904", "diners"),
]


@pytest.mark.parametrize(("number", "scheme"), CARDS)
def test_a_scheme_is_found_by_its_prefix(number: str, scheme: str) -> None:
    kind = read_bins().kind_of(number)
    assert kind is not None
    assert kind.scheme == scheme
    assert card_fault(number, kind) == ""


def test_an_issuer_is_found_by_a_longer_prefix() -> None:
    kind = read_bins().kind_of("6222021234567890128")
    assert kind is not None
    assert (kind.scheme, kind.issuer, kind.country) == ("unionpay", "icbc", "CN")


@pytest.mark.parametrize(
    ("number", "fault"),
    [
        ("4111111111111112", "check digit"),
        ("411111111111111", "check digit"),
        ("42222222222222", "check digit"),
        ("", "12 to 19"),
        ("41111111111111111111", "12 to 19"),
        ("4111111111111\uff11\uff11\uff11", "12 to 19"),
        ("9999999999999995", "no scheme"),
        ("41111111111111114", "check digit"),
    ],
)
def test_a_wrong_number_is_told_why(number: str, fault: str) -> None:
    assert fault in card_fault(number, read_bins().kind_of(number))


def test_a_length_that_the_scheme_has_not_is_refused() -> None:
    # 14 digits, the check digit right.
    number = "55555555555553"
    kind = read_bins().kind_of(number)
    assert "too long or too short for mastercard" in card_fault(number, kind)


def test_an_operator_has_a_table_of_his_own(tmp_path: Path) -> None:
    path = tmp_path / "bins.json"
    own = {"name": "own", "prefixes": ["99"], "lengths": [16]}
    path.write_text(json.dumps({"schemes": [own]}))
    kind = read_bins(str(path)).kind_of("9999999999999995")
    assert kind is not None
    assert kind.scheme == "own"


def test_accounts_are_checked_as_far_as_they_can_be() -> None:
    iban = bare("de89 3704-0044 0532 0130 00")
    assert account_fault(iban) == ""
    assert "check digits" in account_fault(iban.replace("89", "98", 1))
    assert account_fault("6228480000000") == ""
    assert account_fault("ab") != ""
    assert country_of_account(iban, "") == "DE"
    assert country_of_account("1234", "BKCHCNBJ") == "CN"
    assert country_of_account("1234", "103100000026") == "CN"
    assert country_of_account("1234", "x") == ""


def test_a_card_is_good_to_the_end_of_its_month_everywhere() -> None:
    assert not is_expired("2026-11", datetime(2026, 12, 1, 11, 59, tzinfo=UTC))
    assert is_expired("2026-11", datetime(2026, 12, 1, 12, 1, tzinfo=UTC))
    assert not is_expired("", NOW)
    assert expiry_fault(2026, 0, 2026)
    assert expiry_fault(2026, 13, 2026)
    assert expiry_fault(26, 1, 2026)
    assert expiry_fault(2057, 1, 2026)
    assert not expiry_fault(2030, 12, 2026)


def test_a_key_is_due_by_age_or_by_an_operators_moment_once_it_has_come() -> None:
    made = NOW - timedelta(days=10)
    key = SlotKey(1, "1.field.1", "field", 1, KeyState.PRIMARY, "", "1", made, made)
    year = timedelta(days=365)
    assert not is_due(key, NOW, year, None)
    assert is_due(key, NOW, timedelta(days=10), None)
    assert is_due(key, NOW, year, NOW)
    # It would be due again as soon as it is new, for as long as the moment has not come.
    assert not is_due(key, NOW, year, NOW + timedelta(hours=1))
    assert not is_due(key, NOW, year, made)
