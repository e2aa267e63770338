"""What the edge takes for a JSON body: JSON to the letter, with names that its message has."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lupa.luajit21 import LuaRuntime

import router.edge
from router.edge.bodies import lua_tables
from router.edge.http import described

REFUND = "/v1/payments/pay_01ABC/refunds"


def lua_of() -> Any:
    source = (Path(router.edge.__file__).parent / "strict.lua").read_text("utf-8")
    runtime: Any = LuaRuntime(encoding=None)
    return runtime.execute(
        f"{lua_tables(described())}\n{source}\n"
        "return {fault_of = fault_of, is_known = is_known, body_of = body_of}".encode()
    )


LUA = lua_of()


def fault_of(body: bytes, path: str = REFUND, method: str = "POST") -> Any:
    found = LUA[b"fault_of"](method.encode(), path.encode(), body)
    if found is None:
        return None
    status, fault = found
    said = json.loads(fault)
    assert {3: b"400", 5: b"404"}[said["code"]] == status
    return said


def is_json(text: bytes) -> bool:
    known = LUA[b"is_known"](text, None)
    return bool(known if isinstance(known, bool) else known[0])


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{}",
        '{"amount": {"currency": "USD", "minor_units": "5"}, "idempotency_key": "k"}',
        ' {"amount":{"currency":"USD","minorUnits":5},"idempotencyKey":"k"}\r\n',
        '{"amount": null, "reason": "he said \\"no\\" \\u00e9"}',
    ],
)
def test_names_of_the_proto_and_in_camel_case_are_taken(body: str) -> None:
    assert fault_of(body.encode()) is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"amout": {"currency": "USD", "minor_units": 5}}', "amout"),
        ('{"amount": {"currency": "USD", "minor_unit": 5}}', "amount.minor_unit"),
        ('{"reason": "", "Amount": 1}', "Amount"),
        # In the path: it must not stand here too, by whichever name.
        ('{"payment_id": "pay_2"}', "payment_id"),
        ('{"paymentId": "pay_2"}', "paymentId"),
        ('{"amount ": 1}', "?"),
        ('{"4111111111111111": 1}', "?"),
        ('{"": 1}', "?"),
        # The transcoder would read it as "amount": no reason to write it so.
        ('{"amo\\u0075nt": {}}', "?"),
    ],
)
def test_a_field_that_nobody_knows_is_refused_by_its_name(body: str, field: str) -> None:
    fault = fault_of(body.encode())
    assert fault["code"] == 3
    (detail,) = fault["details"]
    assert [violation["field"] for violation in detail["field_violations"]] == [field]


@pytest.mark.parametrize(
    "body",
    [
        "{'amout': 1}",
        "{amout: 1}",
        '{"reason": "a",}',
        '{"reason": "a"} {"amout": 1}',
        '{"reason": "a"}, "amout": 1',
        '{"reason": "a\nb"}',
        '{"reason": 01}',
        '{"reason": NaN}',
        '{"reason": /* */ 1}',
        "\ufeff{}",
        "\x00{}",
        "[" * 40 + "]" * 40,
        '{"reason":' * 6_000,
    ],
)
def test_what_a_lenient_reader_would_take_is_not_json(body: str) -> None:
    assert fault_of(body.encode())["code"] == 3


def test_a_body_where_none_belongs_is_refused() -> None:
    assert fault_of(b"{}", "/v1/payments/pay_01ABC", "GET")["code"] == 5
    assert fault_of(b"{}", "/v1/nothing/pay_01ABC/of-this")["code"] == 5
    assert fault_of(b"", "/v1/payments/pay_01ABC", "GET") is None


def test_a_verb_makes_another_message_of_the_same_path() -> None:
    assert fault_of(b'{"label": "mine"}', "/v1/users/a%3Ab/factor") is None
    assert fault_of(b'{"label": "mine"}', "/v1/users/a%3Ab/factor:confirm")["code"] == 3


_PLAIN = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
_NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)


_JSON = st.recursive(_PLAIN | _NUMBERS, _nested, max_leaves=12)


@settings(max_examples=60, deadline=None)
@given(_JSON, st.booleans(), st.sampled_from([None, 0, 3]))
def test_all_json_is_json(value: Any, is_ascii: bool, indent: int | None) -> None:
    assert is_json(
        json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode("utf-8", "replace")
    )


@settings(max_examples=200, deadline=None)
@given(_JSON, st.data())
def test_what_is_taken_for_json_is_json(value: Any, data: st.DataObject) -> None:
    """Changed by a character or two: the judge is Python's reader, made strict."""
    text = json.dumps(value)
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(text)))
        with_ = data.draw(st.sampled_from([*"{}[]\",:\\0123456789.-+eEtfnu' \t\n\x00\x1f", ""]))
        text = text[:at] + with_ + text[at + data.draw(st.integers(0, 1)) :]
    assert is_json(text.encode()) == _is_strict(text)


def _is_strict(text: str) -> bool:
    def never(_: str) -> Any:
        raise ValueError

    try:
        json.loads(text, parse_constant=never)
    except ValueError:
        return False
    return True


@settings(max_examples=60, deadline=None)
@given(st.text(string.ascii_letters + "_", min_size=1, max_size=20))
def test_no_other_name_is_known(name: str) -> None:
    known = {"amount", "reason", "idempotency_key", "idempotencyKey"}
    assert (fault_of(json.dumps({name: None}).encode()) is None) == (name in known)
