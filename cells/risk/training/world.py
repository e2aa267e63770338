"""What a simulated stream is made of: people, devices, addresses and cards; requests, labels."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import NamedTuple

DAY_S = 86_400
HOUR_S = 3_600
# Share of users, country, hours ahead of UTC.
COUNTRIES = ((0.70, "CN", 8), (0.12, "SG", 8), (0.10, "DE", 1), (0.08, "GB", 0))
FOREIGN = ("TH", "JP", "US", "FR", "VN", "BR", "NG", "RU")
SCHEMES = ("visa", "mastercard", "unionpay")
MERCHANTS = 400
HONEST = ""


class Card(NamedTuple):
    token: str
    scheme: str
    country: str


class Request(NamedTuple):
    """What somebody asks for; the amount may be a share of a balance that is known only then."""

    at_s: float
    operation: str
    user: str
    payee: str = ""
    amount: int = 0
    # Of the balance at that moment, at most `amount` where that is given.
    share: float = 0.0
    device: str = ""
    ip: str = ""
    country: str = ""
    card: Card | None = None
    # The pattern of fraud; empty for an honest request.
    pattern: str = HONEST
    # One run of an attack: its requests share it.
    episode: int = 0


@dataclass(slots=True)
class Person:
    user: str
    born_s: float
    country: str
    ahead_h: int
    devices: list[str]
    home_ip: str
    cards: list[Card]
    # Requests a day, and what one is usually worth (the median).
    rate: float
    typical: float
    merchants: list[str]
    friends: list[str] = field(default_factory=list)
    night_owl: bool = False
    office_ip: str = ""
    # Sends no context: an old client.
    silent: bool = False
    travels_until_s: float = 0.0
    travels_in: str = ""
    travel_ip: str = ""
    balance: int = 0


class World:
    """All that there is, and the one source of chance: the same seed makes the same world."""

    def __init__(self, seed: int, users: int, days: int) -> None:
        self.random = random.Random(f"cellpay-risk-{seed}")
        self.seed = seed
        self.days = days
        # Everybody by user ID; those who live honestly apart, for choosing among.
        self.people: dict[str, Person] = {}
        self.honest: list[Person] = []
        # Popularity falls as in Zipf's law.
        self.merchants = [f"mer_{seed}_{number}" for number in range(MERCHANTS)]
        self._weights = [1 / (number + 3) for number in range(MERCHANTS)]
        self._minted = 0
        self._episodes = 0
        # Mobile carriers put many behind one address, and so do offices.
        self._carriers = {
            country: [self.ip() for _ in range(max(4, users // 60))] for _, country, _ in COUNTRIES
        }
        self.offices = [self.ip() for _ in range(max(2, users // 40))]
        # Tablets of shops, on which customers log in.
        self.kiosks = [self.mint("dev") for _ in range(max(2, users // 250))]
        for _ in range(users):
            self.settle(-self.random.expovariate(1 / 400) * DAY_S)
        for person in self.honest:
            friends = self.random.choices(self.honest, k=self.random.randint(2, 6))
            person.friends = [friend.user for friend in friends]
            if self.random.random() < 0.05:
                # A family's tablet.
                person.devices.append(self.people[person.friends[0]].devices[0])

    def mint(self, kind: str) -> str:
        self._minted += 1
        return f"{kind}_{self.seed}_{self._minted}"

    def episode(self) -> int:
        self._episodes += 1
        return self._episodes

    def ip(self) -> str:
        self._minted += 1
        number = self._minted
        return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"

    def card(self, country: str) -> Card:
        return Card(self.mint("card"), self.random.choice(SCHEMES), country)

    def amount(self, typical: float, spread: float = 0.8) -> int:
        return max(50, int(self.random.lognormvariate(0, spread) * typical))

    def carrier_ip(self, country: str) -> str:
        known = self._carriers.get(country)
        return self.random.choice(known) if known else self.ip()

    def shops(self, count: int) -> list[str]:
        return self.random.choices(self.merchants, self._weights, k=count)

    def settle(self, born_s: float, criminal: bool = False) -> Person:
        """Somebody opens an account."""
        chance = self.random
        _, country, ahead = chance.choices(COUNTRIES, [share for share, _, _ in COUNTRIES])[0]
        abroad = chance.random() < (0.1 if born_s > 0 else 0.04)
        person = Person(
            user=self.mint("usr"),
            born_s=born_s,
            country=country,
            ahead_h=ahead,
            devices=[self.mint("dev") for _ in range(chance.choices((1, 2, 3), (70, 25, 5))[0])],
            home_ip=self.ip(),
            cards=[
                self.card(chance.choice(FOREIGN) if abroad else country)
                for _ in range(chance.choices((1, 2, 3), (60, 30, 10))[0])
            ],
            rate=min(6.0, chance.lognormvariate(-0.5, 0.8)),
            typical=chance.lognormvariate(7.6, 0.7),
            merchants=self.shops(chance.randint(3, 9)),
            night_owl=chance.random() < 0.06,
            office_ip=chance.choice(self.offices) if chance.random() < 0.4 else "",
            silent=chance.random() < 0.04,
            balance=int(chance.lognormvariate(10.3, 1.0)),
        )
        self.people[person.user] = person
        if not criminal:
            self.honest.append(person)
        return person
