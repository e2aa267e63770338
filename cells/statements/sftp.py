"""Statements over SFTP. The bank's host key is pinned: no first use, no known_hosts of a person."""

from __future__ import annotations

import asyncio
from datetime import date
from hashlib import sha256

import asyncssh

from cells.channels.interface import StatementMissing
from cells.statements.fetch import Part, SftpSource, TransferBroken, fill

_CHECKSUM_BYTES_MAX = 4096


class SftpStatements:
    def __init__(self, source: SftpSource) -> None:
        self._source = source

    async def download(self, channel: str, day: date, part: Part) -> None:
        path = fill(self._source.path, channel, day)
        try:
            async with (
                connect_sftp(self._source) as connection,
                connection.start_sftp_client() as client,
            ):
                await self._take(client, path, part)
        except asyncssh.SFTPNoSuchFile as error:
            raise StatementMissing(f"{channel} has no {path}") from error
        except (asyncssh.HostKeyNotVerifiable, asyncssh.PermissionDenied) as error:
            raise StatementMissing(f"{channel}: {type(error).__name__}") from error
        except (asyncssh.Error, OSError, TimeoutError) as error:
            raise TransferBroken(type(error).__name__) from error

    async def _take(self, client: asyncssh.SFTPClient, path: str, part: Part) -> None:
        mark = await self._mark(client, path)
        size = part.size()
        if part.mark() != mark:
            part.begin(mark)
            size = 0
        async with client.open(path, "rb") as file:
            while True:
                async with asyncio.timeout(self._source.retrying.silence_max_s):
                    block = await file.read(self._source.retrying.block_bytes, size)
                if not block:
                    break
                size = part.append(_bytes(block), size)
        if await self._mark(client, path) != mark:
            part.discard()
            raise TransferBroken("the bank has changed the file meanwhile")
        if not mark.startswith(f"{size} "):
            raise TransferBroken(f"{size} bytes where the bank says {mark.split()[0]}")
        if self._source.checksum_suffix:
            await self._check(client, path, part)

    async def _mark(self, client: asyncssh.SFTPClient, path: str) -> str:
        found = await client.stat(path)
        return f"{found.size} {found.mtime} {found.mtime_ns}"

    async def _check(self, client: asyncssh.SFTPClient, path: str, part: Part) -> None:
        async with client.open(path + self._source.checksum_suffix, "rb") as file:
            said = _bytes(await file.read(_CHECKSUM_BYTES_MAX)).split()[:1]
        digest = await asyncio.to_thread(lambda: sha256(part.path.read_bytes()).hexdigest())
        if said != [digest.encode()]:
            part.discard()
            raise TransferBroken("the bytes are not those that the bank has hashed")


def _bytes(block: str | bytes) -> bytes:
    # asyncssh's types do not know that files opened as "rb" have no other.
    assert isinstance(block, bytes)
    return block


def connect_sftp(source: SftpSource) -> asyncssh.misc._ACMWrapper[asyncssh.SSHClientConnection]:
    """A connection to the host whose key is pinned, and no other."""
    key = asyncssh.import_public_key(source.host_key)
    return asyncssh.connect(
        source.host,
        source.port,
        username=source.user,
        client_keys=[source.client_key],
        known_hosts=([key], [], []),
        # Nothing of the person's who started the process.
        config=None,
        agent_path=None,
        connect_timeout=source.retrying.silence_max_s,
        keepalive_interval=source.retrying.silence_max_s,
    )
