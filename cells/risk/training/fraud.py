"""Fraud, by pattern. Each function is one run of an attack: a list of requests in no order.

The first eight are in the training's stream. The last two are not: they stand for what nobody has
thought of, and are reported apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from cells.risk.training.world import DAY_S, FOREIGN, HOUR_S, Person, Request, World

_Attack = Callable[[World, float], Iterator[Request]]


def card_testing(world: World, at_s: float) -> Iterator[Request]:
    """A list of stolen cards is tried by small charges, from one machine and some new accounts."""
    chance = world.random
    country = _where(world)
    device, ip = world.mint("dev"), world.ip()
    accounts = [_account(world, at_s) for _ in range(chance.randint(1, 5))]
    for _ in range(chance.randint(8, 40)):
        at_s += chance.expovariate(1 / 60)
        if chance.random() < 0.08:
            ip = world.ip()
        if chance.random() < 0.05:
            device = world.mint("dev")
        yield Request(
            at_s, "charge", chance.choice(accounts).user, "", chance.randint(50, 800), 0.0, device,
            ip, country, world.card(chance.choice((*FOREIGN, "CN", "DE", "GB"))),
        )  # fmt: skip


def account_takeover(world: World, at_s: float) -> Iterator[Request]:
    """Somebody else logs in, from elsewhere, and sends most of it away within the hour."""
    chance = world.random
    victim = _victim(world)
    device, ip = world.mint("dev"), world.ip()
    # Careful ones hide behind an address of the victim's country.
    country = victim.country if chance.random() < 0.5 else chance.choice(FOREIGN)
    if chance.random() < 0.2:
        device = ""
    elif chance.random() < 0.2:
        # A stolen session: nothing is new but who holds it.
        device, ip, country = victim.devices[0], victim.home_ip, victim.country
    mule = _mule(world, at_s)
    for _ in range(chance.randint(1, 5)):
        at_s += chance.expovariate(1 / 500)
        out = chance.random() < 0.25
        yield Request(
            at_s, "withdraw" if out else "transfer", victim.user, "" if out else mule.user, 0,
            chance.uniform(0.4, 0.95), device, ip, country,
        )  # fmt: skip


def mule_fan_in(world: World, at_s: float) -> Iterator[Request]:
    """Victims who were talked into it send money from their own devices to one account, which is
    emptied as it fills."""
    chance = world.random
    mule = _mule(world, at_s)
    device, ip = mule.devices[0], mule.home_ip
    for _ in range(chance.randint(6, 22)):
        victim = _victim(world)
        when = at_s + chance.uniform(0, 30) * HOUR_S
        yield _own(world, victim, when)._replace(
            operation="transfer", payee=mule.user,
            amount=world.amount(victim.typical * 6, 0.5), share=chance.uniform(0.3, 0.9),
        )  # fmt: skip
        if chance.random() < 0.5:
            yield Request(
                when + chance.uniform(0.05, 1.5) * HOUR_S, "withdraw", mule.user, "", 0,
                chance.uniform(0.7, 1.0), device, ip, mule.country,
            )  # fmt: skip


def velocity_burst(world: World, at_s: float) -> Iterator[Request]:
    """A stolen session buys what can be sold at once, as fast as it goes."""
    chance = world.random
    victim = _victim(world)
    asked = _own(world, victim, at_s)
    if chance.random() < 0.5:
        asked = asked._replace(device=world.mint("dev"), ip=world.ip())
    shops = world.shops(chance.randint(1, 3))
    amount = chance.choice((1000, 2000, 2500, 5000))
    for _ in range(chance.randint(8, 30)):
        at_s += chance.expovariate(1 / 35)
        yield asked._replace(
            at_s=at_s, operation="pay", payee=chance.choice(shops),
            amount=amount if chance.random() < 0.8 else world.amount(amount, 0.4),
        )  # fmt: skip


def rotating_bot(world: World, at_s: float) -> Iterator[Request]:
    """A farm of new accounts, a new device for each, behind few addresses, at one shop's offer."""
    chance = world.random
    ips = [world.ip() for _ in range(chance.randint(1, 4))]
    shop, country = world.shops(1)[0], _where(world)
    price = chance.choice((100, 199, 300, 500))
    for _ in range(chance.randint(10, 35)):
        at_s += chance.expovariate(1 / 90)
        born_s = at_s - chance.uniform(0.001, 2) * DAY_S
        account = _account(world, born_s, balance=chance.choice((500, 2000, 5000)))
        yield Request(
            at_s, "pay", account.user, shop, price, 0.0, world.mint("dev"), chance.choice(ips),
            country,
        )  # fmt: skip


def high_value_new_device(world: World, at_s: float) -> Iterator[Request]:
    """One large purchase, and they are gone."""
    chance = world.random
    victim = _victim(world)
    country = victim.country if chance.random() < 0.4 else chance.choice(FOREIGN)
    for _ in range(1 if chance.random() < 0.7 else 2):
        at_s += chance.uniform(30, 900)
        yield Request(
            at_s, "pay", victim.user, world.shops(1)[0], 0, chance.uniform(0.45, 0.98),
            world.mint("dev"), world.ip(), country,
        )  # fmt: skip


