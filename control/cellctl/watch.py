"""`cellctl watch`: the console's first page in a terminal, anew each second."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from control.cellctl.acting import acting_as
from control.cellctl.console.meter import meter_of
from control.cellctl.console.sources import Sources
from control.cellctl.options import DATA, DEFAULT_DATA
from control.cellctl.policies import unusual
from control.cellctl.session import Session
from control.cellctl.show import console
from router.slots import SLOT_COUNT

_COLOURS = ("blue", "yellow", "green", "magenta", "cyan", "red")
_ROW_SLOTS = 16
_REST = {"done", "failed", "aborted", "rolled_back"}


def watch(
    data: DATA = DEFAULT_DATA,
    interval_s: Annotated[float, typer.Option(help="Between two looks.")] = 1.0,
    looks: Annotated[int, typer.Option(help="How many; 0: until Ctrl-C.")] = 0,
) -> None:
    """Watches the mesh: cells, slots, operations, what waits for a second person."""
    Session.open(data)
    sources = Sources(data, acting_as("operator"), meter_of(data))

    async def run() -> None:
        seen = 0
        with Live(console=console, auto_refresh=False, screen=looks == 0) as live:
            while True:
                live.update(page(await sources.overview()), refresh=True)
                seen += 1
                if seen == looks:
                    return
                await asyncio.sleep(interval_s)

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        # As with any pager: that is how one leaves.
        os.write(1, b"\n")


def page(overview: dict[str, Any]) -> RenderableType:
    """What is shown of an overview."""
    mesh = overview["mesh"]
    if mesh.get("error"):
        return Text(mesh["error"], style="red")
    cells = mesh["cells"]
    flow = {item["cell"]: item for item in overview["flow"].get("cells", [])}
    parts: list[RenderableType] = [_cells(cells, flow), Text(), _map(cells), Text()]
    running = [item for item in _listed(overview["operations"]) if item["step"] not in _REST]
    parts += [
        Text(
            f"{item['operation_id']}  {item['kind']} {item['cell']}: {item['step']}, "
            f"{len(item['moves'])} moves, {item['waiting']} slots wait  ({item['reason']})",
            style="bold",
        )
        for item in running
    ]
    parts += [
        Text(
            f"{item['approval_id']}  waits for a second person: {item['action']} by "
            f"{item['requester']}",
            style="yellow",
        )
        for item in _listed(overview["approvals"])
        if item["state"] == "STATE_PENDING"
    ]
    said = {report["process"]: unusual(report) for report in mesh["policy_reports"]}
    parts += [
        Text(f"{process}: {'; '.join(lines)}", style="yellow")
        for process, lines in said.items()
        if lines
    ]
    down = [item["name"] for item in mesh["processes"] if not item["alive"]]
    if down:
        parts.append(Text(f"down: {', '.join(down)}", style="red"))
    return Group(*parts)


def _listed(part: Any) -> list[dict[str, Any]]:
    return part if isinstance(part, list) else []


def _cells(cells: list[dict[str, Any]], flow: dict[str, dict[str, Any]]) -> Table:
    found = Table(box=None, pad_edge=False)
    for column in (
        "cell", "region", "health", "slots", "requests/s", "success %", "failed %", "p99 ms",
        "note",
    ):  # fmt: skip
        found.add_column(column)
    for number, cell in enumerate(cells):
        healthy = cell["health"] == "healthy"
        found.add_row(
            Text(cell["cell"], style=_COLOURS[number % len(_COLOURS)]),
            cell["region"],
            Text(cell["health"].replace("_", " "), style="green" if healthy else "red"),
            str(cell["slots"]),
            _figure(flow.get(cell["cell"], {}).get("requests_per_s")),
            _figure(flow.get(cell["cell"], {}).get("success_percent")),
            str(cell["failure_percent"]),
            str(cell["p99_ms"] or "-"),
            cell["note"],
        )
    return found


def _figure(value: float | None) -> str:
    return "-" if value is None else str(value)


def _map(cells: list[dict[str, Any]]) -> Text:
    """A letter for each sixteen slots: the cell that has most of them."""
    owner = [""] * SLOT_COUNT
    for cell in cells:
        for piece in cell["ranges"]:
            first, _, last = piece["slots"].partition("-")
            for slot in range(int(first), int(last or first) + 1):
                owner[slot] = cell["cell"]
    names = [cell["cell"] for cell in cells]
    line = Text()
    for start in range(0, SLOT_COUNT, _ROW_SLOTS):
        piece = owner[start : start + _ROW_SLOTS]
        most = max(set(piece), key=piece.count)
        style = _COLOURS[names.index(most) % len(_COLOURS)] if most in names else "red"
        line.append(most[:1] or "?", style=style if len(set(piece)) == 1 else f"{style} reverse")
    return line
