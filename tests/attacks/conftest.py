"""What all attacks share: two merchants, each with a certificate and things of his own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest_asyncio

from control.cellctl.session import Session
from router.client import Mesh
from tests.attacks.world import Shop, issued, shop_of


@pytest_asyncio.fixture(scope="session")
async def mallory(mesh: Mesh) -> Shop:
    """Who attacks: a merchant like any other."""
    return await shop_of(mesh)


@pytest_asyncio.fixture(scope="session")
async def victim(mesh: Mesh) -> Shop:
    return await shop_of(mesh)


@pytest_asyncio.fixture(scope="session")
async def as_mallory(session: Session, mallory: Shop) -> AsyncIterator[grpc.aio.Channel]:
    """Through the gRPC edge by his certificate."""
    tls = issued(session, "merchant", mallory.merchant_id)
    async with grpc.aio.secure_channel(session.edge_address, tls.channel_credentials()) as channel:
        yield channel
