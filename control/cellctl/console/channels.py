"""How the channels fare, and how breakers stand: policies, what processes report, and what banks
answered, put together. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from router.policies.model import CHANNEL_PREFIX

_UNUSUAL = ("open", "half_open")
_CLOSED = "closed"


def breakers_document(
    policies: Sequence[Mapping[str, Any]], reports: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One row a dependency: how its breaker stands in each cell, and which policies force it."""
    rows: dict[str, dict[str, Any]] = {}
    for report in reports:
        for breaker in report["breakers"]:
            row = rows.setdefault(breaker["dependency"], _row(breaker["dependency"]))
            state = breaker["state"].removeprefix("STATE_").lower()
            said = {"process": report["process"], "state": state, "forced": breaker["forced"]}
            cell = row["cells"].setdefault(report["cell"], {"state": _CLOSED, "processes": []})
            cell["processes"].append(said)
            cell["state"] = _worst(item["state"] for item in cell["processes"])
    for policy in policies:
        document = policy["document"]
        if policy["kind"] == "breakers" and document and document.get("force"):
            row = rows.setdefault(document["dependency"], _row(document["dependency"]))
            row["forced_by"].append(
                {
                    "policy": policy["name"],
                    "force": document["force"],
                    "cells": document.get("cells") or [],
                    "actor": policy["actor"],
                    "reason": policy["reason"],
                }
            )
    return [rows[name] for name in sorted(rows, key=lambda name: (":" in name, name))]


def channels_document(
    policies: Sequence[Mapping[str, Any]],
    breakers: Sequence[Mapping[str, Any]],
    answers: Mapping[str, Mapping[str, Any]],
    runs: Iterable[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """One row a channel that anybody knows of. `runs`: of reconciliation, newest day first."""
    known: dict[str, list[Mapping[str, Any]]] = {}
    for policy in policies:
        if policy["kind"] == "channels" and policy["document"]:
            known.setdefault(policy["document"]["channel"], []).append(policy)
    at_breaker = {
        row["dependency"].removeprefix(CHANNEL_PREFIX): row
        for row in breakers
        if row["dependency"].startswith(CHANNEL_PREFIX)
    }
    newest: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        newest.setdefault(run["channel"], run)
    names = sorted({*known, *at_breaker, *answers, *newest})
    return [
        {
            "channel": name,
            "policies": [
                {"name": item["name"], "revision": item["revision"], "document": item["document"]}
                for item in known.get(name, [])
            ],
            "breaker": at_breaker.get(name),
            "answers": answers.get(name),
            "reconciliation": newest.get(name),
            "health": _health(at_breaker.get(name), answers.get(name)),
        }
        for name in names
    ]


def _health(breaker: Mapping[str, Any] | None, answers: Mapping[str, Any] | None) -> str:
    """In one word, the worst first: the breaker knows before the figures do."""
    states = [cell["state"] for cell in breaker["cells"].values()] if breaker else []
    if "open" in states:
        return "open"
    if "half_open" in states:
        return "trying"
    if answers is None or not answers["answers"]:
        return "quiet"
    return "sound" if answers["sound_percent"] >= _SOUND_PERCENT else "failing"


# Fewer answers of its own than this, and a channel is in trouble though no breaker says so yet.
_SOUND_PERCENT = 90.0


def _row(dependency: str) -> dict[str, Any]:
    return {"dependency": dependency, "cells": {}, "forced_by": []}


def _worst(states: Iterable[str]) -> str:
    found = set(states)
    return next((state for state in _UNUSUAL if state in found), _CLOSED)
