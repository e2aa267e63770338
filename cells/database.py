"""Engines for the one logical database: PostgreSQL on a laptop, CockroachDB in production."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import asyncpg
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from cells.settings import DatabaseSettings

# asyncpg's connection (it has no types): statements with arguments $1, $2 …, arrays as they are.
Driver: TypeAlias = Any

# The lanes' statements join small arrays to huge tables by primary key: nested loops over the
# index are right whatever the statistics say, and one generic plan saves planning each group.
_POSTGRESQL_LANE_SETTINGS = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}

# The driver cannot use the connection, or has lost track of it: what was under way may have
# committed.
_CUT_OFF = (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)

# SQLSTATE classes after which the same transaction may simply run again.
_CONTENTION = frozenset({"40001", "40P01", "55P03", "23505"})
# The server or the way to it is gone; what was under way may or may not have committed.
_AWAY = frozenset({"57P01", "57P02", "57P03", "25P03", "25P04", "57014", "53300", "40003", "XXUUU"})


def make_engine(
    database_url: str,
    name: str,
    settings: DatabaseSettings,
    *,
    pool_size: int,
    lanes: bool = False,
) -> AsyncEngine:
    """`name` is what the database shows for the sessions. `lanes`: set-based statements only."""
    url = make_url(database_url)
    server_settings = {
        "application_name": name,
        "idle_in_transaction_session_timeout": str(settings.idle_in_transaction_timeout_ms),
        "lock_timeout": str(settings.lock_timeout_ms),
        "transaction_timeout": str(settings.transaction_timeout_ms),
        "statement_timeout": str(settings.statement_timeout_ms),
    }
    if lanes and url.get_backend_name() == "postgresql":
        server_settings |= _POSTGRESQL_LANE_SETTINGS
    return create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=5,
        # Errors would quote them (pitfall 34).
        hide_parameters=True,
        connect_args={"server_settings": server_settings, "timeout": 5, "ssl": _ssl(url)},
    )


class KeptConnection:
    """A connection of the pool that is kept from one transaction to the next: to take it from the
    pool each time would cost a small group a tenth of what it costs in all."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self._connection: AsyncConnection | None = None
        self._driver: Driver = None

    async def driver(self) -> Driver:
        if self._connection is not None and self._driver.is_closed():
            await self.drop()
        if self._connection is None:
            connection = await self.engine.connect()
            self._driver = (await connection.get_raw_connection()).driver_connection
            self._connection = connection
        return self._driver

    async def give_back(self) -> None:
        """To the pool."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def drop(self) -> None:
        """It is broken, or nobody knows what it is in: the next transaction has a new one."""
        if self._connection is not None:
            await self._connection.invalidate()
        await self.give_back()


@contextlib.asynccontextmanager
async def transaction(source: AsyncEngine | KeptConnection) -> AsyncIterator[Driver]:
    """A transaction on the driver's own connection; whoever does not commit it rolls it back.

    SQLAlchemy keeps the pool and the URL. Its statements look at every element of an array
    argument, which costs a group more than PostgreSQL does (docs/performance.md).
    """
    kept = source if isinstance(source, KeptConnection) else KeptConnection(source)
    driver = await kept.driver()
    try:
        await driver.execute("BEGIN")
        yield driver
    except (*_CUT_OFF, asyncio.CancelledError):
        # Cut off in the middle of something.
        await kept.drop()
        raise
    finally:
        try:
            if driver.is_in_transaction():
                await driver.execute("ROLLBACK")
        except (asyncpg.PostgresError, *_CUT_OFF):
            await kept.drop()
        if kept is not source:
            await kept.give_back()


async def forget_plans(kept: KeptConnection) -> None:
    """Plans are made anew, for tables as large as they are now.

    A generic plan that was made while a table was empty reads all of it for each group when it is
    not, until autovacuum has looked at it (PostgreSQL; CockroachDB plans by its own statistics).
    """
    if kept.engine.dialect.name == "postgresql":
        driver = await kept.driver()
        await driver.execute("DISCARD PLANS")


async def commit(driver: Driver) -> None:
    await driver.execute("COMMIT")


def changed_rows(status: str) -> int:
    """Of a statement's status, as in "UPDATE 5"."""
    return int(status.rpartition(" ")[2])


def _ssl(url: Any) -> str:
    """`?ssl=verify-full` of the URL, whose CA and certificate asyncpg finds as libpq does
    (PGSSLROOTCERT, PGSSLCERT, PGSSLKEY)."""
    if asked := url.query.get("ssl"):
        return str(asked)
    # asyncpg asks for TLS by default and falls back; a loopback server has none.
    return "prefer" if url.host not in {"127.0.0.1", "localhost", "::1"} else "disable"


def sqlstate_of(error: BaseException) -> str:
    """The SQLSTATE behind an exception; empty when there is none."""
    if isinstance(error, asyncpg.PostgresError):
        return str(error.sqlstate or "")
    if isinstance(error, DBAPIError) and error.orig is not None:
        return str(getattr(error.orig, "sqlstate", None) or "")
    return ""


def is_contention(error: BaseException) -> bool:
    return sqlstate_of(error) in _CONTENTION


def is_away(error: BaseException) -> bool:
    """The database is out of reach, or the connection broke: the outcome may be unknown."""
    if isinstance(error, (*_CUT_OFF, TimeoutError)):
        return True
    state = sqlstate_of(error)
    if state in _AWAY or state.startswith("08"):
        return True
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or not state
    if isinstance(error, asyncpg.PostgresError):
        return not state
    return "QueuePool" in str(error)
