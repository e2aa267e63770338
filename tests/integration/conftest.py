"""One console for all tests that visit one: it takes seconds to start where others run too."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
import pytest_asyncio

from control.cellctl.session import Session
from tests.integration.visiting import Visitor, add_accounts, serving

TRACE_URL = "https://traces.example/t/{trace_id}?x=1"


@pytest.fixture(scope="session")
def console(session: Session) -> Iterator[str]:
    add_accounts(session)
    with serving(session, "--listen", "127.0.0.1:0", "--trace-url", TRACE_URL) as base:
        yield base


@pytest_asyncio.fixture
async def browser(console: str) -> AsyncIterator[Visitor]:
    # The console's address is an IP address, whose cookies aiohttp keeps only when told to.
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as client:
        yield Visitor(client, console)


@pytest_asyncio.fixture
async def second_person(console: str) -> AsyncIterator[Visitor]:
    """bob, who approves."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as client:
        visitor = Visitor(client, console)
        assert await visitor.sign_in("bob") == 200
        yield visitor
