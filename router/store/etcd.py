"""The store on etcd 3.5, over aetcd's generated messages on a channel of our own.

aetcd's client hides a lost watch behind a dead iterator; here a broken watch is simply opened
again after a fresh listing, which is all that a level-triggered watch needs. Three ways in which a
stream can stay open and yet say nothing are made to break it: a member that hangs (keep-alive
pings), a member cut off from the others (`hasleader`), a message too large for gRPC's default.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from typing import Any

import grpc
from aetcd import rpc
from aetcd.rpc import rpc_pb2_grpc

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


def connect_etcd(address: str) -> EtcdStore:
    """`address`: host:port of an etcd member. Does not wait for it to answer."""
    return EtcdStore(grpc.aio.insecure_channel(address, options=_OPTIONS))


class EtcdLease:
    def __init__(self, stub: Any, identifier: int, ttl_s: int) -> None:
        self._stub = stub
        self.identifier = identifier
        self._ttl_s = ttl_s

    @property
    def ttl_s(self) -> int:
        return self._ttl_s

    async def refresh(self) -> bool:
        call = self._stub.LeaseKeepAlive(metadata=_REQUIRE_LEADER)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await call.write(rpc.LeaseKeepAliveRequest(ID=self.identifier))
                answer = await call.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError) as error:
            raise StoreUnavailable(_cause(error)) from error
        finally:
            call.cancel()
        if answer is grpc.aio.EOF:
            raise StoreUnavailable("the keep-alive stream ended")
        return bool(answer.TTL > 0)

    async def revoke(self) -> None:
        try:
            await self._stub.LeaseRevoke(
                rpc.LeaseRevokeRequest(ID=self.identifier), timeout=_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise StoreUnavailable(_cause(error)) from error


class EtcdStore:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._kv: Any = rpc_pb2_grpc.KVStub(channel)
        self._leases: Any = rpc_pb2_grpc.LeaseStub(channel)
        self._watches: Any = rpc_pb2_grpc.WatchStub(channel)
        self._closed = False

    async def get(self, key: str) -> Item | None:
        answer = await self._call(self._kv.Range, rpc.RangeRequest(key=key.encode()))
        return _item(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str) -> Listing:
        request = rpc.RangeRequest(key=prefix.encode(), range_end=_range_end(prefix))
        answer = await self._call(self._kv.Range, request)
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
        answer = await self._call(self._kv.Txn, request)
        return int(answer.header.revision) if answer.succeeded else None

    async def lease(self, ttl_s: int) -> EtcdLease:
        answer = await self._call(self._leases.LeaseGrant, rpc.LeaseGrantRequest(TTL=ttl_s))
        return EtcdLease(self._leases, answer.ID, answer.TTL)

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
        call = self._watches.Watch(metadata=_REQUIRE_LEADER)
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
            return
        finally:
            call.cancel()

    async def close(self) -> None:
        self._closed = True
        await self._channel.close(grace=None)

    async def _call(self, method: Any, request: Any) -> Any:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        try:
            return await method(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise StoreUnavailable(_cause(error)) from error


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
