"""Webhook secrets at rest: sealed, also those that a cell of before has written."""

from __future__ import annotations

import asyncio
import base64
import uuid
from typing import Any

import pytest
from cellpay.notifications.v1 import notifications_pb2
from sqlalchemy import select, update

from cells.notifications.model import Endpoint
from cells.notifications.secrets import Secrets
from cells.notifications.tables import endpoints
from cells.vault.keystore import open_kms
from control.cellctl.session import Session
from router.client import Mesh
from router.errors import Refusal

pytestmark = pytest.mark.mesh
SECRET = b"a secret of 24 bytes or more"
PATIENCE_S = 60.0


async def test_a_secret_is_sealed_in_the_database_also_one_of_before(
    mesh: Mesh, session: Session
) -> None:
    shop = f"sealed-{uuid.uuid4().hex[:8]}"
    request = notifications_pb2.SetEndpointRequest(
        merchant_id=shop, url="http://127.0.0.1:9/hook", secret=SECRET
    )
    await mesh.notifications.SetEndpoint(request)
    secrets = Secrets(open_kms(str(session.data / "keystore" / "master.json")))
    mine = endpoints.c.endpoint_id == shop
    async with session.database() as engine:

        async def row() -> Endpoint:
            async with engine.begin() as connection:
                found: Any = await connection.execute(select(endpoints).where(mine))
                return Endpoint(**found.mappings().one())

        first = await row()
        assert first.secret == b""
        assert SECRET not in base64.b64decode(first.secret_sealed)
        assert await secrets.open(first) == SECRET
        # Bound to its merchant: in another's row it does not open.
        with pytest.raises(Refusal) as caught:
            await secrets.open(first._replace(endpoint_id="thief"))
        assert caught.value.reason == "SEAL_BROKEN"
        async with engine.begin() as connection:
            before = {"secret": SECRET, "secret_sealed": "", "kms_version": ""}
            await connection.execute(update(endpoints).where(mine).values(**before))
        async with asyncio.timeout(PATIENCE_S):
            while (sealed := await row()).secret:
                await asyncio.sleep(0.1)
        assert await secrets.open(sealed) == SECRET
        assert sealed.updated_at == first.updated_at
