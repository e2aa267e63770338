"""The store on etcd 3.5, over aetcd's generated messages on a channel of our own.

aetcd's client hides a lost watch behind a dead iterator; here a broken watch is simply opened
again after a fresh listing, which is all that a level-triggered watch needs. Three ways in which a
stream can stay open and yet say nothing are made to break it: a member that hangs (keep-alive
pings), a member cut off from the others (`hasleader`), a message too large for gRPC's default.

Of several members it talks to one at a time. A call goes only to one that is connected, so that a
dead member costs no call; a member that fails a call is left for the next. Reads are then repeated
there; commits are not, for whether they took effect is unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import grpc
from aetcd import rpc
from aetcd.rpc import rpc_pb2_grpc

from router.client.tls import TlsFiles
from router.store.model import Item, Lease, Listing, StoreUnavailable

_TIMEOUT_S = 3.0
_WATCH_RETRY_S = 0.2
# A member that has lost the others ends our streams instead of keeping them open and silent.
_REQUIRE_LEADER = (("hasleader", "true"),)
_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    # This is also how long an attempt to connect may take: another region is 100 ms away.
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # etcd closes connections that ping more often than every 5 s.
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # A watch may be silent for hours; by default gRPC stops pinging after two pings.
    ("grpc.http2.max_pings_without_data", 0),
    # Listings of operations and audit records outgrow gRPC's default of 4 MB.
    ("grpc.max_receive_message_length", -1),
]


# How long a member may take to connect before the next one is tried.
_CONNECT_WAIT_S = 1.0
# The connection of an old certificate ends after this: whatever was under way has ended by then.
_OLD_CHANNEL_GRACE_S = 2 * _TIMEOUT_S


def connect_etcd(addresses: str, tls: TlsFiles | None = None) -> EtcdStore:
    """`addresses`: host:port of an etcd member, or of several, with commas between.

    With `tls`, the certificate's common name is etcd's user. Does not wait for anyone to answer.
    """
    members = [address.strip() for address in addresses.split(",") if address.strip()]
    if not members:
        raise ValueError("no address of etcd was given")
    return EtcdStore([Member(address, tls) for address in members])


class Member:
    """One etcd server. Its channel is made anew when the certificate's files have changed."""

    def __init__(self, address: str, tls: TlsFiles | None) -> None:
        self._address = address
        self._tls = tls
        self._stamp = tls.stamp() if tls else ()
        self._open(tls.channel_credentials() if tls else None)

    def _open(self, credentials: grpc.ChannelCredentials | None) -> None:
        self.channel = (
            grpc.aio.secure_channel(self._address, credentials, options=_OPTIONS)
            if credentials
            else grpc.aio.insecure_channel(self._address, options=_OPTIONS)
        )
        self.kv: Any = rpc_pb2_grpc.KVStub(self.channel)
        self.leases: Any = rpc_pb2_grpc.LeaseStub(self.channel)
        self.watches: Any = rpc_pb2_grpc.WatchStub(self.channel)

    def take_new_certificate(self) -> grpc.aio.Channel | None:
        """The channel that it leaves, if the files have changed. A connection outlives its
        certificate, so nothing is in a hurry; but the next handshake must show the new one."""
        if self._tls is None:
            return None
        stamp = self._tls.stamp()
        if stamp in ((), self._stamp):
            return None
        try:
            credentials = self._tls.channel_credentials()
        except OSError:
            # In the middle of a rotation: the next look finds them.
            return None
        left, self._stamp = self.channel, stamp
        self._open(credentials)
        return left

    async def connects(self) -> bool:
        state = self.channel.get_state(try_to_connect=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CONNECT_WAIT_S):
                while state != grpc.ChannelConnectivity.READY:
                    if state in _FAILING:
                        return False
                    await self.channel.wait_for_state_change(state)
                    state = self.channel.get_state(try_to_connect=True)
                return True
        return False


_FAILING = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)


class EtcdLease:
    def __init__(self, store: EtcdStore, identifier: int, ttl_s: int) -> None:
        self._store = store
        self.identifier = identifier
        self._ttl_s = ttl_s

    @property
    def ttl_s(self) -> int:
        return self._ttl_s

    async def refresh(self) -> bool:
        return await self._store.refresh(self.identifier)

    async def revoke(self) -> None:
        await self._store.revoke(self.identifier)


