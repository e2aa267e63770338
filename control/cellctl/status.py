"""`cellctl status`: every process with PID and address, every cell with its slots and epochs."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
from cellpay.control.v1 import control_pb2 as pb

from control.cellctl.options import DATA, DEFAULT_DATA, JSON
from control.cellctl.policies import policies_status, show_policies_status
from control.cellctl.session import Session
from control.cellctl.show import console, print_json, range_text, table
from control.mesh import launcher

_TIMEOUT_S = 3.0


def status(data: DATA = DEFAULT_DATA, as_json: JSON = False) -> None:
    """Processes, cells, slots, epochs, xDS subscribers."""
    document = asyncio.run(status_document(data))
    if as_json:
        print_json(document)
    else:
        show_status(document)


async def status_document(data: Path) -> dict[str, Any]:
    """What runs and who owns what; the control plane's part says so when it does not answer."""
    session = Session.open(data)
    places = session.places
    # Of a mesh elsewhere its platform tells.
    processes = [] if session.is_remote else await asyncio.to_thread(launcher.status, data)
    document: dict[str, Any] = {
        "data": str(data),
        "edge": places.edge,
        "http": places.http,
        "control": places.controllers[0],
        "client_bootstrap": "" if session.is_remote else str(session.client_bootstrap),
        "processes": [asdict(process) for process in processes],
        "cells": [],
        "subscribers": [],
        "policies": [],
        "policy_reports": [],
        "error": None,
    }
    try:
        async with session.control() as control:
            cells = await control.ListCells(pb.ListCellsRequest(), timeout=_TIMEOUT_S)
        subscribers = await _subscribers(session)
        document |= await policies_status(session, _TIMEOUT_S)
    except (grpc.aio.AioRpcError, OSError) as error:
        document["error"] = f"the controller does not answer: {_cause(error)}"
        return document
    document["cells"] = [
        {
            "cell": cell.cell,
            "region": cell.region,
            "health": pb.Cell.Health.Name(cell.health).removeprefix("HEALTH_").lower(),
            "address": cell.address,
            "capacity": cell.capacity,
            "failure_percent": round(cell.failure_percent, 1),
            "p99_ms": cell.p99_ms,
            "note": cell.note,
            "slots": sum(piece.last - piece.first + 1 for piece in cell.slots),
            "ranges": [
                {"slots": range_text(piece.first, piece.last), "epoch": piece.epoch}
                for piece in cell.slots
            ],
        }
        for cell in cells.cells
    ]
    document["subscribers"] = [
        {
            "node_id": item.node_id,
            "kind": item.kind,
            "acked_version": item.acked_version,
            "nacks": item.nacks,
            "last_nack": item.last_nack,
        }
        for item in subscribers
    ]
    return document


async def _subscribers(session: Session) -> list[pb.Subscriber]:
    """Of every controller that answers: each knows only its own."""
    found: list[pb.Subscriber] = []
    for address in session.places.controllers:
        async with session.control(at=address) as control:
            with contextlib.suppress(grpc.aio.AioRpcError):
                answer = await control.ListSubscribers(
                    pb.ListSubscribersRequest(), timeout=_TIMEOUT_S
                )
                found += answer.subscribers
    return found


def _cause(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error)


def _health(item: dict[str, Any]) -> str:
    note = f" ({item['note']})" if item["note"] else ""
    return f"{item['health'].replace('_', ' ')}{note}"


def show_status(document: dict[str, Any]) -> None:
    if document["processes"]:
        table(
            "processes",
            ("name", "PID", "address", "state"),
            [
                (item["name"], item["pid"] or "-", item["address"] or "-",
                 "runs" if item["alive"] else "DOWN")
                for item in document["processes"]
            ],
        )  # fmt: skip
        console.print()
    if document["error"]:
        console.print(document["error"])
        return
    table(
        "cells",
        ("cell", "region", "health", "address", "slots", "capacity", "failed %", "p99 ms",
         "ranges (epoch)"),
        [
            (item["cell"], item["region"], _health(item), item["address"] or "-", item["slots"],
             item["capacity"] or "-", item["failure_percent"], item["p99_ms"] or "-",
             ", ".join(f"{piece['slots']} ({piece['epoch']})" for piece in item["ranges"]) or "-")
            for item in document["cells"]
        ],
    )  # fmt: skip
    console.print()
    nacks = sum(item["nacks"] for item in document["subscribers"])
    console.print(f"xDS: {len(document['subscribers'])} subscribers, {nacks} NACKs")
    for item in document["subscribers"]:
        if item["nacks"]:
            console.print(f"  {item['node_id']}: {item['nacks']} NACKs, last: {item['last_nack']}")
    show_policies_status(document)
