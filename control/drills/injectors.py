"""How each fault is done. First it is written down how to undo it, then it is done.

Only processes of the mesh are touched, by PID and start time. What needs this process to last
(proxies, load, a loop that cuts connections) is in `site.held`, and ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path

import asyncpg
from cellpay.control.v1 import control_pb2 as pb

from control.drills.detour import Passage, Weather, detour
from control.drills.model import Fault, Remedy, Undo
from control.drills.rules import latency_ms_of, touched_cells
from control.drills.site import NotPossible, Proof, Site
from control.drills.strain import overload, slow_channel, transfers_across
from control.mesh import launcher, mounts
from control.mesh.processes import is_stopped, send, uses

_CUT_INTERVAL_S = 0.5
# JetStream deletes what has been consumed; less than a block of it is as good as nothing.
_FULL_BYTES = 64 * 1024
_CUT = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' AND application_name LIKE ANY($1)
"""


async def inject(site: Site) -> str:
    """Does the fault; a note for people. Raises NotPossible before anything was done."""
    cells = touched_cells(site.spec, site.cells)
    if cells:
        # Applied last: the cells must be there again.
        site.remember(Undo(Remedy.GIVE_BACK, ",".join(sorted(cells)), await _owners(site)))
    return await _INJECTORS[site.spec.fault](site)


async def _owners(site: Site) -> str:
    slot_map = await site.slot_map()
    return json.dumps([[item.first, item.last, item.cell] for item in slot_map.ranges])


async def _cell_loss(site: Site) -> str:
    return _kill(site, site.names("cell", cell=site.spec.cell), f"cell {site.spec.cell}")


async def _region_loss(site: Site) -> str:
    names = [
        name
        for cell in sorted(touched_cells(site.spec, site.cells))
        for name in site.names("cell", "relay", "redis", cell=cell)
    ]
    return _kill(site, names, site.spec.region)


async def _nats_loss(site: Site) -> str:
    return _kill(site, site.names("nats"), "NATS")


async def _redis_loss(site: Site) -> str:
    return _kill(site, site.names("redis", cell=site.spec.cell), "Redis")


async def _etcd_member_loss(site: Site) -> str:
    members = site.names("etcd")
    note = _kill(site, members[-1:], "an etcd member")
    return note + ("; it was the only one" if len(members) == 1 else f" of {len(members)}")


