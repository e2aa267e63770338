"""Statements over HTTPS: ranges resume them, ETag says whether it is still the same file, and
Repr-Digest (RFC 9530), where the bank sends it, whether all bytes arrived."""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
from datetime import date
from hashlib import sha256
from pathlib import Path

import aiohttp

from cells.channels.interface import StatementMissing
from cells.statements.fetch import HttpsSource, Part, TransferBroken, fill

_BLOCK_BYTES = 1024**2
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/=]+):")
# Later it may be there, or let us in.
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


class HttpsStatements:
    def __init__(self, source: HttpsSource) -> None:
        self._source = source

    async def download(self, channel: str, day: date, part: Part) -> None:
        source = self._source
        timeout = aiohttp.ClientTimeout(
            total=None, connect=source.retrying.silence_max_s,
            sock_read=source.retrying.silence_max_s,
        )  # fmt: skip
        headers = {"Accept-Encoding": "identity"}
        if source.token_file:
            token = await asyncio.to_thread(Path(source.token_file).read_text, "ascii")
            headers["Authorization"] = f"Bearer {token.strip()}"
        mark = part.mark()
        if mark:
            headers |= {"Range": f"bytes={part.size()}-", "If-Range": mark}
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
                session.get(
                    fill(source.url, channel, day),
                    headers=headers, ssl=tls_of(source), allow_redirects=False,
                ) as answer,
            ):  # fmt: skip
                await self._take(answer, part)
        except (
            aiohttp.ClientConnectorCertificateError,
            aiohttp.ClientConnectorSSLError,
        ) as error:
            raise StatementMissing(f"{channel}: the bank is not who it should be") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise TransferBroken(type(error).__name__) from error

    async def _take(self, answer: aiohttp.ClientResponse, part: Part) -> None:
        if answer.status in _BUSY:
            raise TransferBroken(f"the bank answers {answer.status}")
        if answer.status == 416:
            # The file has become shorter than what we have of it.
            part.discard()
            raise TransferBroken("the bank has another file now")
        if answer.status not in {200, 206}:
            raise StatementMissing(f"the bank answers {answer.status}")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise StatementMissing("the bank compresses, though it was asked not to")
        size = self._begin(answer, part)
        async for block in answer.content.iter_chunked(self._source.retrying.block_bytes):
            size = part.append(block, size)
        await asyncio.to_thread(self._check, answer, part, size)

    def _begin(self, answer: aiohttp.ClientResponse, part: Part) -> int:
        """How many bytes are there already."""
        if answer.status == 206:
            found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if found is None or int(found.group(1)) != part.size():
                part.discard()
                raise TransferBroken("the bank sends another range than it was asked for")
            return part.size()
        # A weak ETag does not promise the same bytes.
        tag = answer.headers.get("ETag", "")
        part.begin("" if tag.startswith("W/") else tag)
        return 0

    def _check(self, answer: aiohttp.ClientResponse, part: Part, size: int) -> None:
        found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        expected = found.group(2) if found else answer.headers.get("Content-Length")
        if expected is not None and int(expected) != size:
            raise TransferBroken(f"{size} bytes of {expected}")
        digest = _DIGEST.search(answer.headers.get("Repr-Digest", ""))
        if digest and base64.b64decode(digest.group(1)) != _sha256(part.path):
            part.discard()
            raise TransferBroken("the bytes are not those that the bank has hashed")


def tls_of(source: HttpsSource) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=source.ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if source.certificate:
        context.load_cert_chain(source.certificate, source.key)
    return context


def _sha256(path: Path) -> bytes:
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.digest()
