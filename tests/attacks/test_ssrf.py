"""Webhooks turned against us: addresses inside, however written, resolved or redirected."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.abc import AbstractResolver

from cells.notifications.model import Delivery, DeliveryState
from cells.notifications.rules import url_fault
from cells.notifications.worker import client_session, send
from cells.settings import WebhookSettings

NOW = datetime.now(UTC)
REFUSED = "the address is not public"
# The last two: what aiohttp or the resolver takes for no address at all.
NOT_SENT = {
    REFUSED,
    "no answer: InvalidUrlClientError",
    "no connection: ClientConnectorDNSError",
}
SETTINGS = WebhookSettings(timeout_s=3.0)


class Inside:
    """A service that only we should reach; counts whoever does."""

    def __init__(self) -> None:
        self.port = 0
        self.heard: list[str] = []

    async def hear(self, request: web.Request) -> web.Response:
        self.heard.append(str(request.url))
        return web.Response(text="secret")


@pytest_asyncio.fixture
async def inside() -> AsyncIterator[Inside]:
    service = Inside()
    application = web.Application()
    application.router.add_route("*", "/{tail:.*}", service.hear)
    runner = web.AppRunner(application)
    await runner.setup()
    both = socket.socket(socket.AF_INET6)
    both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    both.bind(("::", 0))
    service.port = both.getsockname()[1]
    await web.SockSite(runner, both).start()
    yield service
    await runner.cleanup()
    assert service.heard == [], "somebody came in"


async def sent(url: str, resolver: AbstractResolver | None = None) -> str:
    """What the merchant reads of a delivery to this URL."""
    delivery = Delivery(
        0, "dlv_1", "evt_1", "t", "shop", "{}", DeliveryState.PENDING, 1, "", NOW, NOW
    )
    async with client_session(SETTINGS, allow_private=False) as session:
        if resolver is not None:
            connector: Any = session.connector
            connector._resolver = resolver
        return (await send(session, delivery, url, {})).error


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "017700000001",
        "0177.0.0.1", "127.0.0.1.", "127.255.255.254", "0.0.0.0", "0", "localhost", "LOCALHOST",
        "localhost.", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:7f00:0001]",
    ],
)  # fmt: skip
async def test_wants_a_webhook_to_call_what_is_on_our_own_machine(
    inside: Inside, host: str
) -> None:
    url = f"http://{host}:{inside.port}/admin"
    assert url_fault(url.replace("http://", "https://"), allow_private=False) is not None
    # As one that was taken before the rule, or whose name was harmless then.
    assert await sent(url) in NOT_SENT


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254", "[fd00:ec2::254]", "[fe80::1]", "10.0.0.1", "172.31.255.255",
        "192.168.0.1", "100.100.100.200", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
        "[::ffff:a9fe:a9fe]", "2852039166", "0xa9fea9fe", "198.18.0.1", "[::ffff:0:127.0.0.1]",
        "[2001:0:7f00:1::]", "[::127.0.0.1]",
    ],
)  # fmt: skip
async def test_wants_a_webhook_to_call_the_clouds_metadata_or_our_networks(host: str) -> None:
    """No packet leaves: the socket is not made."""
    assert url_fault(f"https://{host}/latest/meta-data/", allow_private=False) is not None
    assert await sent(f"http://{host}:9/latest/meta-data/") in NOT_SENT


class Rebinding(AbstractResolver):
    """A name server of the attacker's: it says what he likes, another thing each time."""

    def __init__(self, port: int, *answers: list[str]) -> None:
        self._port = port
        self._answers = list(answers)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[Any]:
        hosts = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [
            {
                "hostname": host, "host": address, "port": self._port, "proto": 0,
                "family": socket.AF_INET6 if ":" in address else socket.AF_INET, "flags": 0,
            }
            for address in hosts
        ]  # fmt: skip

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "answers",
    [["127.0.0.1"], ["::1"], ["::ffff:127.0.0.1"], ["10.0.0.1", "127.0.0.1"], ["0.0.0.0"]],
    ids=",".join,
)
async def test_wants_a_good_name_to_mean_a_bad_address(inside: Inside, answers: list[str]) -> None:
    """DNS rebinding: the name was fine when it was set; the address is looked at when it is
    connected to, and each of several."""
    url = f"http://hooks.example.com:{inside.port}/"
    assert url_fault(url.replace("http://", "https://"), allow_private=False) is None
    for _ in range(2):
        assert await sent(url, Rebinding(inside.port, answers)) == REFUSED


async def test_wants_a_proxy_or_a_password_of_ours(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the environment's proxy is used, nor anything of ~/.netrc sent."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{inside.port}")
    assert await sent("http://hooks.example.com/", Rebinding(9, ["127.0.0.1"])) == REFUSED


async def test_wants_a_redirect_to_be_followed_inside(inside: Inside) -> None:
    """From a server that may be called to one that may not: it is not followed at all."""

    async def away(_: web.Request) -> web.Response:
        location = f"http://127.0.0.1:{inside.port}/admin"
        return web.Response(status=302, headers={"Location": location, "Refresh": f"0;{location}"})

    application = web.Application()
    application.router.add_route("*", "/", away)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    delivery = Delivery(
        0, "dlv_1", "evt_1", "t", "shop", "{}", DeliveryState.PENDING, 1, "", NOW, NOW
    )
    # Development, so that the first call is let through at all.
    async with client_session(SETTINGS, allow_private=True) as session:
        answer = await send(session, delivery, f"http://127.0.0.1:{port}/", {})
    await runner.cleanup()
    assert answer.error == "HTTP 302"


def test_wants_a_url_that_two_readers_read_differently() -> None:
    for url in (
        "https://good.example\\@127.0.0.1/", "https://good.example@127.0.0.1/",
        "https://127.0.0.1#@good.example/", "https://good.example%00.127.0.0.1/\x00",
        "https://①②⑦.⓪.⓪.①/", "https://good.example:443:80/", "https://[::1]good.example/",
        "gopher://good.example/", "https:///127.0.0.1/", "https://good.example\t/",
        "HTTPS://127.0.0.1/", "//127.0.0.1/", "https://good.example\r\nhost: x/",
    ):  # fmt: skip
        assert url_fault(url, allow_private=False) is not None, url
