"""What of the database's answers means that it is away, so that a retry by its key is right."""

from __future__ import annotations

import asyncpg
import pytest

from cells.database import is_away


@pytest.mark.parametrize(
    ("error", "away"),
    [
        # The server ended the connection between two messages: asyncpg loses its place.
        (asyncpg.InternalClientError("cannot switch to state 12; another operation (2)"), True),
        (asyncpg.InterfaceError("connection is closed"), True),
        (asyncpg.AdminShutdownError("terminating connection"), True),
        (ConnectionResetError(), True),
        (asyncpg.UniqueViolationError("duplicate key"), False),
        (asyncpg.CheckViolationError("poison"), False),
        (ZeroDivisionError(), False),
    ],
)
def test_a_broken_connection_is_no_refusal(error: Exception, away: bool) -> None:
    assert is_away(error) == away
