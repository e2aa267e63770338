"""What a process has seen of the channels, and what its cell's other processes have told.

In memory only, and of bounded size. A process that starts has what Redis holds of its cell; without
Redis it begins from the priors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import NamedTuple

from cells.choice.beliefs import NOTHING, Seen, added, faded, promise, standing
from cells.choice.calendar import Moment, moment_of
from cells.choice.fees import PPM, fee, tier_of
from cells.choice.model import UNUSED, Evidence, Facts, Snapshot, Standing, Usage
from cells.choice.terms import Candidate, FieldKey, Terms, band_of, field_key
from router.policies.channels import ChoicePolicy

# Of a channel: its schemes and their amount bands. Further ones are counted by coarser keys only.
KEYS_PER_CHANNEL_MAX = 256
CHANNELS_MAX = 1024
# What others told is believed for so long after the last time that they could.
SHARED_AGE_MAX_S = 10.0
_LINE_UPS_MAX = 512


class Key(NamedTuple):
    """What success is counted by; empty where a key is coarser."""

    channel: str
    scheme: str = ""
    band: str = ""


class Delta(NamedTuple):
    good: int = 0
    bad: int = 0
    latency_ms: float = 0.0


class Dated(NamedTuple):
    seen: Seen
    at_s: float


class _Book:
    """How much a channel has had, in the minute, day and month that it is counting now."""

    __slots__ = ("amounts", "cached", "day", "day_label", "minute", "minute_number", "month_label")

    def __init__(self) -> None:
        self.minute = self.day = self.minute_number = 0
        self.day_label = self.month_label = ""
        # Currency → of the day, of the month.
        self.amounts: dict[str, list[int]] = {}
        # Currency → the minute that it is of, and the usage.
        self.cached: dict[str, tuple[int, Usage]] = {}

    def turn_to(self, moment: Moment) -> None:
        """Forward only: who speaks of an earlier moment hears of this one."""
        if moment.minute > self.minute_number:
            self.minute_number, self.minute = moment.minute, 0
        if moment.day > self.day_label:
            self.day_label, self.day = moment.day, 0
            for amounts in self.amounts.values():
                amounts[0] = 0
        if moment.month > self.month_label:
            self.month_label = moment.month
            for amounts in self.amounts.values():
                amounts[1] = 0

    def of(self, currency: str) -> list[int]:
        self.cached.clear()
        return self.amounts.setdefault(currency, [0, 0])


class Usages:
    """Of the channels in a currency at a moment; looks like a mapping to `decide`."""

    __slots__ = ("_at_ms", "_books", "_currency", "_minute", "_zones")

    def __init__(
        self, books: Mapping[str, _Book], zones: Mapping[str, str], currency: str, at_ms: int
    ) -> None:
        self._books, self._zones = books, zones
        self._currency, self._at_ms, self._minute = currency, at_ms, at_ms // 60_000

    def get(self, channel: str, default: Usage, /) -> Usage:
        book = self._books.get(channel)
        if book is None:
            return default
        cached = book.cached.get(self._currency)
        if cached is not None and cached[0] == self._minute:
            return cached[1]
        book.turn_to(moment_of(self._zones.get(channel, "UTC"), self._at_ms))
        day_amount, month_amount = book.amounts.get(self._currency, (0, 0))
        usage = Usage(book.minute, book.day, day_amount, month_amount)
        book.cached[self._currency] = (self._minute, usage)
        return usage


class LineUp(NamedTuple):
    """Those who stand to be chosen for a kind of charge and an amount band, best first."""

    candidates: Mapping[str, Candidate]
    # Of the charge that it was made for: one of its band.
    amount: int
    at_ms: int
    standings: dict[str, Standing]


class Statistics:
    def __init__(self) -> None:
        self._terms: Terms | None = None
        self._zones: dict[str, str] = {}
        self._own: dict[Key, Dated] = {}
        self._shared: dict[Key, Dated] = {}
        self._shared_at_s = float("-inf")
        self._unsent: dict[Key, Delta] = {}
        self._keys: dict[str, int] = {}
        self._books: dict[str, _Book] = {}
        self._line_ups: dict[tuple[FieldKey, int], LineUp] = {}

    def apply(self, terms: Terms) -> None:
        """Of channels that are there no more, nothing is kept."""
        self._terms = terms
        self._zones = {name: channel.zone for name, channel in terms.channels.items()}
        for kept in (self._own, self._shared, self._unsent):
            for key in [key for key in kept if key.channel not in terms.channels]:
                del kept[key]
        for name in [name for name in self._books if name not in terms.channels]:
            del self._books[name]
        self._keys = {name: self._keys.get(name, 0) for name in terms.channels}
        self._line_ups.clear()

    def note(
        self, facts: Facts, channel: str, evidence: Evidence, latency_ms: float, now_s: float
    ) -> None:
        """An answer came, or none did in time."""
        terms = self._terms
        if terms is None or channel not in terms.channels or evidence is Evidence.NONE:
            return
        good = int(evidence is Evidence.GOOD)
        for key in keys_of(terms.choice, facts, channel):
            if not self._admits(key):
                break
            before = self._own.get(key, Dated(NOTHING, now_s))
            seen = faded(before.seen, now_s - before.at_s, terms.choice)
            self._own[key] = Dated(added(seen, good, 1 - good, latency_ms, terms.choice), now_s)
            unsent = self._unsent.get(key, Delta())
            self._unsent[key] = Delta(
                unsent.good + good, unsent.bad + 1 - good, unsent.latency_ms + latency_ms
            )
        for (field, band), line_up in self._line_ups.items():
            if field.scheme == facts.scheme and channel in line_up.standings:
                line_up.standings[channel] = self._standing(
                    channel, field, band, now_s, terms.choice
                )

    def _admits(self, key: Key) -> bool:
        """Whether it is counted by this key: a known one, or there is room for it."""
        if key in self._own:
            return True
        if self._keys.get(key.channel, 0) >= KEYS_PER_CHANNEL_MAX or len(self._keys) > CHANNELS_MAX:
            return False
        self._keys[key.channel] = self._keys.get(key.channel, 0) + 1
        return True

    def take_unsent(self) -> dict[Key, Delta]:
        taken, self._unsent = self._unsent, {}
        return taken

    def give_back(self, deltas: Mapping[Key, Delta]) -> None:
        """They could not be sent."""
        for key, delta in deltas.items():
            later = self._unsent.get(key, Delta())
            self._unsent[key] = Delta(
                delta.good + later.good, delta.bad + later.bad, delta.latency_ms + later.latency_ms
            )

    def share(self, shared: Mapping[Key, Dated], now_s: float) -> None:
        """What the cell has seen, ours as of the last sending included."""
        self._shared = dict(shared)
        self._shared_at_s = now_s

    def refresh(self, now_s: float) -> None:
        """Line-ups as they are now: what was observed fades, and others observe."""
        terms = self._terms
        if terms is None:
            return
        for (field, band), known in list(self._line_ups.items()):
            self._line_ups[field, band] = self._line_up(
                known.candidates, field, band, known.amount, known.at_ms, now_s
            )

    def snapshot(self, facts: Facts, now_s: float, away: frozenset[str]) -> Snapshot:
        terms = self._terms
        assert terms is not None
        field, band = field_key(facts), band_of(terms.choice, facts.currency, facts.amount)
        usages = Usages(self._books, self._zones, facts.currency, facts.at_ms)
        found = self._line_ups.get((field, band))
        if found is None:
            if len(self._line_ups) >= _LINE_UPS_MAX:
                self._line_ups.clear()
            candidates = terms.field_of(facts).candidates
            found = self._line_ups[field, band] = self._line_up(
                candidates, field, band, facts.amount, facts.at_ms, now_s
            )
        return Snapshot(found.standings, usages, away)

    def _line_up(
        self,
        candidates: Mapping[str, Candidate],
        field: FieldKey,
        band: int,
        amount: int,
        at_ms: int,
        now_s: float,
    ) -> LineUp:
        terms = self._terms
        assert terms is not None
        standings = {
            name: self._standing(name, field, band, now_s, terms.choice) for name in candidates
        }
        if len(standings) > terms.choice.channels_max:
            usages = Usages(self._books, self._zones, field.currency, at_ms)
            names = _best_first(standings, candidates, amount, usages, terms.choice)
            standings = {name: standings[name] for name in names}
        return LineUp(candidates, amount, at_ms, standings)

    def _standing(
        self, channel: str, field: FieldKey, band: int, now_s: float, choice: ChoicePolicy
    ) -> Standing:
        of_channel, of_scheme, of_band = (
            self._seen(key, now_s, choice)
            for key in _keys(channel, field.scheme, field.currency, band)
        )
        return standing(of_channel, of_scheme, of_band, choice)

    def _seen(self, key: Key, now_s: float, choice: ChoicePolicy) -> Seen:
        if now_s - self._shared_at_s > SHARED_AGE_MAX_S:
            dated = self._own.get(key)
            return faded(dated.seen, now_s - dated.at_s, choice) if dated else NOTHING
        dated = self._shared.get(key)
        seen = faded(dated.seen, now_s - dated.at_s, choice) if dated else NOTHING
        unsent = self._unsent.get(key)
        return added(seen, *unsent, choice) if unsent else seen

    def usage(self, channel: str, currency: str, at_ms: int) -> Usage:
        return Usages(self._books, self._zones, currency, at_ms).get(channel, UNUSED)

    def count(self, channel: str, currency: str, amount: int, at_ms: int) -> None:
        """A request of this amount goes to the channel."""
        book = self._book(channel, at_ms)
        book.of(currency)[0] += amount
        book.minute += 1
        book.day += 1

    def settle(self, channel: str, currency: str, amount: int, at_ms: int) -> None:
        """It was approved: volume of the month."""
        self._book(channel, at_ms).of(currency)[1] += amount

    def set_usage(self, channel: str, currency: str, at_ms: int, usage: Usage) -> None:
        """As the cell has counted it."""
        book = self._book(channel, at_ms)
        book.of(currency)[:] = [usage.day_amount, usage.month_amount]
        book.minute, book.day = usage.minute, usage.day

    def _book(self, channel: str, at_ms: int) -> _Book:
        book = self._books.get(channel)
        if book is None:
            book = self._books[channel] = _Book()
        book.turn_to(moment_of(self._zones.get(channel, "UTC"), at_ms))
        return book


def keys_of(choice: ChoicePolicy, facts: Facts, channel: str) -> tuple[Key, Key, Key]:
    """From the coarsest to the finest."""
    band = band_of(choice, facts.currency, facts.amount)
    return _keys(channel, facts.scheme, facts.currency, band)


def _keys(channel: str, scheme: str, currency: str, band: int) -> tuple[Key, Key, Key]:
    named = scheme or "-"
    return Key(channel), Key(channel, named), Key(channel, named, f"{currency}{band}")


def _best_first(
    standings: Mapping[str, Standing],
    candidates: Mapping[str, Candidate],
    amount: int,
    usages: Usages,
    choice: ChoicePolicy,
) -> Iterable[str]:
    """In turn the one that is worth most as far as is known, and the one that may be worth most: a
    decision draws for a few only, and neither the proven nor the uncertain may be crowded out."""

    def worth(name: str, rate: float) -> float:
        candidate = candidates[name]
        tier = tier_of(candidate.from_volumes, usages.get(name, UNUSED).month_amount)
        return rate * (amount * choice.approval_ppm / PPM - fee(candidate.fees, tier, amount))

    def proven(name: str) -> tuple[float, str]:
        known = standings[name]
        return -worth(name, known.alpha / (known.alpha + known.beta)), name

    def promising(name: str) -> tuple[float, str]:
        return -worth(name, promise(standings[name])), name

    orders = (sorted(standings, key=proven), sorted(standings, key=promising))
    # A dictionary keeps the first of each.
    return dict.fromkeys(chain.from_iterable(zip(*orders, strict=True)))
