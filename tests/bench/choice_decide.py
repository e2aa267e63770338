"""What one decision takes, with the statistics moving meanwhile → bench/results/choice_decide.json.

Wall time and processor time of the thread, both: on a machine that others use too, the first has
the others' turns in its tail.
"""

from __future__ import annotations

import argparse
import gc
import logging
import random
import time

import structlog

from cells.breakers.board import Board
from cells.channels.model import Answer, AnswerReason, Verdict
from cells.choice.chooser import Chooser
from cells.choice.document import encode
from cells.choice.model import Facts
from cells.choice.terms import make_terms
from router.ids import Kind, derive
from router.policies.channels import (
    Band,
    ChannelPolicy,
    ChoicePolicy,
    Commitment,
    Fees,
    Hours,
    Quotas,
    Tier,
)
from tests.bench.figures import RESULTS, Figures

_SCHEMES = ("visa", "mastercard", "unionpay", "amex", "jcb", "discover", "elo", "mir")
_AT_MS = 1_784_073_600_000
_WARM = 500


def _channel(number: int, schemes: tuple[str, ...]) -> ChannelPolicy:
    tiers = (Tier(0, 20, 15_000 + 100 * number), Tier(10**8, 15, 14_000 + 100 * number))
    return ChannelPolicy(
        f"bank-{number}",
        {"USD": Band(100, 500_000)},
        (Fees("USD", tiers, falling=True),),
        schemes=schemes,
        hours=(Hours(),) if number % 5 == 0 else (),
        quotas=Quotas(per_minute=10_000_000),
        commitments=(Commitment("USD", 10**12, 2_000),) if number % 4 == 0 else (),
    )


def _chooser(count: int, some: bool, chance: random.Random) -> Chooser:
    """`some`: each takes two of eight schemes; else all take all."""
    channels = [
        _channel(number, tuple(chance.sample(_SCHEMES, 2)) if some else ())
        for number in range(count)
    ]
    chooser = Chooser(Board())
    chooser.use(make_terms([*channels, ChoicePolicy(bands={"USD": (2_000, 10_000)})], {}))
    return chooser


def _measure(figures: Figures, label: str, chooser: Chooser, decisions: int) -> None:
    chance = random.Random(7)
    wall: list[int] = []
    processor: list[int] = []
    encoded: list[int] = []
    lengths: list[int] = []
    for number in range(decisions + _WARM):
        facts = Facts(
            derive(Kind.CHARGE, number % 1024, str(number)), chance.randrange(100, 20_000), "USD",
            _AT_MS + 5 * number, f"merchant-{number % 100}", scheme=_SCHEMES[number % 2],
        )  # fmt: skip
        used, began = time.thread_time_ns(), time.perf_counter_ns()
        decision = chooser.choose(facts)
        ended, used_then = time.perf_counter_ns(), time.thread_time_ns()
        text = encode(decision)
        encoded.append(time.thread_time_ns() - used_then)
        lengths.append(len(text))
        wall.append(ended - began)
        processor.append(used_then - used)
        # Statistics move with every answer; line-ups are refreshed beside, about once a second.
        for channel in decision.order[:1]:
            chooser.take(facts, channel)
            good = chance.random() < 0.93
            answer = Answer(Verdict.APPROVED) if good else Answer(
                Verdict.DECLINED, AnswerReason.DO_NOT_HONOUR
            )  # fmt: skip
            chooser.note(facts, channel, answer, 300.0)
        if number % 1000 == 0:
            chooser.refresh()
    for name, found in (("wall", wall), ("cpu", processor)):
        ordered = sorted(found[_WARM:])
        suffix = "" if name == "cpu" else "_wall"
        for part, percent in ((0.5, "p50"), (0.99, "p99")):
            value = ordered[int(part * len(ordered))] / 1000
            figures.add(f"decide_{percent}_us{suffix}_{label}", "µs", [value])
    figures.add(f"encode_p50_us_{label}", "µs", [sorted(encoded)[len(encoded) // 2] / 1000])
    figures.add(f"document_bytes_{label}", "bytes", [sorted(lengths)[len(lengths) // 2]])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.choice_decide")
    parser.add_argument("--decisions", type=int, default=20_000)
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    # As cells do (cells/serve.py).
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    figures = Figures()
    figures.notes = {"decisions": given.decisions, "cpu": "figures without `wall`: thread time"}
    for count, some, label in ((10, False, "10"), (100, True, "100"), (100, False, "100_eligible")):
        _measure(figures, label, _chooser(count, some, random.Random(1)), given.decisions)
    figures.write(RESULTS / "choice_decide.json")


if __name__ == "__main__":
    main()
