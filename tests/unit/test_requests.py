"""Reading requests: every wrong field is named, keys are scoped, masks and pages are AIP."""

from __future__ import annotations

import pytest
from cellpay.accounts.v1 import accounts_pb2
from cellpay.money.v1.money_pb2 import Money
from cellpay.orders.v1 import orders_pb2
from cellpay.payments.v1 import payments_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given
from hypothesis import strategies as st

from cells.requests import Checker, idempotency_of, masked, page_start, page_token
from router.errors import Refusal
from router.home import find_method, is_bulk, slot_finder
from router.ids import Kind, mint
from router.slots import slot_of_user


def violations(check: Checker) -> list[str]:
    return [item.field for item in check.violations]


@pytest.mark.parametrize(
    ("money", "fields"),
    [
        (Money(currency="USD", minor_units=1), []),
        (Money(currency="USD", minor_units=2**53), []),
        (Money(currency="USD", minor_units=2**53 + 1), ["amount.minor_units"]),
        (Money(currency="USD", minor_units=0), ["amount.minor_units"]),
        (Money(currency="USD", minor_units=-5), ["amount.minor_units"]),
        (Money(currency="usd", minor_units=5), ["amount.currency"]),
        (Money(), ["amount.currency", "amount.minor_units"]),
    ],
)
def test_an_amount_is_positive_at_most_2_to_the_53_and_has_a_currency(
    money: Money, fields: list[str]
) -> None:
    check = Checker()
    check.amount("amount", money)
    assert violations(check) == fields


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "a\x00b", "a\x1fb"])
def test_a_name_is_1_to_64_printable_characters(name: str) -> None:
    check = Checker()
    check.name("user_id", name)
    assert violations(check) == ["user_id"]


def test_an_id_of_another_kind_is_refused() -> None:
    check = Checker()
    order = mint(Kind.ORDER, 7, unix_ms=1, random_80=1)
    check.identifier("payment_id", order, Kind.PAYMENT)
    assert violations(check) == ["payment_id"]
    check.identifier("order_id", order, Kind.ORDER)
    assert violations(check) == ["payment_id"]


def test_all_faults_of_a_request_come_at_once() -> None:
    check = Checker()
    check.name("user_id", "")
    check.currency("currency", "??")
    with pytest.raises(Refusal) as caught:
        check.done()
    assert [item.field for item in caught.value.violations] == ["user_id", "currency"]


def test_the_same_key_with_other_input_has_another_hash_and_other_users_another_scope() -> None:
    def record(user: str, units: int) -> object:
        request = accounts_pb2.DepositRequest(
            user_id=user, amount=Money(currency="USD", minor_units=units), idempotency_key="k"
        )
        return idempotency_of(Checker(), "Deposit", request)

    assert record("ann", 1) == record("ann", 1)
    assert record("ann", 1) != record("ann", 2)
    assert record("ann", 1).idempotency_id != record("bob", 1).idempotency_id  # type: ignore[attr-defined]


def test_a_read_mask_keeps_what_it_names_and_refuses_what_does_not_exist() -> None:
    order = orders_pb2.Order(order_id="o", payer_id="p", description="d")
    assert masked(order, FieldMask(paths=["payer_id"])) == orders_pb2.Order(payer_id="p")
    assert masked(order, FieldMask()) == order
    with pytest.raises(Refusal):
        masked(order, FieldMask(paths=["colour"]))


@given(
    st.lists(
        # What a page starts at: IDs, numbers, times.
        st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1),
        min_size=1,
        max_size=3,
    )
)
def test_page_tokens_round_trip(values: list[str]) -> None:
    check = Checker()
    assert page_start(check, page_token(values), len(values)) == values
    assert check.violations == []


@pytest.mark.parametrize("token", ["!", "é", "AAAA====", "_w", "AB9i"])
def test_a_foreign_page_token_is_refused(token: str) -> None:
    check = Checker()
    page_start(check, token, 2)
    assert violations(check) == ["page_token"]


def test_every_method_that_writes_has_a_home_and_an_idempotency_key() -> None:
    """What the SDK and the guard rely on, for every service that cells offer to everyone."""
    for service in ("accounts.v1.Accounts", "orders.v1.Orders", "payments.v1.Payments",
                    "transfers.v1.Transfers", "notifications.v1.Notifications"):  # fmt: skip
        name = f"cellpay.{service}Service"
        for method in find_method_names(name):
            request = find_method(f"/{name}/{method}").input_type
            if method == "PayStream":
                # Its caller names the cell; each payment in it is as any other.
                request = request.fields_by_name["payments"].message_type
            assert slot_finder(request) is not None, f"{method} has no home"
            if is_bulk(request):
                request = request.fields[0].message_type
            reads = method.startswith(("Get", "List"))
            internal = method.startswith("EnqueueDeliver")
            assert ("idempotency_key" in request.fields_by_name) != (reads or internal), method


def find_method_names(service: str) -> list[str]:
    from router.home import find_service

    return [method.name for method in find_service(service).methods]


def test_the_slot_comes_from_the_annotated_field() -> None:
    by_user = slot_finder(orders_pb2.CreateOrderRequest.DESCRIPTOR)
    by_id = slot_finder(payments_pb2.PayRequest.DESCRIPTOR)
    assert by_user is not None
    assert by_id is not None
    assert by_user(orders_pb2.CreateOrderRequest(payer_id="ann")) == slot_of_user("ann")
    order = mint(Kind.ORDER, 421, unix_ms=1, random_80=1)
    assert by_id(payments_pb2.PayRequest(order_id=order)) == 421
    with pytest.raises(ValueError, match="empty"):
        by_user(orders_pb2.CreateOrderRequest())