async def _etcd_quorum_loss(site: Site) -> str:
    members = site.names("etcd")
    majority = members[: len(members) // 2 + 1]
    return f"{_stop(site, majority, 'etcd')} of {len(members)} members"


async def _pause(site: Site) -> str:
    return _stop(site, site.names("cell", cell=site.spec.cell), f"cell {site.spec.cell}")


def _kill(site: Site, names: Iterable[str], what: str) -> str:
    names = list(names)
    if not names:
        raise NotPossible(f"no process of {what} runs")
    for name in names:
        site.remember(Undo(Remedy.START, name))
    pids = [launcher.kill(site.data, name, signal.SIGKILL) for name in names]

    def proof() -> Proof:
        running = [name for name in names if site.identities(name)]
        return Proof(not running, f"{', '.join(running) or 'none of them'} ran")

    site.proof = proof
    told = ", ".join(f"{name} ({pid})" for name, pid in zip(names, pids, strict=True))
    return f"SIGKILL to {told}"


def _stop(site: Site, names: Iterable[str], what: str) -> str:
    found = [identity for name in names for identity in site.identities(name)]
    if not found:
        raise NotPossible(f"no process of {what} runs")
    for identity in found:
        site.remember(Undo(Remedy.CONTINUE, str(identity.pid), identity.started))
    for identity in found:
        send(identity, signal.SIGSTOP)

    def proof() -> Proof:
        still = sum(is_stopped(identity) for identity in found)
        return Proof(still == len(found), f"{still} of {len(found)} processes stood still")

    site.proof = proof
    return f"SIGSTOP to {len(found)} processes of {what}"


async def _partition(site: Site) -> str:
    spec = site.spec

    def cut_off_from(other: str) -> Callable[[], list[int]]:
        names = [f"cell-{other}", f"relay-{other}"]
        return lambda: [item.pid for name in names for item in site.identities(name)]

    # First, since there may be nobody to send money.
    tried = transfers_across(site)
    passage = Passage()
    for cell, other in ((spec.cell, spec.other_cell), (spec.other_cell, spec.cell)):
        await _detour(site, cell, Weather(cut_off=cut_off_from(other)), passage)

    def proof() -> Proof:
        seen = f"{passage.cut} connections got no answer; {tried()}"
        return Proof(passage.cut > 0, seen)

    site.proof = proof
    return (
        f"{spec.cell} and {spec.other_cell} do not reach each other (TCP proxies: cells on "
        "loopback share a network namespace)"
    )


async def _latency(site: Site) -> str:
    late_ms = latency_ms_of(site.spec)
    lost = site.spec.loss_ratio or 0.01
    passage = Passage()
    weather = Weather(latency_s=late_ms / 1000, loss_ratio=lost)
    await _detour(site, site.spec.cell, weather, passage)

    def proof() -> Proof:
        seen = f"{passage.pieces} pieces of {passage.connections} connections, {passage.lost} lost"
        return Proof(passage.pieces > 0, seen)

    site.proof = proof
    return f"{late_ms} ms each way to cell {site.spec.cell}, {lost:.1%} retransmitted (TCP proxy)"


async def _detour(site: Site, cell: str, weather: Weather, passage: Passage) -> None:
    addresses = await site.addresses(cell)
    if not addresses:
        raise NotPossible(f"cell {cell} holds no lease")
    await site.held.enter_async_context(
        detour(site.store, site.group, cell, addresses, weather, passage)
    )


async def _database_connection_loss(site: Site) -> str:
    url = site.state().database_url.replace("+asyncpg", "")
    cells = [site.spec.cell] if site.spec.cell else sorted(site.cells)
    # As cells and relays name themselves: cellpay-a-lanes, cellpay-a-reads, cellpay-a-relay.
    patterns = [f"cellpay-{cell}-%" for cell in cells]
    cut = 0

    async def cut_again_and_again() -> None:
        nonlocal cut
        while True:
            # Our own connection may be cut by another drill's or die with the database.
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection = await asyncpg.connect(url, timeout=5)
                try:
                    while True:
                        await connection.execute("SELECT 1")
                        cut += await connection.fetchval(_CUT, patterns)
                        await asyncio.sleep(_CUT_INTERVAL_S)
                finally:
                    connection.terminate()
            await asyncio.sleep(_CUT_INTERVAL_S)

    site.held.callback(site.group.create_task(cut_again_and_again()).cancel)
    site.proof = lambda: Proof(cut > 0, f"{cut} connections were cut")
    return f"connections of cells {', '.join(cells)} are cut every {_CUT_INTERVAL_S} s"


async def _full_disk(site: Site) -> str:
    """JetStream's folder on a tmpfs of nearly its own size, the rest of it filled up."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        raise NotPossible("mounting a small tmpfs needs root")
    if not site.names("nats"):
        raise NotPossible("NATS does not run")
    folder = site.data / "nats" / "data"
    site.remember(Undo(Remedy.UNMOUNT, str(folder)))
    await asyncio.to_thread(launcher.stop, site.data, "nats")
    await asyncio.to_thread(mounts.cover, folder)
    await asyncio.to_thread(launcher.start, site.data, "nats")
    filled = await asyncio.to_thread(mounts.fill, folder)

    def proof() -> Proof:
        free = shutil.disk_usage(folder).free
        return Proof(free < _FULL_BYTES, f"{free} bytes were free")

    site.proof = proof
    return f"{filled} bytes fill the tmpfs under JetStream (other disks are as they were)"


async def _clock_jump(site: Site) -> str:
    """The cell starts anew under libfaketime with the true time; then its clock jumps."""
    cell, offset = site.spec.cell, site.spec.clock_offset_s or 3_600
    library = _faketime()
    name = f"cell-{cell}"
    offset_file = site.data / "drills" / site.spec.name / "clock"
    offset_file.write_text("+0\n")
    environment = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(offset_file),
        "FAKETIME_CACHE_DURATION": "1",
        # Deadlines and sleeps go by the monotonic clock, which does not jump on real machines.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    site.remember(Undo(Remedy.RESTART, name))
    await restart_drained(site, name, environment)
    offset_file.write_text(f"{offset:+d}\n")

    def proof() -> Proof:
        under = [item for item in site.identities(name) if uses(item, library)]
        return Proof(bool(under), f"{len(under)} processes of {name} run under libfaketime")

    site.proof = proof
    return f"the clock of cell {cell} jumps by {offset:+d} s (libfaketime; monotonic goes on)"


def _faketime() -> Path:
    try:
        import libfaketime
    except ImportError:
        raise NotPossible("libfaketime is missing: pip install 'cellpay[local]'") from None
    found = Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"
    if not found.exists():
        raise NotPossible(f"libfaketime has no library at {found}")
    return found


async def restart_drained(site: Site, name: str, environment: Mapping[str, str]) -> None:
    """A planned restart of a cell: its slots are away meanwhile, and come back to it."""
    cell = name.removeprefix("cell-")
    before = (await site.slot_map()).owned_by(cell)
    if before and site.names("cell", cell=cell):
        request = pb.StartOperationRequest(
            kind=pb.Operation.KIND_DRAIN, cell=cell, reason=f"drill {site.spec.name}"
        )
        await site.operate(request)
    await asyncio.to_thread(launcher.stop, site.data, name)
    await asyncio.to_thread(launcher.start, site.data, name, environment=environment)
    await site.wait_live(cell)
    for item in before:
        request = pb.StartOperationRequest(
            kind=pb.Operation.KIND_MOVE, first=item.first, last=item.last, target=cell,
            reason=f"drill {site.spec.name}",
        )  # fmt: skip
        await site.operate(request)


_INJECTORS: Mapping[Fault, Callable[[Site], Awaitable[str]]] = {
    Fault.CELL_LOSS: _cell_loss,
    Fault.REGION_LOSS: _region_loss,
    Fault.PAUSE: _pause,
    Fault.PARTITION: _partition,
    Fault.LATENCY: _latency,
    Fault.ETCD_MEMBER_LOSS: _etcd_member_loss,
    Fault.ETCD_QUORUM_LOSS: _etcd_quorum_loss,
    Fault.DATABASE_CONNECTION_LOSS: _database_connection_loss,
    Fault.NATS_LOSS: _nats_loss,
    Fault.REDIS_LOSS: _redis_loss,
    Fault.FULL_DISK: _full_disk,
    Fault.CLOCK_JUMP: _clock_jump,
    Fault.SLOW_CHANNEL: slow_channel,
    Fault.OVERLOAD: overload,
}
