"""The control plane and its console: by a wrong role, a changed log, in another's browser."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import pytest_asyncio
from cellpay.control.v1 import access_pb2, access_pb2_grpc, control_pb2

import control.cellctl.console
from control.access.rules import METHODS, Role, is_read
from control.cellctl.console.app import COOKIE, WAY_COOKIE
from control.cellctl.session import Session
from control.chain.store import AUDIT_HEAD_KEY
from router.identity import spiffe_id
from router.store.model import AUDIT_PREFIX
from tests.attacks.requests import request_for
from tests.attacks.world import call, issued, new_name
from tests.integration.test_console import provided_console, provider
from tests.integration.visiting import PASSWORD, Visitor

__all__ = ["provided_console", "provider"]
pytestmark = pytest.mark.mesh
# As /proc/net/tcp says it; the second is IPv4's in IPv6.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}
DENIED = grpc.StatusCode.PERMISSION_DENIED
# Methods by the roles of which one is enough.
WRITES = [
    (service, method)
    for service, methods in METHODS.items()
    for method in methods
    if not is_read(service, method)
]


async def _bound(session: Session, name: str, *roles: Any) -> None:
    async with session.access() as access:
        binding = access_pb2.RoleBinding(subject=spiffe_id("operator", name), roles=roles)
        request = access_pb2.SetRoleBindingRequest(binding=binding, reason="an attack to come")
        await access.SetRoleBinding(request, timeout=10)


@pytest_asyncio.fixture(scope="module")
async def viewer(session: Session) -> AsyncIterator[grpc.aio.Channel]:
    """An operator's certificate, bound to nothing but reading."""
    name = new_name("vic")
    await _bound(session, name, access_pb2.ROLE_VIEWER)
    tls = issued(session, "operator", name)
    address = session.places.control
    async with grpc.aio.secure_channel(address, tls.channel_credentials()) as channel:
        yield channel


async def test_wants_to_operate_though_he_may_only_look(
    session: Session, viewer: grpc.aio.Channel
) -> None:
    """Every method of the control plane that changes something, one by one; and each is audited."""
    for service, method in WRITES:
        name = f"{service}/{method}"
        request = request_for(name, {"reason": "let me", "cell": "a"})
        answer = await call(viewer, name, request.SerializeToString())
        assert (answer.code, answer.reason) == (DENIED, "CALLER_NOT_ALLOWED"), name
    look = control_pb2.ListAuditRecordsRequest(page_size=100)
    async with session.control() as stub:
        records = (await stub.ListAuditRecords(look, timeout=10)).records
    assert sum(record.verdict.startswith("denied") for record in records) >= len(WRITES)


