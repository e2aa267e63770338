"""Honest people, with all that makes them look otherwise: journeys, new telephones, sprees, whole
balances moved, collections for a present, shared devices, whole offices behind one address."""

from __future__ import annotations

import math
from collections.abc import Iterator

from cells.risk.training.world import DAY_S, FOREIGN, HOUR_S, Person, Request, World

# A day of a person: how likely each rare thing is.
_TRAVEL = 1 / 150
_NEW_DEVICE = 1 / 250
_SPREE = 1 / 180
_COLLECTION = 1 / 1500
_MOVE_OUT = 1 / 250
_CARD_TROUBLE = 1 / 300
_BIG_PURCHASE = 1 / 200
_NEW_ADDRESS = 1 / 60
# Of requests: a private window, a cleared browser: a device that nobody has seen and nobody will.
_PRIVATE = 0.012
# Of those who have just come: a small charge first, to see whether it works; and who stays.
_TRIAL = 0.35
_STAYS = 0.5


def day_of(world: World, person: Person, day: int) -> Iterator[Request]:
    """What an honest person asks for on one day (UTC), in no order."""
    begin_s = day * DAY_S
    chance = world.random
    age_d = (begin_s - person.born_s) / DAY_S
    if age_d < 0:
        return
    new_device = _live(world, person, begin_s)
    # The first days with a new wallet are busy.
    rate = person.rate * (2.0 if age_d < 4 else 1.0)
    if 2 < age_d <= 3 and chance.random() > _STAYS:
        person.rate = 0.01
    for _ in range(_poisson(world, rate)):
        yield _ordinary(world, person, _moment(world, person, begin_s))
    at_s = _moment(world, person, begin_s)
    if new_device and chance.random() < 0.3:
        # The new telephone is tried out: a whole balance to the bank, or what goes with it.
        yield _move_out(world, person, at_s)
    if chance.random() < _SPREE:
        yield from _spree(world, person, at_s)
    if chance.random() < _MOVE_OUT:
        yield _move_out(world, person, at_s)
    if chance.random() < _COLLECTION:
        yield from _collection(world, person, at_s)
    if chance.random() < _CARD_TROUBLE * (5 if age_d < 4 else 1):
        yield from _card_trouble(world, person, at_s)
    if chance.random() < _BIG_PURCHASE:
        amount = world.amount(person.typical * chance.uniform(5, 20), 0.3)
        yield _ask(world, person, at_s, "pay", world.shops(1)[0], amount)


def campaign(world: World, at_s: float) -> Iterator[Request]:
    """A shop's offer brings new people, many of them from one campus, who all buy the same."""
    chance = world.random
    shop, price, campus = world.shops(1)[0], chance.choice((100, 199, 300, 500)), world.ip()
    for _ in range(chance.randint(6, 25)):
        at_s += chance.expovariate(1 / 240)
        person = world.settle(at_s - chance.uniform(0.001, 0.3) * DAY_S)
        person.friends = [chance.choice(world.honest).user for _ in range(3)]
        person.balance = chance.choice((0, 0, 2000, 5000))
        asked = _ask(world, person, at_s, "pay", shop, price)
        yield asked._replace(ip=campus) if chance.random() < 0.6 else asked


def _live(world: World, person: Person, begin_s: float) -> bool:
    """Journeys begin and end, telephones break: is there a new one?"""
    chance = world.random
    if person.travels_until_s < begin_s and chance.random() < _TRAVEL:
        person.travels_until_s = begin_s + chance.uniform(2, 12) * DAY_S
        person.travels_in, person.travel_ip = chance.choice(FOREIGN), world.ip()
    if chance.random() < _NEW_ADDRESS:
        person.home_ip = world.ip()
    new_device = chance.random() < _NEW_DEVICE
    if new_device:
        person.devices[0] = world.mint("dev")
        if chance.random() < 0.3:
            person.cards[0] = world.card(person.country)
    return new_device


def _poisson(world: World, mean: float) -> int:
    """Knuth's: the means are small."""
    limit, product, count = math.exp(-mean), world.random.random(), 0
    while product > limit:
        product *= world.random.random()
        count += 1
    return count


def _moment(world: World, person: Person, begin_s: float) -> float:
    """Two humps, at noon and in the evening, by the person's clock; some live at night."""
    chance = world.random
    if person.night_owl and chance.random() < 0.7:
        local_h = chance.gauss(25, 2)
    elif chance.random() < 0.02:
        local_h = chance.uniform(0, 24)
    else:
        local_h = chance.gauss(12.5, 2) if chance.random() < 0.45 else chance.gauss(19.5, 2.2)
    return begin_s + ((local_h - person.ahead_h) % 24) * HOUR_S