def top_up_and_out(world: World, at_s: float) -> Iterator[Request]:
    """Charges that will be called back: a stolen card fills a wallet, which is emptied at once."""
    chance = world.random
    account = _account(world, at_s - chance.uniform(0, 12) * DAY_S)
    device, ip, country = account.devices[0], account.home_ip, account.country
    for _ in range(chance.randint(2, 6)):
        card = world.card(country if chance.random() < 0.5 else chance.choice(FOREIGN))
        for _ in range(chance.randint(1, 3)):
            at_s += chance.uniform(30, 400)
            amount = world.amount(12_000, 0.6)
            yield Request(at_s, "charge", account.user, "", amount, 0.0, device, ip, country, card)
        at_s += chance.uniform(60, 3 * HOUR_S)
        yield Request(
            at_s, "withdraw", account.user, "", 0, chance.uniform(0.8, 1.0), device, ip, country
        )
        at_s += chance.uniform(0.5, 20) * HOUR_S


def night_drain(world: World, at_s: float) -> Iterator[Request]:
    """The victim's own telephone, steered from afar while they sleep: just under round sums, until
    nothing is left."""
    chance = world.random
    victim = _victim(world)
    at_s = at_s // DAY_S * DAY_S + ((chance.uniform(1, 4.5) - victim.ahead_h) % 24) * HOUR_S
    asked = _own(world, victim, at_s)._replace(ip=victim.home_ip, operation="transfer")
    mules = [_mule(world, at_s).user for _ in range(chance.randint(1, 2))]
    step = chance.choice((4_900, 9_900, 19_900, 29_900))
    for _ in range(chance.randint(3, 10)):
        at_s += chance.uniform(40, 400)
        yield asked._replace(
            at_s=at_s, payee=chance.choice(mules), amount=step, share=chance.uniform(0.85, 1.0)
        )


def collusive_merchant(world: World, at_s: float) -> Iterator[Request]:
    """A shop that is in it rings up stolen wallets on its own terminal, at sums that are usual."""
    chance = world.random
    shop = chance.choice(world.merchants[len(world.merchants) // 2 :])
    device, ip, country = world.mint("dev"), world.ip(), _where(world)
    for _ in range(chance.randint(10, 30)):
        at_s += chance.expovariate(1 / 1500)
        victim = _victim(world)
        yield Request(
            at_s, "pay", victim.user, shop, world.amount(victim.typical * 2, 0.5), 0.0, device, ip,
            country,
        )  # fmt: skip


def slow_drain(world: World, at_s: float) -> Iterator[Request]:
    """A patient thief: one new device, a week of small purchases, then a piece of it each day."""
    chance = world.random
    victim = _victim(world)
    device, ip = world.mint("dev"), world.ip()
    for day in range(chance.randint(2, 6)):
        when = at_s + (day + chance.random() / 2) * DAY_S
        yield Request(
            when, "pay", victim.user, chance.choice(victim.merchants),
            world.amount(victim.typical * 0.5), 0.0, device, ip, victim.country,
        )  # fmt: skip
    for day in range(6, chance.randint(9, 14)):
        when = at_s + (day + chance.random() / 2) * DAY_S
        yield Request(
            when, "transfer", victim.user, _mule(world, when).user, 0, chance.uniform(0.15, 0.35),
            device, ip, victim.country,
        )  # fmt: skip


# Runs a day for each thousand users: each pattern is to have hundreds of requests in a stream.
TRAINED: Mapping[_Attack, float] = {
    card_testing: 0.14,
    account_takeover: 0.7,
    mule_fan_in: 0.14,
    velocity_burst: 0.14,
    rotating_bot: 0.12,
    high_value_new_device: 1.2,
    top_up_and_out: 0.28,
    night_drain: 0.36,
}
UNSEEN: Mapping[_Attack, float] = {collusive_merchant: 0.16, slow_drain: 0.4}
PATTERNS = tuple(attack.__name__ for attack in (*TRAINED, *UNSEEN))


def runs(
    world: World, attacks: Mapping[_Attack, float], day: int, thousands: float
) -> Iterator[Request]:
    """All that begins on one day."""
    chance = world.random
    for attack, a_day in attacks.items():
        expected = a_day * thousands
        for _ in range(int(expected) + (chance.random() < expected % 1)):
            episode = world.episode()
            for asked in attack(world, (day + chance.random()) * DAY_S):
                yield asked._replace(pattern=attack.__name__, episode=episode)


def _victim(world: World) -> Person:
    """One who has something to lose."""
    chance = world.random
    people = world.honest
    return max((chance.choice(people) for _ in range(3)), key=lambda person: person.balance)


def _own(world: World, victim: Person, at_s: float) -> Request:
    """As the victim's own requests are."""
    mobile = world.random.random() < 0.4
    ip = world.carrier_ip(victim.country) if mobile else victim.home_ip
    device = "" if victim.silent else victim.devices[0]
    return Request(at_s, "", victim.user, device=device, ip=ip, country=victim.country)


def _account(world: World, born_s: float, balance: int = 0) -> Person:
    person = world.settle(born_s, criminal=True)
    person.balance = balance
    return person


def _mule(world: World, at_s: float) -> Person:
    """An account for the purpose, or one whose owner sold it."""
    chance = world.random
    if chance.random() < 0.5:
        return chance.choice(world.honest)
    return _account(world, at_s - chance.uniform(0.1, 40) * DAY_S)


def _where(world: World) -> str:
    return world.random.choice(("CN", "CN", "SG", *FOREIGN))
