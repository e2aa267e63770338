"""The console's web application: pages, JSON, one stream of events.

Hardened as OWASP's cheat sheets say: sessions in memory under random tokens, cookies that scripts
cannot read and other sites cannot send, a token against forged requests, a policy by which the page
loads nothing from elsewhere.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from control.cellctl.console.accounts import check_password, read_accounts
from control.cellctl.console.acts import Acts, UnknownAct
from control.cellctl.console.life import NotFound
from control.cellctl.console.oidc import OidcFault, Provider
from control.cellctl.console.sources import Sources
from router.errors import details_of

log = structlog.get_logger(__name__)

COOKIE = "cellpay_console"
WAY_COOKIE = "cellpay_console_way"
_WAY_S = 600
TOKEN_HEADER = "x-console-token"
_STATIC = Path(__file__).parent / "static"
_SESSION_S = 8 * 3600.0
_IDLE_S = 30 * 60.0
_SESSIONS_MAX = 1000
_PUSH_S = 1.0
_BODY_MAX = 16 * 1024
# Wrong passwords of one name in a row; then it waits.
_TRIES_MAX = 5
_TRIES_WAIT_S = 60.0
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


@dataclass(slots=True)
class Visitor:
    """One who has signed in."""

    name: str
    identity: str
    # Sent back with everything that changes something.
    token: str
    since: float
    seen: float


@dataclass(slots=True)
class Visitors:
    """Sessions, in memory: a restart signs everybody out. Bounded; the oldest goes first."""

    clock: Callable[[], float] = time.monotonic
    _by_cookie: dict[str, Visitor] = field(default_factory=dict)
    _tries: dict[str, tuple[int, float]] = field(default_factory=dict)

    def enter(self, name: str, identity: str) -> str:
        while len(self._by_cookie) >= _SESSIONS_MAX:
            del self._by_cookie[next(iter(self._by_cookie))]
        cookie, now = secrets.token_urlsafe(32), self.clock()
        self._by_cookie[cookie] = Visitor(name, identity, secrets.token_urlsafe(32), now, now)
        return cookie

    def of(self, cookie: str) -> Visitor | None:
        visitor, now = self._by_cookie.get(cookie), self.clock()
        if visitor is None:
            return None
        if now - visitor.since > _SESSION_S or now - visitor.seen > _IDLE_S:
            del self._by_cookie[cookie]
            return None
        visitor.seen = now
        return visitor

    def leave(self, cookie: str) -> None:
        self._by_cookie.pop(cookie, None)

    def may_try(self, name: str) -> bool:
        tries, last = self._tries.get(name, (0, 0.0))
        return tries < _TRIES_MAX or self.clock() - last > _TRIES_WAIT_S

    def tried(self, name: str, *, right: bool) -> None:
        if right:
            self._tries.pop(name, None)
            return
        if name not in self._tries and len(self._tries) >= _SESSIONS_MAX:
            # The oldest, and not all: else a thousand names would let one be guessed at again.
            del self._tries[next(iter(self._tries))]
        tries, last = self._tries.get(name, (0, 0.0))
        fresh = self.clock() - last > _TRIES_WAIT_S
        self._tries.pop(name, None)
        self._tries[name] = (1 if fresh else tries + 1, self.clock())


class Console:
    """The handlers. `sources` makes what one identity sees; `provider` signs in by OIDC."""

    def __init__(
        self,
        data: Path,
        sources: Callable[[str], Sources],
        provider: Provider | None = None,
        *,
        secure: bool,
    ) -> None:
        self._data = data
        self._sources = sources
        self._provider = provider
        self._secure = secure
        self.visitors = Visitors()
        # State of a sign-in under way → its nonce and verifier.
        self._ways: dict[str, Mapping[str, str]] = {}

    def application(self) -> Starlette:
        routes = [
            Route("/", self.page),
            Route("/signin", self.sign_in, methods=["POST"]),
            Route("/signout", self.sign_out, methods=["POST"]),
            Route("/oidc", self.oidc_begin),
            Route("/oidc/callback", self.oidc_end),
            Route("/api/me", self.me),
            Route("/api/overview", self._reading(lambda s, r: s.overview())),
            Route("/api/events", self.events),
            Route(
                "/api/audit",
                self._reading(lambda s, r: s.audit(r.query_params.get("page_token", ""))),
            ),
            Route("/api/audit/verify", self._reading(lambda s, r: s.verify_audit())),
            Route("/api/life/{id:str}", self._reading(lambda s, r: s.life(r.path_params["id"]))),
            Route(
                "/api/drills/{name:str}/report",
                self._reading(lambda s, r: s.drill_report(r.path_params["name"])),
            ),
            Route("/api/policies", self._reading(lambda s, r: s.policies())),
            Route("/api/channels", self._reading(lambda s, r: s.channels())),
            Route(
                "/api/reconciliation",
                self._reading(lambda s, r: s.reconciliation(r.query_params.get("state", ""))),
            ),
            Route(
                "/api/reviews",
                self._reading(
                    lambda s, r: s.reviews(
                        r.query_params.get("user_id", ""), every="all" in r.query_params
                    )
                ),
            ),
            Route(
                "/api/decisions",
                self._reading(lambda s, r: s.decisions(r.query_params.get("user_id", ""))),
            ),
            *(
                Route(f"/api/{what}/{{id:str}}/{{act:str}}", self._acting(act), methods=["POST"])
                for what, act in _ACTS.items()
            ),
            Mount("/static", StaticFiles(directory=_STATIC)),
        ]
        return Starlette(routes=routes, middleware=[Middleware(BaseHTTPMiddleware, self._around)])

    async def _around(self, request: Request, call: RequestResponseEndpoint) -> Response:
        length = request.headers.get("content-length", "0")
        # A body in chunks says no length: forms are read whole, from whoever comes.
        chunked = "transfer-encoding" in request.headers
        if chunked or not length.isdigit() or int(length) > _BODY_MAX:
            return _refused(413, "TOO_LARGE", f"at most {_BODY_MAX} bytes")
        response = await call(request)
        for name, value in _HEADERS.items():
            response.headers[name] = value
        return response

    def _visitor(self, request: Request) -> Visitor | None:
        return self.visitors.of(request.cookies.get(COOKIE, ""))

    async def page(self, _request: Request) -> Response:
        return FileResponse(_STATIC / "index.html")

    async def me(self, request: Request) -> Response:
        visitor = self._visitor(request)
        if visitor is None:
            return _refused(401, "SIGNED_OUT", "sign in first", oidc=self._provider is not None)
        try:
            who = await self._sources(visitor.identity).who()
        except grpc.aio.AioRpcError as error:
            who = {"spiffe_id": visitor.identity, "roles": [], "error": error.code().name}
        return JSONResponse({"name": visitor.name, "token": visitor.token, **who})

    async def sign_in(self, request: Request) -> Response:
        form = await request.form()
        name, password = str(form.get("name", "")), str(form.get("password", ""))
        if not self.visitors.may_try(name):
            return _refused(429, "TOO_MANY_TRIES", "wait a minute")
        # Wrong until it is known to be right: guesses that come at once are counted too.
        self.visitors.tried(name, right=False)
        accounts = await asyncio.to_thread(read_accounts, self._data)
        account = await asyncio.to_thread(check_password, accounts, name, password)
        if account is None:
            log.warning("a sign-in failed", name=name[:64])
            return _refused(401, "WRONG", "there is no such account, or its password is another")
        self.visitors.tried(name, right=True)
        return self._entered(JSONResponse({"name": name}), name, account.identity)

    def _entered(self, response: Response, name: str, identity: str) -> Response:
        log.info("signed in", name=name, identity=identity)
        response.set_cookie(
            COOKIE,
            self.visitors.enter(name, identity),
            max_age=int(_SESSION_S),
            httponly=True,
            secure=self._secure,
            # After a provider's redirect the browser must send it; Strict would not.
            samesite="lax" if self._provider else "strict",
        )
        return response

    async def sign_out(self, request: Request) -> Response:
        visitor = self._visitor(request)
        if visitor is not None and not _token_is(request, visitor):
            return _refused(403, "FORGED", "the token is missing")
        self.visitors.leave(request.cookies.get(COOKIE, ""))
        response = JSONResponse({})
        response.delete_cookie(COOKIE)
        return response

    async def oidc_begin(self, _request: Request) -> Response:
        if self._provider is None:
            return _refused(404, "NO_OIDC", "this console has local accounts only")
        while len(self._ways) >= _SESSIONS_MAX:
            del self._ways[next(iter(self._ways))]
        try:
            url, state, kept = await self._provider.begin()
        except OidcFault as fault:
            return _refused(502, "OIDC", str(fault))
        self._ways[state] = kept
        response = RedirectResponse(url, 303)
        # Whose browser began it: a link with somebody else's code signs nobody in as him.
        response.set_cookie(
            WAY_COOKIE,
            state,
            max_age=_WAY_S,
            httponly=True,
            secure=self._secure,
            samesite="lax",
            path="/oidc",
        )
        return response

    async def oidc_end(self, request: Request) -> Response:
        state = request.query_params.get("state", "")
        if not secrets.compare_digest(request.cookies.get(WAY_COOKIE, "").encode(), state.encode()):
            return _refused(400, "OIDC", "this sign-in was not begun here")
        kept = self._ways.pop(state, None)
        if self._provider is None or kept is None:
            return _refused(400, "OIDC", "this sign-in was not begun here")
        try:
            name, identity = await self._provider.end(request.query_params.get("code", ""), kept)
        except OidcFault as fault:
            log.warning("a sign-in failed", why=str(fault))
            return _refused(401, "OIDC", str(fault))
        return self._entered(RedirectResponse("/", 303), name, identity)

    def _reading(self, fetch: Callable[[Sources, Request], Any]) -> Callable[[Request], Any]:
        async def handler(request: Request) -> Response:
            visitor = self._visitor(request)
            if visitor is None:
                return _refused(401, "SIGNED_OUT", "sign in first")
            return await _answered(fetch(self._sources(visitor.identity), request))

        return handler

    async def events(self, request: Request) -> Response:
        """The overview, whenever it has changed; a comment now and then keeps proxies awake."""
        if self._visitor(request) is None:
            return _refused(401, "SIGNED_OUT", "sign in first")

        async def stream() -> AsyncIterator[str]:
            last = ""
            while (visitor := self._visitor(request)) is not None:
                found = json.dumps(await self._sources(visitor.identity).overview())
                yield f"event: overview\ndata: {found}\n\n" if found != last else ": still\n\n"
                last = found
                await asyncio.sleep(_PUSH_S)
            yield "event: signedout\ndata: {}\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    def _acting(self, act: Callable[..., Any]) -> Callable[[Request], Any]:
        async def handler(request: Request) -> Response:
            visitor = self._visitor(request)
            if visitor is None:
                return _refused(401, "SIGNED_OUT", "sign in first")
            if not _token_is(request, visitor):
                return _refused(403, "FORGED", "the token is missing")
            try:
                body = await request.json()
                reason, cell = str(body["reason"]), str(body.get("cell", ""))
            except (ValueError, KeyError, TypeError, AttributeError):
                return _refused(400, "INVALID_REQUEST", 'send {"reason": …}')
            parameters = request.path_params
            acts = Acts(self._data, visitor.identity)
            return await _answered(act(acts, parameters["id"], parameters["act"], reason, cell))

        return handler


# What may be done to what, by the name in the path.
_ACTS: Mapping[str, Callable[..., Any]] = {
    "operations": Acts.operate,
    "approvals": Acts.decide,
    "breakers": Acts.force,
    "degradation": Acts.degrade,
    "failover": Acts.failover,
    "reconciliation": Acts.reconcile,
    "cases": Acts.resolve,
    "reviews": Acts.review,
}


async def _answered(work: Any) -> Response:
    try:
        return JSONResponse(await work)
    except grpc.aio.AioRpcError as error:
        return _of_rpc(error)
    except NotFound:
        return _refused(404, "NOT_FOUND", "there is nothing of this ID")
    except UnknownAct:
        return _refused(404, "NOT_FOUND", "there is no such act")
    except ValueError as error:
        return _refused(400, "INVALID_REQUEST", str(error))
    except OSError as error:
        log.warning("the database is away", error=type(error).__name__)
        return _refused(503, "DATABASE_AWAY", "the database does not answer")


def _of_rpc(error: grpc.aio.AioRpcError) -> Response:
    details = details_of(error)
    return _refused(
        _HTTP_STATUS.get(error.code(), 502),
        details.reason or error.code().name,
        error.details() or "",
        metadata=dict(details.metadata),
    )


def _refused(status: int, reason: str, message: str, **more: Any) -> Response:
    return JSONResponse({"reason": reason, "message": message, **more}, status)


def _token_is(request: Request, visitor: Visitor) -> bool:
    return hmac.compare_digest(request.headers.get(TOKEN_HEADER, ""), visitor.token)
