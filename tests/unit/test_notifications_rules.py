"""What may become of a delivery, and where webhooks may go."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cells.ledger.book import Book
from cells.ledger.model import Accepted, Idempotency, Outcome, Reason, Refused
from cells.notifications.model import TRANSITIONS, Delivery, DeliveryState, Retrying
from cells.notifications.rules import (
    ERROR_CHARACTERS_MAX,
    ClaimDelivery,
    EndAttempt,
    EnqueueDelivery,
    RedeliverDelivery,
    SetEndpoint,
    backoff_ceiling_s,
    delivery_id,
    public_address,
    url_fault,
)
from cells.notifications.tables import DELIVERIES
from router.ids import Kind, kind_of_id, mint, slot_of_id
from router.slots import slot_of_user

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MERCHANT = "shop"
SLOT = slot_of_user(MERCHANT)
EVENT = mint(Kind.EVENT, 3, unix_ms=1, random_80=1)
DELIVERY = delivery_id(SLOT, EVENT)
RETRYING = Retrying(attempts_max=3, backoff_base_s=2.0, backoff_cap_s=5.0)


def _book(*, endpoint: bool = True) -> Book:
    book = Book({SLOT: 1}, NOW)
    if endpoint:
        key = Idempotency(MERCHANT, "k", "SetEndpoint", b"h")
        SetEndpoint(SLOT, MERCHANT, "https://shop.example/hook", b"s" * 24, key).decide(book)
    return book


def _enqueue(book: Book) -> Delivery:
    command = EnqueueDelivery(SLOT, MERCHANT, EVENT, "payment.succeeded", "{}")
    return _delivery(command.decide(book))


def _delivery(outcome: Outcome) -> Delivery:
    assert isinstance(outcome, Accepted)
    assert isinstance(outcome.resource, Delivery)
    return outcome.resource


def _claim(book: Book) -> Any:
    outcome = ClaimDelivery(SLOT, DELIVERY, 15.0, RETRYING.attempts_max).decide(book)
    assert isinstance(outcome, Accepted)
    return outcome.resource


def _end(book: Book, attempt: int, error: str, random_unit: float = 0.5) -> Delivery:
    command = EndAttempt(SLOT, DELIVERY, attempt, error, random_unit, RETRYING)
    return _delivery(command.decide(book))


def _redeliver(book: Book) -> Outcome:
    key = Idempotency(DELIVERY, "k", "RedeliverDelivery", b"h")
    return RedeliverDelivery(SLOT, DELIVERY, key).decide(book)


def _put(book: Book, **changes: Any) -> None:
    delivery = book.get(DELIVERIES, DELIVERY)
    assert delivery is not None
    book.put(DELIVERIES, delivery._replace(**changes))


def _fail_to_death(book: Book) -> Delivery:
    for attempt in (1, 2, 3):
        _put(book, next_attempt_at=NOW)
        assert _claim(book).attempts == attempt
        _end(book, attempt, f"HTTP 50{attempt}")
    dead = book.get(DELIVERIES, DELIVERY)
    assert dead is not None
    return dead


def test_a_delivery_is_at_home_with_its_merchant_wherever_its_event_is() -> None:
    delivery = _enqueue(_book())
    assert slot_of_id(delivery.delivery_id) == delivery.slot == SLOT
    assert kind_of_id(delivery.delivery_id) == Kind.DELIVERY
    assert (delivery.state, delivery.attempts) == (DeliveryState.PENDING, 0)
    assert delivery.next_attempt_at == NOW


def test_the_same_event_finds_its_delivery() -> None:
    book = _book()
    _enqueue(book)
    _claim(book)
    delivered = _end(book, 1, "")
    assert _enqueue(book) == delivered


def test_without_an_endpoint_the_event_is_skipped_and_nothing_is_kept() -> None:
    book = _book(endpoint=False)
    assert _enqueue(book).state == DeliveryState.SKIPPED
    assert book.changes() == []
    refused = _redeliver(book)
    assert isinstance(refused, Refused)
    assert refused.reason == Reason.DELIVERY_NOT_FOUND


def test_who_claims_first_has_it_until_the_claim_ends() -> None:
    book = _book()
    _enqueue(book)
    claimed = _claim(book)
    assert (claimed.attempts, claimed.next_attempt_at) == (1, NOW + timedelta(seconds=15))
    assert _claim(book) is None
    _put(book, next_attempt_at=NOW)
    assert _claim(book).attempts == 2


def test_a_delivery_that_kills_whoever_claims_it_dies_too() -> None:
    book = _book()
    _enqueue(book)
    for _ in range(RETRYING.attempts_max):
        _put(book, next_attempt_at=NOW)
        assert _claim(book) is not None
    _put(book, next_attempt_at=NOW)
    assert _claim(book) is None
    delivery = book.get(DELIVERIES, DELIVERY)
    assert delivery is not None
    assert delivery.state == DeliveryState.DEAD


def test_a_failure_waits_a_random_part_of_a_growing_ceiling() -> None:
    assert [backoff_ceiling_s(n, 2.0, 5.0) for n in (1, 2, 3, 4000)] == [2.0, 4.0, 5.0, 5.0]
    book = _book()
    _enqueue(book)
    _claim(book)
    failed = _end(book, 1, "HTTP 500", random_unit=0.25)
    assert (failed.state, failed.last_error) == (DeliveryState.PENDING, "HTTP 500")
    assert failed.next_attempt_at == NOW + timedelta(seconds=0.5)


def test_the_last_failure_is_death_and_redelivery_begins_anew() -> None:
    book = _book()
    _enqueue(book)
    dead = _fail_to_death(book)
    assert (dead.state, dead.attempts, dead.last_error) == (DeliveryState.DEAD, 3, "HTTP 503")
    alive = _delivery(_redeliver(book))
    assert (alive.state, alive.attempts, alive.next_attempt_at) == (DeliveryState.PENDING, 0, NOW)
    assert _fail_to_death(book).state == DeliveryState.DEAD


@pytest.mark.parametrize("state", [DeliveryState.PENDING, DeliveryState.DELIVERED])
def test_only_the_dead_are_redelivered(state: DeliveryState) -> None:
    book = _book()
    _enqueue(book)
    _put(book, state=state)
    assert isinstance(_redeliver(book), Refused)


def test_a_failure_that_another_attempt_has_overtaken_changes_nothing() -> None:
    book = _book()
    _enqueue(book)
    _claim(book)
    _put(book, next_attempt_at=NOW)
    second = _claim(book)
    assert _end(book, 1, "no answer in time") == second


def test_a_late_success_is_believed_even_after_death() -> None:
    book = _book()
    _enqueue(book)
    _fail_to_death(book)
    assert _end(book, 1, "").state == DeliveryState.DELIVERED
    assert _end(book, 3, "HTTP 500").state == DeliveryState.DELIVERED


def test_a_long_error_is_cut() -> None:
    book = _book()
    _enqueue(book)
    _claim(book)
    assert len(_end(book, 1, "x" * 10_000).last_error) == ERROR_CHARACTERS_MAX


def test_what_does_not_exist_is_not_found() -> None:
    book = _book()
    for outcome in (
        ClaimDelivery(SLOT, DELIVERY, 1.0, 3).decide(book),
        EndAttempt(SLOT, DELIVERY, 1, "", 0.0, RETRYING).decide(book),
        _redeliver(book),
    ):
        assert isinstance(outcome, Refused)
        assert outcome.reason == Reason.DELIVERY_NOT_FOUND


def test_every_state_says_what_may_follow() -> None:
    assert set(TRANSITIONS) == set(DeliveryState)


def test_the_secret_is_not_shown() -> None:
    key = Idempotency(MERCHANT, "k", "SetEndpoint", b"h")
    outcome = SetEndpoint(SLOT, MERCHANT, "https://a.example", b"topsecret" * 3, key).decide(
        _book(endpoint=False)
    )
    assert "topsecret" not in repr(outcome)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0",
        "100.64.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0",
        "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1",
        "2002:7f00:1::", "not-an-address", "",
    ],
)  # fmt: skip
def test_addresses_inside_some_network_are_private(address: str) -> None:
    assert not public_address(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8"]
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert public_address(address)


@pytest.mark.parametrize(
    "url",
    [
        "https://shop.example.com/hooks?a=b", "https://shop.example.com:8443/",
        "https://1.1.1.1/", "https://[2606:4700:4700::1111]/",
    ],
)  # fmt: skip
def test_public_https_urls_are_taken_everywhere(url: str) -> None:
    assert url_fault(url, allow_private=False) is None
    assert url_fault(url, allow_private=True) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://shop.example.com/", "https://localhost/", "https://a.localhost/",
        "https://intra/", "https://db.internal/", "https://printer.local./", "https://127.0.0.1/",
        "https://127.1/", "https://2130706433/", "https://0x7f000001/", "https://10.0.0.8:8080/",
        "https://[::1]/", "https://[::ffff:10.0.0.1]/", "https://169.254.169.254/latest/",
    ],
)  # fmt: skip
def test_private_hosts_and_plain_http_are_for_development(url: str) -> None:
    assert url_fault(url, allow_private=False) is not None
    assert url_fault(url, allow_private=True) is None


@pytest.mark.parametrize(
    "url",
    [
        "", "shop.example.com", "ftp://shop.example.com/", "file:///etc/passwd", "https://",
        "https://user@shop.example.com/", "https://user:word@shop.example.com/",
        "https://shop.example.com:99999/", "https://shop.example.com:0/", "https://[::1/",
        "https://shop.example.com/ x", "https://shop.example.com/\n", "https://shöp.example.com/",
        "https://shop.example.com\\@127.0.0.1/", "https://shop.example.com/#here",
        "https://shop.example.com/" + "x" * 2048,
    ],
)  # fmt: skip
def test_what_is_no_good_url_is_refused_everywhere(url: str) -> None:
    assert url_fault(url, allow_private=False) is not None
    assert url_fault(url, allow_private=True) is not None