async def test_wants_to_give_himself_a_role(session: Session, viewer: grpc.aio.Channel) -> None:
    stub: Any = access_pb2_grpc.AccessServiceStub(viewer)
    me = (await stub.WhoAmI(access_pb2.WhoAmIRequest(), timeout=5)).spiffe_id
    for subject in (me, spiffe_id("operator", "*"), spiffe_id("merchant", "*")):
        binding = access_pb2.RoleBinding(subject=subject, roles=[access_pb2.ROLE_OPERATOR])
        request = access_pb2.SetRoleBindingRequest(binding=binding, reason="me")
        for metadata in ((), (("x-cellpay-break-glass", "yes"),)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.SetRoleBinding(request, metadata=metadata, timeout=5)
            assert refused.value.code() == DENIED
    assert (await stub.WhoAmI(access_pb2.WhoAmIRequest(), timeout=5)).roles == [
        access_pb2.ROLE_VIEWER
    ]


@pytest.mark.parametrize("kind", ["merchant", "gateway", "reconciler", "etcd", "admin", "Operator"])
async def test_wants_the_control_plane_with_a_certificate_of_another_kind(
    session: Session, kind: str
) -> None:
    """Kinds that no binding names have no role at all, not even to read."""
    tls = issued(session, kind, "mallory")
    address = session.places.control
    async with grpc.aio.secure_channel(address, tls.channel_credentials()) as channel:
        for service, methods in METHODS.items():
            for method in methods:
                answer = await call(channel, f"{service}/{method}", b"")
                assert (answer.code, answer.reason) == (DENIED, "CALLER_NOT_ALLOWED")


def test_every_method_of_the_control_plane_takes_a_role() -> None:
    assert all(roles for methods in METHODS.values() for roles in methods.values())
    assert {Role.VIEWER} not in [METHODS[service][method] for service, method in WRITES], (
        "who only looks changes something"
    )


async def test_wants_his_deed_out_of_the_audit_log(session: Session) -> None:
    """A record changed, removed, and put at the end of the log by whoever has etcd itself."""
    verify = access_pb2.VerifyAuditLogRequest()
    async with session.access() as access, session.store() as store:
        assert (await access.VerifyAuditLog(verify, timeout=20)).ok
        items = (await store.list(AUDIT_PREFIX)).items
        key = sorted(item for item in items if item != AUDIT_HEAD_KEY)[-2]
        kept = items[key].value
        forged = json.dumps({**json.loads(kept), "reason": "routine"})
        for change in ({"puts": {key: forged}}, {"puts": {}, "deletes": [key]}):
            try:
                await store.commit(expect={}, **change)
                assert not (await access.VerifyAuditLog(verify, timeout=20)).ok
            finally:
                await store.commit(expect={}, puts={key: kept})
        added = f"{key}0"
        try:
            await store.commit(expect={}, puts={added: forged})
            assert not (await access.VerifyAuditLog(verify, timeout=20)).ok
        finally:
            await store.commit(expect={}, puts={}, deletes=[added])
        assert (await access.VerifyAuditLog(verify, timeout=20)).ok


async def test_wants_the_stores_of_the_mesh_from_elsewhere(session: Session) -> None:
    """Whatever a laptop's mesh starts listens on loopback alone. In production etcd takes
    certificates (tests/integration/test_control_plane.py) and network policies keep the rest."""
    state = session.state
    listening: dict[int, set[str]] = {}
    for table in ("tcp", "tcp6"):
        listed = await asyncio.to_thread(Path(f"/proc/net/{table}").read_text, "ascii")
        for line in listed.splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                address, _, port = fields[1].partition(":")
                listening.setdefault(int(port, 16), set()).add(address)
    for name in state.ports:
        number = int(state.address(name).rpartition(":")[2])
        assert listening.get(number, LOOPBACK) <= LOOPBACK, f"{name} listens everywhere"


def test_wants_markup_of_a_users_id_run_in_the_console() -> None:
    """XSS: the page builds text nodes alone; there is nothing that reads markup. Its policy of
    `default-src 'none'` is in tests/integration/test_console.py."""
    static = Path(control.cellctl.console.__file__).parent / "static"
    scripts = sorted(static.glob("*.js"))
    assert {"console.js", "page.js"} <= {path.name for path in scripts}
    script = "\n".join(path.read_text(encoding="utf-8") for path in scripts)
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc"
    assert re.search(sinks, script) is None
    assert re.search(r"setTimeout\(\s*['\"]|javascript:", script) is None
    page = (static / "index.html").read_text(encoding="utf-8")
    assert re.search(r"\son\w+=|<script(?![^>]*\ssrc=)", page) is None


async def test_wants_his_own_session_in_somebody_elses_browser(browser: Visitor) -> None:
    """Session fixation: a cookie that was planted before is not what one is signed in by."""
    planted = "planted-by-mallory"
    browser.client.cookie_jar.update_cookies({COOKIE: planted})
    assert await browser.sign_in("ann", PASSWORD) == 200
    values = {item.value for item in browser.client.cookie_jar if item.key == COOKIE}
    (kept,) = values - {planted}
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar, cookies={COOKIE: planted}) as other:
        async with other.get(f"{browser.base}/api/me") as answer:
            assert answer.status == 401
        # Nor does signing out leave the old one alive.
        assert (await browser.post("/signout", {}))[0] == 200
        async with other.get(f"{browser.base}/api/me", cookies={COOKIE: kept}) as answer:
            assert answer.status == 401


async def test_wants_to_sign_somebody_in_as_himself(provided_console: str) -> None:
    """Login CSRF: a way that began in one browser does not end in another."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as mallory:
        async with mallory.get(f"{provided_console}/oidc", allow_redirects=False) as began:
            location = began.headers["location"]
        async with mallory.get(location, allow_redirects=False) as agreed:
            way_back = agreed.headers["location"]
    assert way_back.startswith(provided_console)
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as victim:
        for cookies in ({}, {WAY_COOKIE: "guessed"}):
            async with victim.get(way_back, cookies=cookies, allow_redirects=False) as answer:
                assert answer.status == 400
                assert COOKIE not in answer.cookies


async def test_wants_the_console_to_send_people_elsewhere(provided_console: str) -> None:
    """An open redirect: neither path, query nor host changes where it leads."""
    async with aiohttp.ClientSession() as client:
        for path in (
            "/oidc?next=https://evil.example/",
            "/oidc?redirect_uri=https://evil.example/",
            "//evil.example/%2f..",
            "/static//evil.example/",
            "/oidc/callback?state=x&code=y&next=//evil.example",
        ):
            headers = {"host": "evil.example", "x-forwarded-host": "evil.example"}
            url = provided_console + path
            async with client.get(url, headers=headers, allow_redirects=False) as answer:
                location = answer.headers.get("location", "")
            assert "evil.example" not in location.partition("?")[0], path
            if "redirect_uri" in location:
                assert "evil" not in location


async def test_wants_the_console_to_read_a_form_without_end(browser: Visitor) -> None:
    """In chunks, so that no length says how much; by somebody who has not signed in."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"name=" + b"a" * 65_536

    async with browser.client.post(f"{browser.base}/signin", data=chunks()) as answer:
        assert answer.status == 413


async def test_wants_anothers_password_by_trying_many_names_at_once(browser: Visitor) -> None:
    """Guesses count by account, also when they come at once."""
    guesses = (browser.sign_in("carl", f"guess-{number}") for number in range(12))
    statuses = await asyncio.gather(*guesses)
    assert set(statuses) == {401, 429}
    assert statuses.count(401) <= 8
