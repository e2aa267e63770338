"""What a mesh that runs tells Prometheus."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import aiohttp
import pytest
from cellpay.payments.v1 import payments_pb2
from prometheus_client.parser import text_string_to_metric_families

from control.cellctl.session import Session
from router.client import Mesh
from tests.integration.test_api import opened, ordered
from tests.integration.test_control import cellctl

pytestmark = pytest.mark.mesh
PAY = "cellpay.payments.v1.PaymentsService/Pay"


async def _page(address: str) -> str:
    async with aiohttp.ClientSession() as client, client.get(f"http://{address}/metrics") as answer:
        assert answer.status == 200
        return await answer.text()


def _sum(text: str, name: str, **labels: str) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def _of_all_cells(session: Session) -> list[str]:
    """A page a cell, with both of its processes: the second comes up after the mesh is ready."""
    addresses = [session.state.probes_of(f"cell-{cell}") for cell in session.state.cells]
    async with asyncio.timeout(60):
        while True:
            pages = list(await asyncio.gather(*map(_page, addresses)))
            if all(_sum(page, "cellpay_slots_owned", process="1") for page in pages):
                return pages
            await asyncio.sleep(0.2)


async def test_a_payment_is_counted_in_the_process_that_made_it(
    session: Session, mesh: Mesh
) -> None:
    payer, shop = await opened(mesh, 5_000), await opened(mesh, kind=2)
    order = await ordered(mesh, payer, shop, 1_200)
    count = "cellpay_request_duration_seconds_count"
    before = [_sum(page, count, method=PAY, code="OK") for page in await _of_all_cells(session)]
    for _ in range(3):
        await mesh.payments.Pay(
            payments_pb2.PayRequest(order_id=order.order_id, idempotency_key=f"m-{order.order_id}")
        )
    pages = await _of_all_cells(session)
    after = [_sum(page, count, method=PAY, code="OK") for page in pages]
    assert sum(after) - sum(before) == 3
    assert sum(now > then for now, then in zip(after, before, strict=True)) == 1
    # Each cell has two processes here, and one page of both.
    for page in pages:
        assert _sum(page, "cellpay_slots_owned", process="0") == _sum(
            page, "cellpay_slots_owned", process="1"
        )
        assert _sum(page, "cellpay_business_metrics_up") == 1
        assert _sum(page, "cellpay_lane_commands_total") >= 0
    assert sum(_sum(page, "cellpay_slots_owned", process="0") for page in pages) == 1024


async def test_the_configuration_that_cellctl_prints_is_prometheus_own(
    session: Session, tmp_path: Path
) -> None:
    done = cellctl(session, "scrape-config")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    targets = {
        config["labels"].get("cell", "controller"): config["targets"][0]
        for job in document["scrape_configs"]
        for config in job["static_configs"]
    }
    assert set(targets) == {"a", "b", "c", "controller"}
    page = await _page(targets["controller"])
    assert _sum(page, "cellpay_leads") == 1
    assert _sum(page, "cellpay_cell_lives") == 3
    assert _sum(page, "cellpay_slots_without_a_home") == 0
    if promtool := shutil.which("promtool"):
        path = tmp_path / "prometheus.yaml"
        path.write_text(done.stdout)
        checked = await asyncio.to_thread(
            subprocess.run, [promtool, "check", "config", "--syntax-only", str(path)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert checked.returncode == 0, checked.stdout + checked.stderr
