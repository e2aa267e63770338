"""Databases for the lane's benchmark, with as many accounts as asked, loaded by COPY.

    python -m tests.bench.population URL FIRST LAST        one process's share of the accounts

Balances are put there without their history, so these databases cannot be audited; what is
measured on them writes as always. Every merchant has been paid in every slot before: an account
is made once, and what is measured is what goes on after.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import asyncpg
from sqlalchemy import insert, text
from sqlalchemy.engine import make_url

import cells.schema
from cells.accounts.tables import MERCHANTS
from cells.database import make_engine
from cells.fencing.tables import slots
from cells.ledger.tables import ACCOUNTS
from cells.settings import DatabaseSettings
from router.ids import Kind, Purpose, account_id, derive
from router.slots import SLOT_COUNT, slot_of_user
from tests.bench.lane import CELL, merchant

MERCHANTS_COUNT = 100
_RICH_MINOR = 1_000_000_000
_PROCESSES = 2
_LOADED_AT = datetime(2026, 1, 1, tzinfo=UTC)


@asynccontextmanager
async def population(server_url: str, name: str, accounts: int) -> AsyncIterator[str]:
    """The URL of a new database with `accounts` rich people and a hundred merchants."""
    url = make_url(server_url).set(database=name)
    plain = url.render_as_string(hide_password=False)
    admin = await _connect(server_url)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        try:
            await _schema(plain)
            await asyncio.to_thread(_load, plain, accounts)
            await _finish(plain)
            yield plain
        finally:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
            # What it leaves to be written must not be the next measurement's.
            await admin.execute("CHECKPOINT")
    finally:
        await admin.close()


async def _connect(url: str) -> Any:
    parts = make_url(url)
    return await asyncpg.connect(
        host=parts.host, port=parts.port, user=parts.username, database=parts.database
    )


async def _schema(url: str) -> None:
    engine = make_engine(
        url,
        "bench",
        DatabaseSettings(statement_timeout_ms=600_000, transaction_timeout_ms=0),
        pool_size=1,
    )
    async with engine.begin() as connection:
        await connection.run_sync(cells.schema.metadata.create_all)
        for table, percent in (("accounts", 70), ("orders", 45)):
            await connection.execute(text(f"ALTER TABLE {table} SET (fillfactor = {percent})"))
        await connection.execute(text("ALTER TABLE outbox ALTER COLUMN lines SET STORAGE EXTERNAL"))
        # Built at once when all rows are there.
        await connection.execute(text("ALTER TABLE accounts DROP CONSTRAINT accounts_pkey"))
        rows = [{"slot": slot, "owner": CELL, "epoch": 1} for slot in range(SLOT_COUNT)]
        await connection.execute(insert(slots), rows)
        shops = [merchant(number) for number in range(MERCHANTS_COUNT)]
        merchants = MERCHANTS.table
        values = [
            {
                "slot": slot_of_user(shop), "account_id": account_id(shop, "USD"),
                "merchant_id": shop, "currency": "USD", "state": "open", "created_at": _LOADED_AT,
            }
            for shop in shops
        ]  # fmt: skip
        await connection.execute(insert(merchants), values)
    await engine.dispose()


def _load(url: str, accounts: int) -> None:
    bounds = [accounts * part // _PROCESSES for part in range(_PROCESSES + 1)]
    running = [
        subprocess.Popen([sys.executable, "-m", __name__, url, str(first), str(last)])
        for first, last in itertools.pairwise(bounds)
    ]
    if any(process.wait() for process in running):
        raise SystemExit("loading the accounts failed")


def _collections() -> Iterator[tuple[Any, ...]]:
    for slot in range(SLOT_COUNT):
        for number in range(MERCHANTS_COUNT):
            shop = merchant(number)
            identifier = derive(Kind.ACCOUNT, slot, Purpose.COLLECTION, shop, "USD")
            yield (
                slot, identifier, shop, "USD", "collection", "merchant", "open", 0, 0, 0, 0, 0, 0,
                _LOADED_AT,
            )  # fmt: skip


async def _finish(url: str) -> None:
    connection = await _connect(url)
    try:
        await connection.copy_records_to_table(
            "accounts", records=_collections(), columns=list(ACCOUNTS.fields), timeout=600
        )
        await connection.execute("SET maintenance_work_mem = '1GB'")
        await connection.execute("ALTER TABLE accounts ADD PRIMARY KEY (slot, account_id)")
        await connection.execute("VACUUM (ANALYZE) accounts")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


def _rows(first: int, last: int) -> Iterator[tuple[Any, ...]]:
    for number in range(first, last):
        user = f"u{number}"
        slot = slot_of_user(user)
        # As `account_id` computes it, without its cache.
        identifier = derive(Kind.ACCOUNT, slot, Purpose.BALANCE, user, "USD")
        yield (
            slot, identifier, user, "USD", "balance", "person", "open", _RICH_MINOR, 0, 0, 0, 0, 0,
            _LOADED_AT,
        )  # fmt: skip


async def _copy(url: str, first: int, last: int) -> None:
    connection = await _connect(url)
    try:
        await connection.copy_records_to_table(
            "accounts", records=_rows(first, last), columns=list(ACCOUNTS.fields), timeout=3600
        )
    finally:
        await connection.close()


if __name__ == "__main__":
    asyncio.run(_copy(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
