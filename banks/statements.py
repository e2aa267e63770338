"""A bank's statements over HTTPS and SFTP, whatever its tongue, with faults as ordered.

HTTPS: GET /statements/{csv,fixed,camt.053}/{day}, with ETag, ranges and Repr-Digest (RFC 9530).
SFTP:  statements/{format}-{day}, and beside it `.sha256`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import asyncssh
from aiohttp import web

from banks.bank import Bank
from banks.behaviour import DOCUMENT, Closed
from banks.mailbox import HttpsOptions, SftpOptions, check_door, https_server, lay_down, sftp_server
from banks.statement import FileFault, StatementOrders
from banks.statement_files import FORMATS, write

_RANGE = re.compile(r"bytes=(\d+)-")
_PATH = re.compile(r"/statements/(csv|fixed|camt\.053)-(\d{4}-\d{2}-\d{2})(\.sha256)?")
_PIECE_BYTES = 16 * 1024


@DOCUMENT
@dataclass(frozen=True, slots=True)
class StatementOptions:
    https: HttpsOptions | None = None
    sftp: SftpOptions | None = None


class Statements:
    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self._orders: StatementOrders | None = None
        self._broken = 0

    def closed(self) -> bool:
        return self._bank.closed in {Closed.SILENT, Closed.HANG_UP}

    def data(self, format_: str, day: date) -> bytes | None:
        """The file; None: there is none."""
        fault = self._bank.orders.file_fault
        if fault is FileFault.MISSING:
            return None
        if fault is FileFault.STALE:
            day -= timedelta(days=1)
        rows, _ = self._bank.statement(day)
        return write(format_, self._bank.name, day, rows, fault)

    def on_its_way(self, data: bytes) -> bytes:
        if self._bank.orders.file_fault is FileFault.CORRUPTED:
            return data.replace(b"1", b"2", 1)
        return data

    def breaks(self) -> int | None:
        """After how many bytes this transfer breaks; None: it does not. Counts it."""
        orders = self._bank.orders
        if orders is not self._orders:
            self._orders, self._broken = orders, 0
        if self._broken >= orders.breaks:
            return None
        self._broken += 1
        return orders.break_after

    def application(self, token: str) -> web.Application:
        async def get(request: web.Request) -> web.StreamResponse:
            check_door(request, token, self.closed)
            try:
                day = date.fromisoformat(request.match_info["day"])
            except ValueError as error:
                raise web.HTTPBadRequest(text="a day is YYYY-MM-DD") from error
            if request.match_info["format"] not in FORMATS:
                raise web.HTTPNotFound
            data = await asyncio.to_thread(self.data, request.match_info["format"], day)
            if data is None:
                raise web.HTTPNotFound
            return await self._answer(request, data)

        application = web.Application()
        application.add_routes([web.get("/statements/{format}/{day}", get)])
        return application

    async def _answer(self, request: web.Request, data: bytes) -> web.StreamResponse:
        digest = hashlib.sha256(data).digest()
        data = self.on_its_way(data)
        etag = f'"{digest.hex()[:32]}"'
        first = 0
        wanted = _RANGE.fullmatch(request.headers.get("Range", ""))
        if wanted and request.headers.get("If-Range", etag) == etag:
            first = int(wanted.group(1))
            if first >= len(data):
                return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
        response = web.StreamResponse(status=206 if first else 200)
        response.headers["ETag"] = etag
        response.headers["Repr-Digest"] = f"sha-256=:{base64.b64encode(digest).decode()}:"
        if first:
            response.headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        response.content_length = len(data) - first
        await response.prepare(request)
        breaks = self.breaks()
        end = len(data) if breaks is None else min(len(data), first + breaks)
        for start in range(first, end, _PIECE_BYTES):
            await response.write(data[start : min(start + _PIECE_BYTES, end)])
        if breaks is not None and request.transport is not None:
            request.transport.close()
        return response


class _Directory(asyncssh.SFTPServer):
    """Writes a statement when it is looked at."""

    def __init__(
        self, chan: asyncssh.SSHServerChannel[bytes], root: Path, statements: Statements
    ) -> None:
        super().__init__(chan, chroot=str(root).encode())
        self._root = root
        self._statements = statements
        self._chan = chan
        self._left = statements.breaks()

    def stat(self, path: bytes) -> Any:
        self._lay(path)
        return super().stat(path)

    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> Any:
        self._lay(path)
        return super().open(path, pflags, attrs)

    def read(self, file_obj: object, offset: int, size: int) -> Any:
        data = super().read(file_obj, offset, size)
        assert isinstance(data, bytes)
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                self._chan.get_connection().abort()
        return data

    def _lay(self, path: bytes) -> None:
        found = _PATH.fullmatch("/" + path.decode(errors="replace").lstrip("/"))
        if found is None:
            return
        name = f"{found.group(1)}-{found.group(2)}"
        data = self._statements.data(found.group(1), date.fromisoformat(found.group(2)))
        for suffix, content in (
            ("", data),
            (".sha256", data and f"{hashlib.sha256(data).hexdigest()}  {name}\n".encode()),
        ):
            into = self._root / "statements" / (name + suffix)
            if content is None:
                into.unlink(missing_ok=True)
                continue
            laid = content if suffix else self._statements.on_its_way(content)
            if not into.exists() or into.read_bytes() != laid:
                lay_down(into, laid)


@asynccontextmanager
async def serve_statements(
    bank: Bank, options: StatementOptions
) -> AsyncIterator[Mapping[str, int]]:
    """Its ports: `statements-https` and `statements-sftp`."""
    statements = Statements(bank)
    async with AsyncExitStack() as stack:
        ports = {}
        if options.https is not None:
            application = statements.application(options.https.token)
            ports["statements-https"] = await stack.enter_async_context(
                https_server(application, options.https)
            )
        if options.sftp is not None:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="statements-")))
            await asyncio.to_thread((root / "statements").mkdir)

            def directory(chan: asyncssh.SSHServerChannel[bytes]) -> asyncssh.SFTPServer:
                return _Directory(chan, root, statements)

            ports["statements-sftp"] = await stack.enter_async_context(
                sftp_server(root, options.sftp, statements.closed, directory)
            )
        yield ports
