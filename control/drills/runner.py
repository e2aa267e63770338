"""The process that carries a drill out, from the plan to the report.

    python -m control.drills.runner DIR NAME

It takes over where the journal stands: a drill whose process died is healed, checked and reported,
never gone on with. A second process of the same kind waits for the end of the first (the
watchdog), and a controller looks after drills that have nobody (`keeper`).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import grpc
import structlog
import uvloop
from cellpay.control.v1 import control_pb2

from control.audit import audit_put, audit_record
from control.drills import rules
from control.drills.injectors import inject
from control.drills.model import Check, Drill, Event, State, Undo
from control.drills.probe import POLICY, Probe, users_of
from control.drills.report import Deed, as_json, as_markdown, document
from control.drills.site import NotPossible, Proof, Site, Unmovable, open_site, tls_of
from control.drills.store import EndRequest, Journal
from control.drills.undoing import heal
from control.drills.watching import start_process, take_over_from
from control.mesh.errors import MeshError
from control.mesh.processes import Identity
from router.client import connect
from router.errors import Refusal
from router.logs import configure_logs
from router.store.model import StoreUnavailable

log = structlog.get_logger(__name__)

_TICK_S = 0.1
_LOCK_WAIT_S = 1.0
_BOOKS_TIMEOUT_S = 60.0
# What is in doubt ends within this.
_SETTLE_S = 60.0
_SETTLE_POLL_S = 1.0
_STEADY_WAIT_S = 30.0
_AUDIT_TRIES_MAX = 60
_DEEDS_MAX = 50
_DEEDS_TIMEOUT_S = 5.0
_DIED = "the process that carried it out died"


class Books(NamedTuple):
    """What `cellctl verify` found."""

    in_doubt: int
    # Checks that do not hold.
    broken: tuple[str, ...]


class Runner:
    def __init__(self, journal: Journal, drill: Drill) -> None:
        self._journal = journal
        self.drill = drill
        self._probe: Probe | None = None
        # Of this process's clock; 0: another process injected.
        self._injected_ms = 0
        self._outage: dict[str, int] = {}

    def _save(self, drill: Drill) -> None:
        self._journal.save(drill)
        self.drill = drill

    def _to(self, event: Event, note: str = "") -> None:
        self._save(self.drill.after(event, time_ms=time.time_ns() // 1_000_000, note=note))
        log.info("drill", name=self.drill.spec.name, state=self.drill.state, note=note)

    async def _end(self, site: Site, event: Event, note: str = "") -> None:
        """The report first: who sees that a drill has ended looks for it."""
        ended = self.drill.after(event, time_ms=time.time_ns() // 1_000_000, note=note)
        content = document(ended, self._outage, await deeds_since(site, ended))
        self._journal.write_report(ended.run, as_markdown(content), as_json(content))
        self._save(ended)
        log.info("drill", name=ended.spec.name, state=ended.state, note=note)

    def remember(self, undo: Undo) -> None:
        self._save(replace(self.drill, undo=(*self.drill.undo, undo)))

    async def run(self, site: Site, *, resumed: bool) -> None:
        """From whatever state to the end, once."""
        if resumed:
            # Without a probe: the mesh may not even let one open before it is healed.
            await self._resume(site)
        async with self._probing(site):
            if not self.drill.ended and self.drill.state == State.PLANNED:
                await self._from_the_start(site)
            if self.drill.state == State.HEALED:
                check = await self._check("after", self.drill.spec.check_s)
                self._to(Event.CHECKED, check.why)
        if self.drill.state == State.CHECKED_AFTER:
            event, verdict = rules.conclusion(self.drill)
            self._save(replace(self.drill, verdict=verdict))
            await self._end(site, event)

    async def _resume(self, site: Site) -> None:
        resumption = rules.resumption(self.drill)
        if resumption.refuse:
            await self._end(site, Event.IMPOSSIBLE, _DIED)
        elif resumption.heal:
            self._cut_short(_DIED)
            await self._heal(site)

    @asynccontextmanager
    async def _probing(self, site: Site) -> AsyncIterator[None]:
        """Payments all the while. Where they cannot even begin, the checks say so."""
        if self.drill.ended:
            yield
            return
        data, spec = self._journal.data, self.drill.spec
        async with connect(
            data / "xds" / "client.json", policy=POLICY, fallback=tls_of(data, "client")
        ) as mesh:
            try:
                users = users_of(await site.slot_map(), f"drill-{spec.name}")
                probe = Probe(mesh, users, f"drill-{spec.name}-shop")
                await probe.open()
            except (grpc.aio.AioRpcError, Refusal, StoreUnavailable, NotPossible) as error:
                log.warning("no probe", why=str(error))
                yield
                return
            self._probe = site.probe = probe
            task = site.group.create_task(probe.run(spec.probe_rate_per_s))
            try:
                yield
            finally:
                task.cancel()

    async def _from_the_start(self, site: Site) -> None:
        spec = self.drill.spec
        check = await self._check("before", spec.check_s)
        if not check.holds or self._end_request():
            why = check.why or "it was ended before it began"
            await self._end(site, Event.IMPOSSIBLE, why)
            return
        self._to(Event.STEADY)
        try:
            note = await inject(site)
        except NotPossible as error:
            # Written down before it turned out that nothing can be done.
            self._save(replace(self.drill, undo=()))
            await self._end(site, Event.IMPOSSIBLE, str(error))
            return
        except (MeshError, Unmovable, StoreUnavailable, OSError) as error:
            self._cut_short(f"the fault could not be done: {error}")
            await self._heal(site)
            return
        self._injected_ms = _now_ms()
        self._to(Event.INJECTED, note)
        await self._watch(site)
        await self._heal(site)

    async def _watch(self, site: Site) -> None:
        """Until somebody ends it, its lease runs out or the steady state breaks badly."""
        spec = self.drill.spec
        while True:
            now = _now_ms()
            why = rules.breaks_badly(self._seen(), now, spec.hypothesis)
            if why:
                self._cut_short(why)
                return
            ended = self._end_request()
            watched_s = (now - self._injected_ms) / 1000
            if self.drill.state == State.INJECTED and watched_s >= spec.observe_s:
                await self._observe(site.proof())
            if self.drill.state == State.INJECTED and ended:
                self._cut_short(f"ended by {ended.actor} before it was judged")
            if ended or watched_s >= spec.lease_s:
                return
            await asyncio.sleep(_TICK_S)

    async def _observe(self, proof: Proof) -> None:
        books = await self._books(during=True)
        check = rules.judge("during", self._seen(), books, self.drill.spec.hypothesis)
        if not proof.felt:
            check = rules.unproven(check, proof.seen)
        self._save(replace(self.drill, checks=(*self.drill.checks, check)))
        self._to(Event.OBSERVED, "; ".join(filter(None, (proof.seen, check.why))))

    def _samples(self) -> Sequence[rules.Sample]:
        return self._probe.samples if self._probe else ()

    def _seen(self) -> list[rules.Sample]:
        """What has ended since the fault came."""
        return [item for item in self._samples() if item.ended_ms >= self._injected_ms]

    def _end_request(self) -> EndRequest | None:
        return self._journal.end_request(self.drill.run)

    def _cut_short(self, why: str) -> None:
        if not self.drill.cut_short:
            self._save(replace(self.drill, cut_short=why))

    async def _heal(self, site: Site) -> None:
        wrong = await heal(site, self.drill.undo)
        if self._injected_ms:
            healed_ms = _now_ms()
            found = rules.outage_ms(self._samples(), self._injected_ms, healed_ms)
            self._outage = dict(found)
            lasted_ms, late_ms = (
                healed_ms - self._injected_ms,
                self.drill.spec.hypothesis.p99_max_ms,
            )
            burnt = rules.budget_burnt(self._seen(), lasted_ms, late_ms)
            worst = max(found.values(), default=0)
            self._save(replace(self.drill, outage_ms=worst, budget_burnt=burnt))
        if wrong:
            self._save(replace(self.drill, verdict="broken"))
            await self._end(site, Event.UNHEALED, "; ".join(wrong))
            return
        self._to(Event.HEALED, self.drill.cut_short)

    async def _check(self, phase: str, seconds: int) -> Check:
        """The steady state. It has a while to settle: warm channels, queues that empty."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _STEADY_WAIT_S
        bound = self.drill.spec.hypothesis
        while True:
            since = _now_ms()
            await asyncio.sleep(seconds)
            fresh = [item for item in self._samples() if item.began_ms >= since]
            holds = rules.judge(phase, fresh, rules.Audited(rules.BOOKS_OK), bound).holds
            if holds or self._probe is None or loop.time() > until:
                break
        check = rules.judge(phase, fresh, await self._books(), bound)
        self._save(replace(self.drill, checks=(*self.drill.checks, check)))
        return check

    async def _books(self, during: bool = False) -> rules.Audited:
        """What the audit says when all that was begun has ended; meanwhile: what it says once."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _SETTLE_S
        while True:
            found = await asyncio.to_thread(_verify, self._journal.data)
            late = during or loop.time() > until
            if found is None and late:
                return rules.Audited(rules.BOOKS_UNREACHABLE)
            if found is not None and found.broken:
                return rules.Audited(rules.BOOKS_BROKEN, found.broken)
            if found is not None and (late or found.in_doubt == 0):
                return rules.Audited(rules.BOOKS_OK)
            await asyncio.sleep(_SETTLE_POLL_S)


def _now_ms() -> int:
    return int(asyncio.get_running_loop().time() * 1000)


def _verify(data: Path) -> Books | None:
    """The audit as operators run it, in a process of its own; None when it could not be had."""
    command = [sys.executable, "-m", "control.cellctl.main", "verify", "--json"]
    try:
        done = subprocess.run(
            [*command, "--data", str(data)],
            stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_BOOKS_TIMEOUT_S,
        )  # fmt: skip
        found = json.loads(done.stdout)
        broken = [item["check"] for item in found["findings"] if item["severity"] == "broken"]
        return Books(int(found["figures"]["in_doubt"]), tuple(broken))
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None


async def deeds_since(site: Site, drill: Drill) -> list[Deed]:
    """The steps of operations since the drill began, as far as the control plane tells."""
    try:
        request = control_pb2.ListOperationsRequest(page_size=_DEEDS_MAX)
        listed = await site.control.ListOperations(request, timeout=_DEEDS_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        log.warning("what the mesh did is not in the report", why=error.details())
        return []
    name = control_pb2.Operation.Kind.Name
    return [
        Deed(
            step.time.ToMilliseconds(),
            f"{name(item.kind).removeprefix('KIND_').lower()} {item.cell or ' '.join(item.cells)} "
            + control_pb2.Operation.Step.Name(step.step).removeprefix("STEP_").lower(),
            step.note or item.reason,
        )
        for item in listed.operations
        for step in item.history
        if step.time.ToMilliseconds() >= drill.history[0].time_ms
    ]


async def _record_end(site: Site, request: EndRequest, name: str) -> None:
    """The audit record of an end that came while etcd was away."""
    record = audit_record(request.actor, "drill.end", name, request.reason)
    for _ in range(_AUDIT_TRIES_MAX):
        try:
            await site.store.commit(expect={}, puts=audit_put(record))
            return
        except StoreUnavailable:
            await asyncio.sleep(1.0)
    log.error("the end of a drill is not in the audit log", name=name, actor=request.actor)


async def carry_out(journal: Journal, *, resumed: bool) -> None:
    """Does what is left of the drill; nothing when it has ended."""
    drill = journal.load()
    if drill is None or drill.ended:
        return
    runner = Runner(journal, drill)
    async with (
        asyncio.TaskGroup() as group,
        open_site(journal.data, drill.spec, group, runner.remember) as site,
    ):
        await runner.run(site, resumed=resumed)
        request = journal.end_request(drill.run)
        if request is not None and not request.audited:
            await _record_end(site, request, drill.spec.name)


def main() -> None:
    data, name, *rest = sys.argv[1:]
    journal = Journal(Path(data), name)
    configure_logs(drill=name)
    resumed = bool(rest)
    if rest and rest[0] == "--after":
        take_over_from(journal, Identity(int(rest[1]), rest[2]))
    with journal.owned(_LOCK_WAIT_S) as ours:
        if not ours:
            return
        if not rest:
            start_process(journal, "--after", of_this_process=True)
        uvloop.run(carry_out(journal, resumed=resumed))


if __name__ == "__main__":
    main()
