"""Connecting to the mesh: stubs over one routed channel."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import grpc
from cellpay.accounts.v1 import accounts_pb2_grpc
from cellpay.channels.v1 import channels_pb2_grpc
from cellpay.charges.v1 import charges_pb2_grpc
from cellpay.keys.v1 import keys_pb2_grpc
from cellpay.notifications.v1 import notifications_pb2_grpc
from cellpay.orders.v1 import orders_pb2_grpc
from cellpay.payments.v1 import payments_pb2_grpc
from cellpay.payouts.v1 import payouts_pb2_grpc
from cellpay.risk.v1 import risk_pb2_grpc
from cellpay.transfers.v1 import funding_pb2_grpc, participant_pb2_grpc, transfers_pb2_grpc
from cellpay.vault.v1 import instruments_pb2_grpc

from router.client.channel import CallPolicy, MeshChannel
from router.client.tls import TlsFiles
from router.tracing.tracer import Tracer

TARGET = "xds:///cellpay"
BOOTSTRAP_VARIABLE = "GRPC_XDS_BOOTSTRAP"

_OPTIONS: list[tuple[str, Any]] = [
    # The SDK retries; a second layer below would multiply the attempts (pitfall 24).
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
]


class Mesh:
    """Stubs of all services; each call goes to its user's home cell."""

    def __init__(self, channel: MeshChannel) -> None:
        raw = cast(Any, channel)
        self.channel = channel
        self.accounts: accounts_pb2_grpc.AccountsServiceAsyncStub = (
            accounts_pb2_grpc.AccountsServiceStub(raw)
        )
        self.orders: orders_pb2_grpc.OrdersServiceAsyncStub = orders_pb2_grpc.OrdersServiceStub(raw)
        self.payments: payments_pb2_grpc.PaymentsServiceAsyncStub = (
            payments_pb2_grpc.PaymentsServiceStub(raw)
        )
        self.transfers: transfers_pb2_grpc.TransfersServiceAsyncStub = (
            transfers_pb2_grpc.TransfersServiceStub(raw)
        )
        self.notifications: notifications_pb2_grpc.NotificationsServiceAsyncStub = (
            notifications_pb2_grpc.NotificationsServiceStub(raw)
        )
        self.participants: participant_pb2_grpc.ParticipantServiceAsyncStub = (
            participant_pb2_grpc.ParticipantServiceStub(raw)
        )
        self.charges: charges_pb2_grpc.ChargesServiceAsyncStub = (
            charges_pb2_grpc.ChargesServiceStub(raw)
        )
        self.payouts: payouts_pb2_grpc.PayoutsServiceAsyncStub = (
            payouts_pb2_grpc.PayoutsServiceStub(raw)
        )
        self.reports: channels_pb2_grpc.ReportsServiceAsyncStub = (
            channels_pb2_grpc.ReportsServiceStub(raw)
        )
        self.adjustments: channels_pb2_grpc.AdjustmentsServiceAsyncStub = (
            channels_pb2_grpc.AdjustmentsServiceStub(raw)
        )
        self.funding: funding_pb2_grpc.FundingServiceAsyncStub = (
            funding_pb2_grpc.FundingServiceStub(raw)
        )
        self.risk: risk_pb2_grpc.RiskServiceAsyncStub = risk_pb2_grpc.RiskServiceStub(raw)
        self.instruments: instruments_pb2_grpc.InstrumentsServiceAsyncStub = (
            instruments_pb2_grpc.InstrumentsServiceStub(raw)
        )
        self.keys: keys_pb2_grpc.KeysServiceAsyncStub = keys_pb2_grpc.KeysServiceStub(raw)


@contextlib.asynccontextmanager
async def connect(
    bootstrap: Path | str | None = None,
    *,
    policy: CallPolicy | None = None,
    fallback: TlsFiles | None = None,
    tracer: Tracer | None = None,
) -> AsyncIterator[Mesh]:
    """Joins the mesh by xDS, over mTLS as the xDS server says.

    `bootstrap`: gRPC's xDS bootstrap file; the variable GRPC_XDS_BOOTSTRAP when None. All xDS
    channels of a process share one client of the control plane, so a process belongs to one mesh at
    a time: ValueError while it is in another. `fallback`: credentials for a cluster that the xDS
    server left without a transport; none are sent in the clear. `tracer`: calls are spans of it
    (router/tracing/export.py opens one).
    """
    with _joined(bootstrap):
        below = fallback.channel_credentials() if fallback else grpc.ssl_channel_credentials()
        credentials = grpc.xds_channel_credentials(below)
        async with _mesh(TARGET, credentials, policy, tracer) as mesh:
            yield mesh


# How many connections of this process are open by which bootstrap file.
_open: Counter[str] = Counter()


@contextlib.contextmanager
def _joined(bootstrap: Path | str | None) -> Iterator[None]:
    place = str(bootstrap or os.environ.get(BOOTSTRAP_VARIABLE, ""))
    if not place:
        raise ValueError(f"give a bootstrap file or set {BOOTSTRAP_VARIABLE}")
    others = [other for other, count in _open.items() if count and other != place]
    if others:
        # It would be led to the other's cells, and nothing would say so.
        raise ValueError(f"this process is in the mesh of {others[0]}; leave it before {place}")
    os.environ[BOOTSTRAP_VARIABLE] = place
    _open[place] += 1
    try:
        yield
    finally:
        _open[place] -= 1


@contextlib.asynccontextmanager
async def connect_direct(
    address: str,
    tls: TlsFiles,
    *,
    policy: CallPolicy | None = None,
    tracer: Tracer | None = None,
) -> AsyncIterator[Mesh]:
    """The same stubs to one address: a cell (tests, benchmarks) or the Envoy edge."""
    async with _mesh(address, tls.channel_credentials(), policy, tracer) as mesh:
        yield mesh


@contextlib.asynccontextmanager
async def _mesh(
    target: str,
    credentials: grpc.ChannelCredentials,
    policy: CallPolicy | None,
    tracer: Tracer | None,
) -> AsyncIterator[Mesh]:
    channel = grpc.aio.secure_channel(target, credentials, options=_OPTIONS)
    mesh = Mesh(MeshChannel(channel, policy or CallPolicy(), tracer))
    try:
        yield mesh
    finally:
        await mesh.channel.close()
