"""What the console makes of counters, policies and reports."""

from __future__ import annotations

from typing import Any

from control.cellctl.console.channels import breakers_document, channels_document
from control.cellctl.console.flow import (
    Look,
    Series,
    answers_document,
    between,
    flow_document,
    grown,
)
from control.cellctl.console.meter import read_page
from router.metrics import Calls, Metrics, merged


def look(at_s: float, **cells: dict[Series, float]) -> Look:
    return Look(at_s, cells)


def calls(slots: str, code: str, process: str = "0") -> Series:
    labels = {"code": code, "method": "M", "process": process, "slots": slots}
    return Series("cellpay_slot_requests_total", tuple(sorted(labels.items())))


def answers(channel: str, verdict: str) -> Series:
    labels = {"channel": channel, "operation": "o", "process": "0", "verdict": verdict}
    return Series("cellpay_bank_answers_total", tuple(sorted(labels.items())))


def test_a_counter_that_begins_anew_has_counted_from_nothing() -> None:
    one, other = calls("0000-0063", "OK"), calls("0000-0063", "INTERNAL")
    assert grown({one: 10}, {one: 25}) == {one: 15}
    assert grown({one: 10}, {one: 4}) == {one: 4}
    # Its first failure.
    assert grown({one: 10}, {one: 10, other: 2}) == {one: 0, other: 2}


def test_of_a_process_that_was_not_heard_before_nothing_is_known() -> None:
    one, late = calls("0000-0063", "OK"), calls("0000-0063", "OK", process="1")
    assert grown({one: 10}, {one: 11, late: 90_000}) == {one: 1}


def test_rates_are_of_the_window_and_of_two_looks_at_least() -> None:
    looks = [look(at_s) for at_s in (0.0, 4.0, 13.0)]
    assert between(looks[:1], 10) is None
    assert between(looks, 10) == (looks[1], looks[2])
    # Nobody looked for a while: better an old look than none.
    assert between([looks[0], looks[2]], 10) == (looks[0], looks[2])


def test_what_the_rules_refuse_is_a_success_and_faults_are_not() -> None:
    before = {calls("0000-0063", code): 0.0 for code in ("OK", "FAILED_PRECONDITION", "INTERNAL")}
    after = dict(zip(before, (70.0, 20.0, 10.0), strict=True))
    found = flow_document([look(0, a=before), look(10, a=after)], ["a", "b"])
    (only,) = found["ranges"]
    assert only == {
        "slots": "0-63", "cells": ["a"], "requests_per_s": 10.0, "success_percent": 90.0,
        "p99_ms": None,
    }  # fmt: skip
    mine, theirs = found["cells"]
    assert (mine["requests_per_s"], mine["success_percent"], mine["silent"]) == (10.0, 90.0, False)
    # It did not answer: that is said, and no figure is made up.
    assert (theirs["requests_per_s"], theirs["silent"]) == (None, True)


def test_one_look_says_nothing_yet() -> None:
    found = flow_document([look(0, a={calls("0000-0063", "OK"): 5.0})], ["a"])
    assert (found["window_s"], found["ranges"]) == (0.0, [])
    assert found["cells"][0]["requests_per_s"] is None


def test_pages_of_cells_are_read_as_they_are_written() -> None:
    source = Calls()
    slots = source.of_slots("cellpay.payments.v1.PaymentsService/Pay")
    metrics = Metrics(source)
    # Nothing was asked of it yet, but it was heard.
    first = read_page(merged([("0", metrics.render())]))
    for _ in range(99):
        slots.note(70, "OK", 0.004)
    slots.note(127, "UNAVAILABLE", 4.0)
    after = read_page(merged([("0", metrics.render())]))
    (only,) = flow_document([look(0, a=dict(first)), look(2, a=dict(after))], ["a"])["ranges"]
    assert (only["slots"], only["requests_per_s"], only["success_percent"]) == (
        "64-127",
        50.0,
        99.0,
    )
    # 99 of 100 took less than 5 ms.
    assert only["p99_ms"] == 5.0


def test_a_channel_fails_when_its_bank_does_and_not_when_cards_are_declined() -> None:
    kinds = [answers("north", "approved"), answers("north", "declined"), answers("south", "failed")]
    looks = [
        look(0, a=dict.fromkeys(kinds, 0.0)),
        look(30, a=dict(zip(kinds, (1, 9, 2), strict=True))),
    ]
    found = {
        item["channel"]: item for item in channels_document([], [], answers_document(looks), [])
    }
    assert (found["north"]["health"], found["south"]["health"]) == ("sound", "failing")
    assert found["north"]["answers"]["approved_percent"] == 10.0
    assert found["south"]["answers"]["verdicts_since_start"] == {"failed": 2}


def report(process: str, cell: str, **states: str) -> dict[str, Any]:
    return {
        "process": process, "cell": cell,
        "breakers": [
            {"dependency": name, "state": f"STATE_{state.upper()}", "forced": False}
            for name, state in states.items()
        ],
    }  # fmt: skip


def policy(kind: str, name: str, **document: Any) -> dict[str, Any]:
    return {
        "kind": kind, "name": name, "document": document, "revision": 7, "actor": "ann",
        "reason": "r",
    }  # fmt: skip


def test_a_cells_breaker_is_as_bad_as_its_worst_process() -> None:
    reports = [
        report("a-1", "a", redis="closed", nats="closed"),
        report("a-2", "a", redis="open", nats="half_open"),
        report("b-1", "b", redis="half_open", nats="closed"),
    ]
    nats, redis = breakers_document([policy("breakers", "x", dependency="nats")], reports)
    assert {cell: found["state"] for cell, found in redis["cells"].items()} == {
        "a": "open", "b": "half_open",
    }  # fmt: skip
    assert nats["cells"]["a"]["state"] == "half_open"
    # A policy that only tunes a breaker forces nothing.
    assert nats["forced_by"] == []


def test_a_breaker_that_is_forced_where_nobody_uses_it_is_shown() -> None:
    forced = policy("breakers", "channel-north-a", dependency="channel:north", force="open",
                    cells=["a"])  # fmt: skip
    (row,) = breakers_document([forced], [])
    assert (row["dependency"], row["cells"]) == ("channel:north", {})
    assert row["forced_by"][0]["cells"] == ["a"]
    (channel,) = channels_document([forced], [row], {}, [])
    assert (channel["channel"], channel["health"]) == ("north", "quiet")


def test_a_channels_breaker_says_more_than_its_figures() -> None:
    row = breakers_document([], [report("a-1", "a", **{"channel:north": "open"})])
    (channel,) = channels_document([], row, {}, [])
    assert channel["health"] == "open"


def test_a_channel_is_shown_with_its_policy_and_its_newest_day() -> None:
    priced = policy("channels", "north", channel="north", fees=[])
    runs = [{"channel": "north", "clearing_date": day} for day in ("2026-11-24", "2026-11-23")]
    (channel,) = channels_document([priced], [], {}, runs)
    assert channel["reconciliation"]["clearing_date"] == "2026-11-24"
    assert channel["policies"] == [
        {"name": "north", "revision": 7, "document": priced["document"]}
    ]  # fmt: skip
