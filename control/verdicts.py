"""When to fail a cell over without being asked, and when to keep one out. Pure.

A lost lease is simple (steps.dead_cell). A grey failure is a cell that holds its lease, answers
health checks and fails payments: it is judged by its own figures, window by window, with
hysteresis, and only while other cells prove that payments can succeed. Where they fail too the
cause is common (the database, the network), and moving slots would help nobody.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum

from control.operations.waves import Figures, Known

# Evidence older than so many windows is forgotten.
_WINDOWS_MERGED_MAX = 10
_HOLD_DOWN_MAX_S = 3600
_NOTHING = Figures()


@dataclass(frozen=True, slots=True)
class FailoverPolicy:
    # The kill switch: without it nothing here starts anything.
    automatic: bool = True
    # Whether payments that fail count, beside a lost lease.
    real_traffic: bool = True
    # A window is bad when so many of its payments fail. Half: a cell that pays at all is better
    # than the stall of moving its users.
    failure_percent: int = 50
    samples_min: int = 20
    windows: int = 3
    # A cell that was failed over a second time must live this long before it is restored.
    hold_down_s: int = 30

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> FailoverPolicy:
        """Fields of other versions are left alone; missing ones have their defaults."""
        known = {field.name for field in fields(FailoverPolicy)}
        document = json.loads(text)
        return FailoverPolicy(**{name: document[name] for name in known & set(document)})


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a cell's windows have shown."""

    # Not enough to judge by yet, and of how many windows.
    pending: Figures = _NOTHING
    merged: int = 0
    # Bad windows in a row.
    bad: int = 0
    # Its last judged window was good.
    well: bool = False


def beat(pulse: Pulse, window: Figures, policy: FailoverPolicy) -> Pulse:
    """The pulse after one more window."""
    seen = pulse.pending.plus(window)
    if seen.samples < policy.samples_min:
        merged = pulse.merged + 1
        if merged >= _WINDOWS_MERGED_MAX:
            # Few payments, all of them good, still show that a well cell is well.
            return Pulse(well=pulse.well and seen.ok > 0 and seen.failed == 0)
        return replace(pulse, pending=seen, merged=merged)
    if seen.failure_percent >= policy.failure_percent:
        return Pulse(bad=pulse.bad + 1)
    return Pulse(well=True)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The grey cell, if there is one; what to remember; what to tell people."""

    cell: str | None
    pulses: Mapping[str, Pulse]
    note: str = ""


def grey_cell(pulses: Mapping[str, Pulse], known: Known, policy: FailoverPolicy) -> Judgement:
    """The cell that fails its payments while others succeed.

    When as many fail as prove well the cause is common: all begin anew, so that the last one to
    come back is not taken for grey.
    """
    grey = sorted(
        (-pulse.bad, cell)
        for cell, pulse in pulses.items()
        if pulse.bad >= policy.windows
        and cell in known.live
        and cell not in known.waiting
        and known.slot_map.slots_of(cell)
    )
    if not grey:
        return Judgement(None, pulses)
    suspects = {cell for cell, pulse in pulses.items() if pulse.bad and cell in known.live}
    well = {cell for cell, pulse in pulses.items() if pulse.well and cell in known.live}
    if len(well) < len(suspects):
        anew = {cell: Pulse() if cell in suspects else pulse for cell, pulse in pulses.items()}
        note = f"payments fail in {', '.join(sorted(suspects))}: no cell's own fault"
        return Judgement(None, anew, note)
    return Judgement(grey[0][1], pulses, f"{-grey[0][0]} bad windows in a row")


@dataclass(frozen=True, slots=True)
class Held:
    """A cell that was failed over without being asked."""

    # How often, until it has been calm for long.
    flaps: int
    # Not restored yet.
    out: bool
    why: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Held:
        document = json.loads(text)
        return Held(document["flaps"], document["out"], document.get("why", ""))

    @staticmethod
    def again(before: Held | None, why: str) -> Held:
        return Held((before.flaps if before else 0) + 1, True, why)


def hold_down_s(flaps: int, policy: FailoverPolicy) -> int:
    """How long a cell must have lived before it is restored. The first failure is forgiven."""
    if flaps <= 1:
        return 0
    return min(policy.hold_down_s << min(flaps - 2, 12), _HOLD_DOWN_MAX_S)


def still_out(held: Mapping[str, Held], known: Known) -> frozenset[str]:
    """Cells that were failed over and have not come back: by a restore, or by slots of any other
    operation while they live."""
    return frozenset(
        cell
        for cell, record in held.items()
        if record.out
        and cell in known.declared
        and not (cell in known.live and cell not in known.waiting and known.slot_map.slots_of(cell))
    )


def barred(
    held: Mapping[str, Held], alive_s: Mapping[str, float], policy: FailoverPolicy
) -> dict[str, str]:
    """Cells that may not be given slots yet, and why. `alive_s`: of the live ones."""
    found = {}
    for cell, record in held.items():
        wait_s = hold_down_s(record.flaps, policy) if record.out else 0
        left_s = wait_s - alive_s.get(cell, 0.0)
        if left_s > 0:
            found[cell] = (
                f"failed over {record.flaps} times ({record.why}); {left_s:.0f} s of its "
                f"{wait_s} s of hold-down are left; --force overrides"
            )
    return found


class Obstacle(StrEnum):
    """Why no failover starts without being asked, in order of precedence."""

    NOT_LEADER = "another controller leads"
    # etcd was away a moment ago: leases may have run out only because nobody could refresh them.
    UNSETTLED = "etcd has not been back for long enough"
    SWITCHED_OFF = "it is switched off"
    HELD_DOWN = "an operator aborted one; `cellctl cell release` lets it be automatic again"
    LEASES_ONLY = "payments that fail do not count, by policy"
    # A limit on what a mistake of ours, or a bad release that spreads, may cost.
    ANOTHER_REGION = "another region is out already"


def obstacle(
    cell: str,
    known: Known,
    held: Mapping[str, Held],
    policy: FailoverPolicy,
    *,
    leads: bool,
    settled: bool,
    grey: bool,
    held_down: Collection[str] = (),
) -> Obstacle | None:
    """What forbids to fail the cell over now; None when nothing does."""
    if not leads:
        return Obstacle.NOT_LEADER
    if not settled:
        return Obstacle.UNSETTLED
    if not policy.automatic:
        return Obstacle.SWITCHED_OFF
    if cell in held_down:
        return Obstacle.HELD_DOWN
    if grey and not policy.real_traffic:
        return Obstacle.LEASES_ONLY
    region = known.regions.get(cell, cell)
    others = {known.regions.get(other, other) for other in still_out(held, known)}
    if others - {region}:
        return Obstacle.ANOTHER_REGION
    return None
