"""Healing: what was written down is undone, last first.

Every remedy may be applied twice and finds nothing to do where the mesh was restarted meanwhile, so
whoever takes a drill up may heal all of it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import assert_never

from cellpay.control.v1 import control_pb2 as pb

from control.drills.injectors import restart_drained
from control.drills.model import Remedy, Undo
from control.drills.site import Site, Unmovable, identity_of
from control.mesh import launcher, mounts
from control.mesh.errors import MeshError
from control.mesh.processes import send
from router.slotmap import SlotMap
from router.slots import SlotRange, ranges_of
from router.store.model import StoreUnavailable

_STORE_TRIES_MAX = 60
_STORE_WAIT_S = 0.5
_LOOKS_MIN = 3
_LOOK_INTERVAL_S = 0.5


async def heal(site: Site, undo: Sequence[Undo]) -> list[str]:
    """Undoes all of it; what could not be undone, as sentences."""
    # First what holds the fault up from this process: proxies, loops, load.
    await site.held.aclose()
    wrong = []
    # Processes first: nothing else can be undone while etcd stands still.
    last_first = list(reversed(undo))
    for item in sorted(last_first, key=lambda item: item.remedy != Remedy.CONTINUE):
        try:
            await _apply(site, item)
        except (MeshError, Unmovable, StoreUnavailable, OSError) as why:
            wrong.append(f"{item.remedy} {item.target}: {why}")
    return wrong


async def _apply(site: Site, item: Undo) -> None:
    match item.remedy:
        case Remedy.START:
            await asyncio.to_thread(launcher.start, site.data, item.target)
        case Remedy.CONTINUE:
            identity = identity_of(item.target, item.detail)
            if identity is not None:
                send(identity, signal.SIGCONT)
        case Remedy.RESTART:
            await restart_drained(site, item.target, {})
        case Remedy.UNMOUNT:
            await _unmount(site, Path(item.target))
        case Remedy.GIVE_BACK:
            await _give_back(site, item)
        case _:
            assert_never(item.remedy)


async def _unmount(site: Site, folder: Path) -> None:
    """What JetStream wrote meanwhile stays: it goes to the folder below."""
    if not await asyncio.to_thread(folder.is_mount):
        await asyncio.to_thread(launcher.start, site.data, "nats")
        return
    await asyncio.to_thread(launcher.stop, site.data, "nats")
    await asyncio.to_thread(mounts.uncover, folder)
    await asyncio.to_thread(launcher.start, site.data, "nats")


async def _give_back(site: Site, item: Undo) -> None:
    """Slots that went from these cells because of the fault come back to them."""
    cells = item.target.split(",")
    for cell in cells:
        await site.wait_live(cell)
    # A failover may be on its way still: only a map that stays as it was is believed.
    believed = 0
    while believed < _LOOKS_MIN:
        away = await _away(site, cells, item.detail)
        believed = 0 if away else believed + 1
        for piece, cell in away:
            request = pb.StartOperationRequest(
                kind=pb.Operation.KIND_MOVE, first=piece.first, last=piece.last, target=cell,
                reason=f"drill {site.spec.name} is over",
            )  # fmt: skip
            await site.operate(request)
        await asyncio.sleep(_LOOK_INTERVAL_S)


async def _away(site: Site, cells: Sequence[str], before: str) -> list[tuple[SlotRange, str]]:
    current = await _patiently(site.slot_map)
    return [
        (piece, cell)
        for first, last, cell in json.loads(before)
        if cell in cells
        for piece in ranges_of(
            slot for slot in range(first, last + 1) if current.at(slot).cell != cell
        )
    ]


async def _patiently(look: Callable[[], Awaitable[SlotMap]]) -> SlotMap:
    for _ in range(_STORE_TRIES_MAX):
        with contextlib.suppress(StoreUnavailable):
            return await look()
        await asyncio.sleep(_STORE_WAIT_S)
    return await look()
