"""`cellctl verify`: the audit of the whole mesh's books."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import typer
from sqlalchemy.exc import DBAPIError

from cells.verification.auditor import audit
from cells.verification.model import Report, lines
from control.cellctl.failures import NoMesh
from control.cellctl.options import DATA, DEFAULT_DATA, JSON
from control.cellctl.session import Session
from control.cellctl.show import console, print_json


def verify(data: DATA = DEFAULT_DATA, as_json: JSON = False) -> None:
    """Audits the books of the whole mesh; exits 1 and names what is wrong when they do not hold."""
    report = asyncio.run(verify_mesh(data))
    if as_json:
        print_json(report.to_dict())
    else:
        for line in lines(report):
            console.print(line, markup=False)
    if not report.ok:
        raise typer.Exit(1)


async def verify_mesh(data: Path) -> Report:
    session = Session.open(data)
    async with session.database() as engine:
        slot_map = await session.slot_map()
        try:
            return await audit(engine, slot_map)
        except (OSError, DBAPIError, asyncpg.PostgresError) as error:
            # The error's text may quote what it should not (pitfall 34); its kind is enough.
            raise NoMesh(
                f"the database of {data} does not answer ({type(error).__name__}); "
                f"is the mesh up? cellctl status --data {data}"
            ) from error
