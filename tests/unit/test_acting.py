"""cellctl's options that every command takes, wherever they stand."""

from __future__ import annotations

import pytest

from control.cellctl.acting import take_acting
from control.cellctl.failures import MissingValue


@pytest.mark.parametrize(
    ("given", "rest", "variables"),
    [
        ("status --json", "status --json", {}),
        ("--as ann drain a", "drain a", {"CELLPAY_AS": "ann"}),
        ("drain a --as=ann --reason x", "drain a --reason x", {"CELLPAY_AS": "ann"}),
        ("drain a --approval appr-1", "drain a", {"CELLPAY_APPROVAL": "appr-1"}),
        ("drain a --break-glass --to b", "drain a --to b", {"CELLPAY_BREAK_GLASS": "yes"}),
        ("route -- --as ann", "route -- --as ann", {}),
    ],
)
def test_they_are_taken_from_anywhere(given: str, rest: str, variables: dict[str, str]) -> None:
    assert take_acting(given.split()) == (rest.split(), variables)


def test_an_option_without_its_value_is_said_to_lack_it() -> None:
    with pytest.raises(MissingValue, match="--as"):
        take_acting(["status", "--as"])
