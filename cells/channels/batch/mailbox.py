"""How files come to a bank and back. Each step may be repeated; a file is there whole or not."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import aiohttp
import asyncssh

from cells.channels.batch.model import FILE_BYTES_MAX
from cells.channels.batch.options import HttpsMailbox, SftpMailbox

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_LISTED_MAX = 10_000


class Undelivered(Exception):
    """A step failed, or may have: it is to be repeated."""


class Mailbox(Protocol):
    """A bank's directory, over HTTPS or SFTP. Delivering one name twice is delivering it once:
    its bytes are always the same."""

    async def deliver(self, name: str, data: bytes) -> None:
        """Raises Undelivered."""
        ...

    async def results(self) -> list[str]:
        """Names of result files that wait for us. Raises Undelivered."""
        ...

    async def read(self, name: str) -> bytes:
        """Raises Undelivered."""
        ...

    async def remove(self, name: str) -> None:
        """Its results have been heard. Raises Undelivered."""
        ...


class HttpsBox:
    def __init__(self, settings: HttpsMailbox, sender: str, timeout_s: float) -> None:
        self._settings = settings
        self._files = f"{settings.url.rstrip('/')}/files/"
        self._results = f"{settings.url.rstrip('/')}/results/{sender}"
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._tls = ssl.create_default_context(cafile=settings.ca or None)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.certificate:
            self._tls.load_cert_chain(settings.certificate, settings.certificate_key)
        token = settings.token_file
        self._headers = {"Authorization": f"Bearer {_read(token)}"} if token else {}

    async def deliver(self, name: str, data: bytes) -> None:
        await self._ask("PUT", self._files + name, data)

    async def results(self) -> list[str]:
        try:
            names = json.loads(await self._ask("GET", self._results))
        except ValueError as error:
            raise Undelivered("the list of results is no JSON") from error
        if not isinstance(names, list):
            raise Undelivered("the list of results is none")
        return _proper(names)

    async def read(self, name: str) -> bytes:
        return await self._ask("GET", f"{self._results}/{name}")

    async def remove(self, name: str) -> None:
        await self._ask("DELETE", f"{self._results}/{name}")

    async def _ask(self, method: str, url: str, data: bytes | None = None) -> bytes:
        try:
            async with (
                aiohttp.ClientSession(timeout=self._timeout, auto_decompress=False) as session,
                session.request(
                    method,
                    url,
                    data=data, headers=self._headers, ssl=self._tls, allow_redirects=False,
                ) as response,
            ):  # fmt: skip
                body = await _bounded(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Undelivered(type(error).__name__) from error
        if response.status not in {200, 201, 204}:
            raise Undelivered(f"{method}: the bank answers {response.status}")
        return body


class SftpBox:
    def __init__(self, settings: SftpMailbox, sender: str, timeout_s: float) -> None:
        self._settings = settings
        self._results = f"{settings.results}/{sender}"
        self._timeout_s = timeout_s
        # A key that is none must be known at the start, not at the first file.
        self._host_key = asyncssh.import_public_key(settings.host_key)

    async def deliver(self, name: str, data: bytes) -> None:
        """Written beside and renamed: the bank never takes a half."""
        beside, path = f"{self._settings.inbox}/.{name}.part", f"{self._settings.inbox}/{name}"
        async with self._client() as client:
            async with client.open(beside, "wb") as file:
                await file.write(data)
            await client.posix_rename(beside, path)

    async def results(self) -> list[str]:
        async with self._client() as client:
            if not await client.isdir(self._results):
                return []
            return _proper(await client.listdir(self._results))

    async def read(self, name: str) -> bytes:
        async with self._client() as client, client.open(f"{self._results}/{name}", "rb") as file:
            data = await file.read(FILE_BYTES_MAX + 1)
            assert isinstance(data, bytes)
            return data

    async def remove(self, name: str) -> None:
        async with self._client() as client:
            try:
                await client.remove(f"{self._results}/{name}")
            except asyncssh.SFTPNoSuchFile:
                pass

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[asyncssh.SFTPClient]:
        settings = self._settings
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                asyncssh.connect(
                    settings.host,
                    settings.port,
                    username=settings.user,
                    client_keys=[settings.client_key],
                    known_hosts=([self._host_key], [], []),
                    config=None,
                    agent_path=None,
                ) as connection,
                connection.start_sftp_client() as client,
            ):
                yield client
        except (asyncssh.Error, OSError, TimeoutError) as error:
            raise Undelivered(type(error).__name__) from error


def open_mailbox(settings: HttpsMailbox | SftpMailbox, sender: str, timeout_s: float) -> Mailbox:
    match settings:
        case HttpsMailbox():
            return HttpsBox(settings, sender, timeout_s)
        case SftpMailbox():
            return SftpBox(settings, sender, timeout_s)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    pieces, size = [], 0
    async for piece in response.content.iter_chunked(1024**2):
        size += len(piece)
        if size > FILE_BYTES_MAX:
            raise Undelivered(f"a file of more than {FILE_BYTES_MAX} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def _proper(names: Sequence[object]) -> list[str]:
    """Names that lead nowhere else; in the order of the bank's days and numbers."""
    found = [name for name in names if isinstance(name, str) and _NAME.fullmatch(name)]
    return sorted(found)[:_LISTED_MAX]


def _read(path: str) -> str:
    return Path(path).read_text(encoding="ascii").strip()