class EtcdStore:
    def __init__(self, members: Sequence[Member]) -> None:
        self._members = list(members)
        self._current = 0
        # Channels with an old certificate, and until when they may end what they began.
        self._left: list[tuple[float, grpc.aio.Channel]] = []
        self._closed = False

    async def _member(self) -> Member:
        """The one to talk to now: the last that worked, else the next that connects."""
        self._check_open()
        await self._take_new_certificates()
        count = len(self._members)
        if count > 1:
            for offset in range(count):
                number = (self._current + offset) % count
                if await self._members[number].connects():
                    self._current = number
                    break
        return self._members[self._current]

    async def _take_new_certificates(self) -> None:
        now = asyncio.get_running_loop().time()
        for member in self._members:
            channel = member.take_new_certificate()
            if channel is not None:
                self._left.append((now + _OLD_CHANNEL_GRACE_S, channel))
        while self._left and self._left[0][0] < now:
            _, channel = self._left.pop(0)
            await channel.close(grace=None)

    def _leave(self, member: Member) -> None:
        """After a failed call: the next one goes to another member."""
        if self._members[self._current] is member:
            self._current = (self._current + 1) % len(self._members)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")

    async def get(self, key: str) -> Item | None:
        answer = await self._read(rpc.RangeRequest(key=key.encode()))
        return _item(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str) -> Listing:
        request = rpc.RangeRequest(key=prefix.encode(), range_end=_range_end(prefix))
        answer = await self._read(request)
        items = [_item(pair) for pair in answer.kvs]
        return Listing({item.key: item for item in items}, answer.header.revision)

    async def commit(
        self,
        *,
        expect: Mapping[str, int],
        puts: Mapping[str, str],
        deletes: Iterable[str] = (),
        lease: Lease | None = None,
    ) -> int | None:
        assert lease is None or isinstance(lease, EtcdLease), "a lease of another store"
        lease_id = lease.identifier if lease else 0
        operations = [
            rpc.RequestOp(
                request_put=rpc.PutRequest(key=key.encode(), value=value.encode(), lease=lease_id)
            )
            for key, value in puts.items()
        ]
        operations += [
            rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key.encode()))
            for key in deletes
        ]
        request = rpc.TxnRequest(
            compare=[
                rpc.Compare(
                    key=key.encode(),
                    target=rpc.Compare.MOD,
                    result=rpc.Compare.EQUAL,
                    mod_revision=revision,
                )
                for key, revision in expect.items()
            ],
            success=operations,
        )
        member = await self._member()
        answer = await self._call(member, member.kv.Txn, request)
        return int(answer.header.revision) if answer.succeeded else None

    async def lease(self, ttl_s: int) -> EtcdLease:
        member = await self._member()
        answer = await self._call(
            member, member.leases.LeaseGrant, rpc.LeaseGrantRequest(TTL=ttl_s)
        )
        return EtcdLease(self, answer.ID, answer.TTL)

    async def refresh(self, lease_id: int) -> bool:
        for tries_left in reversed(range(len(self._members))):
            member = await self._member()
            try:
                return await self._refresh(member, lease_id)
            except StoreUnavailable:
                self._leave(member)
                if not tries_left:
                    raise
        raise AssertionError("there are no members")

    async def _refresh(self, member: Member, lease_id: int) -> bool:
        call = member.leases.LeaseKeepAlive(metadata=_REQUIRE_LEADER)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await call.write(rpc.LeaseKeepAliveRequest(ID=lease_id))
                answer = await call.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError) as error:
            raise StoreUnavailable(_cause(error)) from error
        except asyncio.CancelledError:
            if _we_are_cancelled():
                raise
            raise StoreUnavailable("the connection was closed") from None
        finally:
            call.cancel()
        if answer is grpc.aio.EOF:
            raise StoreUnavailable("the keep-alive stream ended")
        return bool(answer.TTL > 0)

    async def revoke(self, lease_id: int) -> None:
        member = await self._member()
        try:
            await member.leases.LeaseRevoke(rpc.LeaseRevokeRequest(ID=lease_id), timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                self._leave(member)
                raise StoreUnavailable(_cause(error)) from error

    async def watch(self, prefix: str) -> AsyncIterator[Listing]:
        while True:
            try:
                listing = await self.list(prefix)
                yield listing
                async with contextlib.aclosing(self._changes(prefix, listing)) as changes:
                    async for changed in changes:
                        yield changed
            except StoreUnavailable:
                if self._closed:
                    raise
            await asyncio.sleep(random.uniform(0.5, 1.0) * _WATCH_RETRY_S)

    async def _changes(self, prefix: str, listing: Listing) -> AsyncGenerator[Listing, None]:
        """Listings after each change, until the stream breaks."""
        create = rpc.WatchCreateRequest(
            key=prefix.encode(), range_end=_range_end(prefix), start_revision=listing.revision + 1
        )
        if self._closed:
            return
        member = await self._member()
        call = member.watches.Watch(metadata=_REQUIRE_LEADER)
        try:
            await call.write(rpc.WatchRequest(create_request=create))
            items = dict(listing.items)
            while True:
                answer = await call.read()
                if answer is grpc.aio.EOF or answer.canceled:
                    return
                for event in answer.events:
                    if event.type == rpc.Event.PUT:
                        item = _item(event.kv)
                        items[item.key] = item
                    else:
                        items.pop(event.kv.key.decode(), None)
                if answer.events:
                    yield Listing(dict(items), answer.header.revision)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            self._leave(member)
            return
        except asyncio.CancelledError:
            if _we_are_cancelled():
                raise
            return
        finally:
            call.cancel()

    async def close(self) -> None:
        self._closed = True
        for channel in [member.channel for member in self._members] + [
            old for _, old in self._left
        ]:
            await channel.close(grace=None)

    async def _read(self, request: Any) -> Any:
        """Of whichever member answers: every read may be repeated."""
        for tries_left in reversed(range(len(self._members))):
            member = await self._member()
            try:
                return await self._call(member, member.kv.Range, request)
            except StoreUnavailable:
                if self._closed or not tries_left:
                    raise
        raise AssertionError("there are no members")

    async def _call(self, member: Member, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self._leave(member)
            raise StoreUnavailable(_cause(error)) from error
        except asyncio.CancelledError:
            if _we_are_cancelled():
                raise
            raise StoreUnavailable("the connection was closed") from None


def _we_are_cancelled() -> bool:
    """A channel that is closed under a call cancels the call, and that looks as if we were."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _item(pair: Any) -> Item:
    return Item(pair.key.decode(), pair.value.decode(), pair.mod_revision)


def _range_end(prefix: str) -> bytes:
    """The first key after all keys with this prefix (etcd's own rule)."""
    raw = bytearray(prefix.encode())
    raw[-1] += 1
    return bytes(raw)


def _cause(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return type(error).__name__
