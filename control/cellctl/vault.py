"""`cellctl vault keys`: which keys there are, before an old master key is destroyed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import typer
from sqlalchemy import func, select

from cells.vault.model import KeyState
from cells.vault.tables import vault_keys
from control.cellctl.options import DATA, DEFAULT_DATA, JSON
from control.cellctl.session import Session
from control.cellctl.show import print_json, table

app = typer.Typer(help="The vault: its keys.", add_completion=False, no_args_is_help=True)

COLUMNS = ("purpose", "state", "kms_version", "slots", "oldest")


@app.callback()
def vault() -> None:
    """So that a command is named even while there is one alone."""


@app.command()
def keys(
    data: DATA = DEFAULT_DATA,
    as_json: JSON = False,
) -> None:
    """Data keys by state and by the master key that wraps them; a master that wraps none may go."""
    found = [dict(zip(COLUMNS, row, strict=True)) for row in asyncio.run(_counted(data))]
    if as_json:
        print_json(found)
    else:
        table("keys", COLUMNS, [list(row.values()) for row in found])


async def _counted(data: Path) -> list[tuple[Any, ...]]:
    column = vault_keys.c
    # What is retired is wrapped by nothing.
    statement = (
        select(
            column.purpose, column.state, column.kms_version,
            func.count(), func.min(column.created_at),
        )
        .where(column.state != KeyState.RETIRED)
        .group_by(column.purpose, column.state, column.kms_version)
        .order_by(column.purpose, column.state, column.kms_version)
    )  # fmt: skip
    async with Session.open(data).database() as engine, engine.connect() as connection:
        rows = (await connection.execute(statement)).all()
    return [(*row[:4], row[4].isoformat(timespec="seconds")) for row in rows]
