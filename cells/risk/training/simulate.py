"""A simulated stream of requests, in the order of time, each with its facts and its label.

Everything is allowed: the stream is one that was recorded with all rules in shadow. Facts are taken
before a request takes effect, features before it is observed, so nothing of what comes later, and
nothing of itself, is in them.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from cells.risk.training.fraud import TRAINED, UNSEEN, runs
from cells.risk.training.honest import campaign, day_of, topped_up
from cells.risk.training.past import Past
from cells.risk.training.world import DAY_S, HONEST, HOUR_S, Request, World
from router.risk.facts import FACTS, FEATURE_PREFIX, Value
from router.risk.features import FeatureSet, Observation
from router.risk.ruleset import complete

# A Monday, 2026-01-05, at midnight UTC.
_EPOCH_S = 1_767_571_200
CURRENCY = "USD"
_HELD_OUT_PERCENT = 30
# New users a day, of those there are.
_GROWTH = 1 / 120
# Shops' offers to new users a day, for each thousand there are.
_CAMPAIGNS = 0.12


class Event(NamedTuple):
    day: int
    facts: Mapping[str, Value]
    observation: Observation
    # Empty when honest.
    pattern: str
    episode: int

    @property
    def fraud(self) -> bool:
        return self.pattern != HONEST

    @property
    def held_out(self) -> bool:
        """Of a user who is kept from training, by a hash of the ID: new ones are divided too."""
        return zlib.crc32(self.observation.user.encode()) % 100 < _HELD_OUT_PERCENT


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    users: int = 2_000
    days: int = 70
    # Patterns that training must not see.
    unseen: bool = False


def simulate(plan: Plan, features: FeatureSet) -> Iterator[Event]:
    """The same plan gives the same stream."""
    world = World(plan.seed, plan.users, plan.days)
    past = Past(features)
    for asked in _requests(world, plan):
        event = _settle(world, past, asked)
        if event is not None:
            yield event


def _requests(world: World, plan: Plan) -> Iterator[Request]:
    """In the order of time; what runs on into later days waits."""
    waiting: list[tuple[float, int, Request]] = []
    order = count()
    attacks = {**TRAINED, **UNSEEN} if plan.unseen else TRAINED
    thousands = plan.users / 1000
    for day in range(plan.days):
        expected = plan.users * _GROWTH
        for _ in range(int(expected) + (world.random.random() < expected % 1)):
            person = world.settle((day + world.random.random()) * DAY_S)
            person.friends = [world.random.choice(world.honest).user for _ in range(3)]
            person.balance = 0
        for person in list(world.honest):
            for asked in day_of(world, person, day):
                heapq.heappush(waiting, (asked.at_s, next(order), asked))
        if world.random.random() < _CAMPAIGNS * thousands:
            for asked in campaign(world, (day + world.random.uniform(0.1, 0.6)) * DAY_S):
                heapq.heappush(waiting, (asked.at_s, next(order), asked))
        for asked in runs(world, attacks, day, thousands):
            heapq.heappush(waiting, (asked.at_s, next(order), asked))
        # Fraud that began earlier may lie before midnight of a day's first.
        while waiting and waiting[0][0] < (day + 1) * DAY_S:
            _, _, asked = heapq.heappop(waiting)
            asked = _resolved(world, asked)
            person = world.people[asked.user]
            if asked.amount > person.balance and asked.operation != "charge":
                if asked.pattern or asked.amount < 1:
                    continue
                first = topped_up(world, asked)
                again_s = asked.at_s + world.random.uniform(15, 90)
                heapq.heappush(waiting, (again_s, next(order), asked._replace(at_s=again_s)))
                asked = first
            if asked.amount >= 50:
                yield asked


def _resolved(world: World, asked: Request) -> Request:
    """With the amount that a share of the balance comes to."""
    if not asked.share:
        return asked
    part = int(world.people[asked.user].balance * asked.share)
    return asked._replace(amount=min(part, asked.amount) if asked.amount else part, share=0.0)


def _settle(world: World, past: Past, asked: Request) -> Event | None:
    """Facts before, then the effect: money moves and the past grows."""
    person = world.people[asked.user]
    at_s = _EPOCH_S + asked.at_s
    if asked.at_s < person.born_s:
        return None
    card = asked.card
    seen = Observation(
        at_ms=int(at_s * 1000), operation=asked.operation, action="allow", user=asked.user,
        payee=asked.payee, device=asked.device, ip=asked.ip, card=card.token if card else "",
        amount=asked.amount, currency=CURRENCY,
    )  # fmt: skip
    facts: dict[str, Value] = {
        "operation": asked.operation,
        "amount": asked.amount,
        "currency": CURRENCY,
        "user.id": asked.user,
        "user.account_age_days": int((asked.at_s - person.born_s) / DAY_S),
        "user.balance": person.balance,
        "payee.id": asked.payee,
        "payee.is_merchant": asked.payee.startswith("mer_"),
        "device.id": asked.device,
        "ip.address": asked.ip,
        "ip.country": asked.country,
        "card.token": card.token if card else "",
        "card.scheme": card.scheme if card else "",
        "card.country": card.country if card else "",
        "time.hour": int(at_s % DAY_S // HOUR_S),
        "time.weekday": int(at_s // DAY_S + 3) % 7,
        "model.score": -1.0,
    }
    facts = complete(facts, FACTS)
    facts.update((FEATURE_PREFIX + name, value) for name, value in past.read(seen).items())
    past.add(seen)
    person.balance += asked.amount if asked.operation == "charge" else -asked.amount
    if asked.operation == "transfer":
        world.people[asked.payee].balance += asked.amount
    return Event(int(asked.at_s // DAY_S), facts, seen, asked.pattern, asked.episode)
