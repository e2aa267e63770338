"""A PostgreSQL of their own for tests that need no more of a mesh."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy.engine import URL

from tests.integration.books import database_server


@pytest.fixture(scope="module")
def server_url() -> Iterator[URL]:
    with database_server() as url:
        yield url
