"""`cellctl risk hits`: how often each rule matched, summed over the mesh."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import aiohttp
import typer
from prometheus_client.parser import text_string_to_metric_families

from control.cellctl.failures import NoMesh
from control.cellctl.options import DATA, DEFAULT_DATA, JSON
from control.cellctl.risk.documents import risk_policies
from control.cellctl.session import Session
from control.cellctl.show import errors, print_json, table
from router.policies.model import PolicyKind

_SAMPLE = "cellpay_risk_rule_hits_total"
_TIMEOUT = aiohttp.ClientTimeout(total=5.0)


def register(app: typer.Typer) -> None:
    app.command()(hits)


def hits(data: DATA = DEFAULT_DATA, as_json: JSON = False) -> None:
    """Requests that each rule matched since its cells' processes started; rules that never did
    too."""
    rows = asyncio.run(_hits(Session.open(data)))
    columns = ("rule", "document", "mode", "hits", "of them in the shadow")
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        table("hits", columns, rows)


async def _hits(session: Session) -> list[tuple[Any, ...]]:
    addresses = session.places.probes
    if not addresses:
        raise NoMesh("it is not known where cells answer Prometheus (`probes`): ask Prometheus")
    pages = await asyncio.gather(*(_page(address) for address in addresses.values()))
    silent = [cell for cell, page in zip(addresses, pages, strict=True) if not page]
    if silent:
        errors.print(f"no answer from {', '.join(silent)}: the sums are without")
    counted = summed(pages)
    rows = []
    for policy in await risk_policies(session):
        if policy.kind != PolicyKind.RISK_RULES or not policy.document:
            continue
        for rule in json.loads(policy.document).get("rules", ()):
            live, shadow = (counted[rule["name"], mode] for mode in ("live", "shadow"))
            mode = rule.get("mode", "live")
            rows.append((rule["name"], policy.name, mode, live + shadow, shadow))
    return sorted(rows, key=lambda row: (-row[3], row[0]))


def summed(pages: Sequence[str]) -> Counter[tuple[str, str]]:
    """Rule and mode → hits, of all processes."""
    found: Counter[tuple[str, str]] = Counter()
    for page in pages:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name == _SAMPLE:
                    found[sample.labels["rule"], sample.labels["mode"]] += int(sample.value)
    return found


async def _page(address: str) -> str:
    """Empty when nobody answers."""
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as client,
            client.get(f"http://{address}/metrics") as answer,
        ):
            return await answer.text()
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return ""
