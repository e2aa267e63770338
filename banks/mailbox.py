"""A bank's directory, over HTTPS and SFTP at once: what a participant lays down, and takes away.

Files are files: below `inbox` what came, below `results/SENDER` what waits, below `statements` what
the day has written. A name that begins with a dot is not there yet.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import asyncssh
from aiohttp import web
from pydantic import Field

from banks.behaviour import DOCUMENT
from banks.web import TlsOptions, server_tls

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_BODY_BYTES_MAX = 256 * 1024**2


@DOCUMENT
@dataclass(frozen=True, slots=True)
class SftpOptions:
    # The bank's own private key, and who may come: name → public key, a line of OpenSSH.
    host_key_file: str
    users: Mapping[str, str]
    port: Annotated[int, Field(ge=0, le=65_535)] = 0


@DOCUMENT
@dataclass(frozen=True, slots=True)
class HttpsOptions:
    tls: TlsOptions
    port: Annotated[int, Field(ge=0, le=65_535)] = 0
    # A bearer token; empty: none is asked for.
    token: str = ""


Closed = Callable[[], bool]


class _Users(asyncssh.SSHServer):
    def __init__(self, users: Mapping[str, str], closed: Closed) -> None:
        self._users = users
        self._closed = closed

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        if self._closed():
            conn.abort()
            return
        self._connection = conn

    def begin_auth(self, username: str) -> bool:
        keys = self._users.get(username, "")
        self._connection.set_authorized_keys(asyncssh.import_authorized_keys(keys))
        return True


@asynccontextmanager
async def sftp_server(
    root: Path,
    options: SftpOptions,
    closed: Closed,
    directory: Callable[[asyncssh.SSHServerChannel[bytes]], asyncssh.SFTPServer] | None = None,
) -> AsyncIterator[int]:
    """Its port."""

    def users() -> asyncssh.SSHServer:
        return _Users(options.users, closed)

    def rooted(chan: asyncssh.SSHServerChannel[bytes]) -> asyncssh.SFTPServer:
        return asyncssh.SFTPServer(chan, chroot=str(root).encode())

    acceptor = await asyncssh.listen(
        "127.0.0.1", options.port,
        server_factory=users, server_host_keys=[options.host_key_file],
        sftp_factory=directory or rooted,
    )  # fmt: skip
    try:
        yield acceptor.get_port()
    finally:
        acceptor.close()
        await acceptor.wait_closed()


class HttpsMailbox:
    """PUT /files/NAME; GET /results/SENDER, and below it GET and DELETE."""

    def __init__(self, root: Path, options: HttpsOptions, closed: Closed) -> None:
        self._root = root
        self._options = options
        self._closed = closed

    def application(self) -> web.Application:
        application = web.Application(client_max_size=_BODY_BYTES_MAX)
        application.add_routes(
            [
                web.put("/files/{name}", self._put),
                web.get("/results/{sender}", self._list),
                web.get("/results/{sender}/{name}", self._get),
                web.delete("/results/{sender}/{name}", self._delete),
            ]
        )
        return application

    async def _put(self, request: web.Request) -> web.Response:
        path = self._root / "inbox" / self._name(request, "name")
        data = await request.read()
        if path.exists():
            same = hashlib.sha256(await asyncio.to_thread(path.read_bytes)).digest()
            if same != hashlib.sha256(data).digest():
                raise web.HTTPConflict(text="another file has that name")
            return web.Response(status=200)
        await asyncio.to_thread(lay_down, path, data)
        return web.Response(status=201)

    async def _list(self, request: web.Request) -> web.Response:
        folder = self._root / "results" / self._name(request, "sender")
        names = await asyncio.to_thread(
            lambda: sorted(path.name for path in folder.glob("[!.]*")) if folder.exists() else []
        )
        return web.json_response(names)

    async def _get(self, request: web.Request) -> web.Response:
        path = self._result(request)
        try:
            return web.Response(body=await asyncio.to_thread(path.read_bytes))
        except FileNotFoundError as error:
            raise web.HTTPNotFound from error

    async def _delete(self, request: web.Request) -> web.Response:
        await asyncio.to_thread(lambda: self._result(request).unlink(missing_ok=True))
        return web.Response(status=204)

    def _result(self, request: web.Request) -> Path:
        sender, name = self._name(request, "sender"), self._name(request, "name")
        return self._root / "results" / sender / name

    def _name(self, request: web.Request, part: str) -> str:
        check_door(request, self._options.token, self._closed)
        name = request.match_info[part]
        if not _NAME.fullmatch(name):
            raise web.HTTPBadRequest(text="a name that is none")
        return name


def check_door(request: web.Request, token: str, closed: Closed) -> None:
    if closed():
        raise web.HTTPServiceUnavailable(text="closed")
    if token and request.headers.get("Authorization") != f"Bearer {token}":
        raise web.HTTPUnauthorized


@asynccontextmanager
async def https_server(application: web.Application, options: HttpsOptions) -> AsyncIterator[int]:
    """Its port."""
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        tls = server_tls(options.tls)
        await web.TCPSite(runner, "127.0.0.1", options.port, ssl_context=tls).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def lay_down(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(data)
    beside.replace(path)
