"""What kubelets and Prometheus ask: whether a process lives, takes work, and how it fares."""

from __future__ import annotations

import asyncio

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from router.metrics import Calls, Metrics, gauge, merged
from router.probes import Probes


def _value(text: str, name: str, **labels: str) -> float:
    (found,) = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return found


async def test_readiness_follows_the_process_and_liveness_does_not() -> None:
    ready = False

    async def page(openmetrics: bool) -> str:
        return Metrics().render(openmetrics=openmetrics)

    probes = Probes(lambda: ready, page)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(probes.run("127.0.0.1:0"))
        while not probes.address:
            await asyncio.sleep(0.005)
        async with aiohttp.ClientSession() as client:

            async def ask(path: str) -> tuple[int, str]:
                async with client.get(f"http://{probes.address}{path}") as answer:
                    return answer.status, await answer.text()

            assert ((await ask("/live"))[0], (await ask("/ready"))[0]) == (200, 503)
            ready = True
            assert ((await ask("/live"))[0], (await ask("/ready"))[0]) == (200, 200)
            assert (await ask("/anything"))[0] == 404
            assert _value((await ask("/metrics"))[1], "process_resident_memory_bytes") > 0
        task.cancel()


async def test_without_an_address_nobody_is_asked() -> None:
    async def page(openmetrics: bool) -> str:
        return ""

    await Probes(lambda: True, page).run("")


def test_calls_are_counted_by_method_status_and_duration() -> None:
    calls = Calls()
    for duration_s in (0.0004, 0.03, 0.03, 99.0):
        calls.note("S/Pay", "OK", duration_s)
    calls.note("S/Pay", "UNAVAILABLE", 0.2)
    text = Metrics(calls).render()
    name = "cellpay_request_duration_seconds"
    assert _value(text, f"{name}_count", method="S/Pay", code="OK") == 4
    assert _value(text, f"{name}_bucket", code="OK", le="0.001") == 1
    assert _value(text, f"{name}_bucket", code="OK", le="0.05") == 3
    assert _value(text, f"{name}_bucket", code="OK", le="10.0") == 3
    assert _value(text, f"{name}_bucket", code="OK", le="+Inf") == 4
    assert _value(text, f"{name}_count", code="UNAVAILABLE") == 1
    assert abs(_value(text, f"{name}_sum", code="OK") - 99.0604) < 1e-6


def test_pages_of_many_processes_become_one_that_says_whose_is_what() -> None:
    pages = []
    for number in range(3):
        calls = Calls()
        for _ in range(number + 1):
            calls.note("S/Pay", "OK", 0.01)
        waiting = gauge("cellpay_lane_waiting", "Waiting.", [((), number)])
        pages.append((str(number), Metrics(calls, lambda w=waiting: [w]).render()))  # type: ignore[misc]
    # One that does not answer has an empty page.
    text = merged([*pages, ("3", "")])
    for number in range(3):
        who = str(number)
        count = "cellpay_request_duration_seconds_count"
        assert _value(text, count, process=who) == number + 1
        assert _value(text, "cellpay_lane_waiting", process=who) == number
    # Each family once, or Prometheus refuses the page.
    assert text.count("# TYPE cellpay_lane_waiting gauge") == 1