def _ordinary(world: World, person: Person, at_s: float) -> Request:
    chance = world.random
    kind = chance.random()
    if kind < 0.72:
        own = chance.random() < 0.75
        payee = chance.choice(person.merchants) if own else world.shops(1)[0]
        return _ask(world, person, at_s, "pay", payee, world.amount(person.typical))
    if kind < 0.84:
        known = person.friends and chance.random() < 0.85
        payee = chance.choice(person.friends) if known else chance.choice(world.honest).user
        return _ask(world, person, at_s, "transfer", payee, world.amount(person.typical * 1.5, 1.0))
    if kind < 0.95:
        return _top_up(world, person, at_s, world.amount(person.typical * 4))
    return _ask(world, person, at_s, "withdraw", "", world.amount(person.typical * 5, 1.0))


def _top_up(world: World, person: Person, at_s: float, amount: int) -> Request:
    asked = _ask(world, person, at_s, "charge", "", amount)
    return asked._replace(card=world.random.choice(person.cards))


def topped_up(world: World, asked: Request) -> Request:
    """What an honest person does first whose balance is too small."""
    person = world.people[asked.user]
    amount = int(asked.amount * world.random.uniform(1.0, 4.0)) + 1000
    if asked.at_s - person.born_s < DAY_S and world.random.random() < _TRIAL:
        amount = max(asked.amount, world.random.choice((100, 200, 500, 1000)))
    return asked._replace(
        operation="charge", payee="", share=0.0, amount=amount,
        card=world.random.choice(person.cards),
    )  # fmt: skip


def _ask(
    world: World, person: Person, at_s: float, operation: str, payee: str, amount: int
) -> Request:
    chance = world.random
    abroad = at_s < person.travels_until_s
    country = person.travels_in if abroad else person.country
    where = chance.random()
    if abroad and where < 0.6:
        ip = person.travel_ip
    elif where < 0.45 or (not person.office_ip and where < 0.6):
        ip = person.home_ip
    elif where < 0.65 and person.office_ip:
        ip = person.office_ip
    else:
        ip = world.carrier_ip(country)
    device = person.devices[min(int(chance.expovariate(1.3)), len(person.devices) - 1)]
    if operation == "pay" and chance.random() < 0.01:
        device = chance.choice(world.kiosks)
    if chance.random() < _PRIVATE:
        device = world.mint("dev")
    known = chance.random() < 0.97
    return Request(
        at_s, operation, person.user, payee, amount, 0.0, "" if person.silent else device,
        ip, country if known else "",
    )  # fmt: skip


def _spree(world: World, person: Person, at_s: float) -> Iterator[Request]:
    """A market day, presents for everybody."""
    for _ in range(world.random.randint(5, 16)):
        at_s += world.random.expovariate(1 / 300)
        yield _ask(world, person, at_s, "pay", world.shops(1)[0], world.amount(person.typical))


def _move_out(world: World, person: Person, at_s: float) -> Request:
    """Rent, a deposit, or all of it to the bank: most of a balance goes, often to somebody new."""
    chance = world.random
    share = chance.uniform(0.5, 1.0)
    if chance.random() < 0.5:
        return _ask(world, person, at_s, "withdraw", "", 0)._replace(share=share)
    payee = chance.choice(world.honest).user
    return _ask(world, person, at_s, "transfer", payee, 0)._replace(share=share)


def _collection(world: World, person: Person, at_s: float) -> Iterator[Request]:
    """Many send money to one for a present, who buys it or takes the money out."""
    chance = world.random
    givers = chance.choices(world.honest, k=chance.randint(4, 18))
    amount = chance.choice((500, 1000, 2000, 5000))
    last_s = at_s
    for giver in givers:
        when = at_s + chance.uniform(0, 14 * HOUR_S)
        last_s = max(last_s, when)
        yield _ask(world, giver, when, "transfer", person.user, amount)
    after_s = last_s + chance.uniform(0.2, 20) * HOUR_S
    total = amount * len(givers)
    if chance.random() < 0.5:
        yield _ask(world, person, after_s, "pay", world.shops(1)[0], total)
    else:
        yield _ask(world, person, after_s, "withdraw", "", total)


def _card_trouble(world: World, person: Person, at_s: float) -> Iterator[Request]:
    """Declined: once more, then the other card, then the spouse's."""
    chance = world.random
    amount = world.amount(person.typical * 3)
    cards = [*person.cards, world.card(person.country)]
    for _ in range(chance.randint(2, 5)):
        at_s += chance.uniform(20, 200)
        yield _top_up(world, person, at_s, amount)._replace(card=chance.choice(cards))
