"""Policies as one choice reads them: for a kind of charge, who may be asked at all."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cells.choice.beliefs import key_of
from cells.choice.model import Excluded, Exclusion, Facts
from router.policies.channels import (
    Banks,
    ChannelPolicy,
    ChoicePolicy,
    Commitment,
    Fees,
    Hours,
    InstrumentKind,
    Only,
)
from router.policies.rules import PolicySet

# Schemes come from outside; what is kept of them has an end.
_FIELDS_MAX = 512
_NO_CHOICE = ChoicePolicy()
_ANY = frozenset[str]()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A channel's terms for one currency and scheme, laid out for speed."""

    name: str
    key: int
    low: int
    high: int
    fees: Fees
    from_volumes: tuple[int, ...]
    # No `only` is None: everyone.
    banks_only: frozenset[str] | None
    banks_never: frozenset[str]
    banks_must: frozenset[str]
    merchants_only: frozenset[str] | None
    merchants_never: frozenset[str]
    zone: str
    hours: tuple[Hours, ...]
    per_minute: int | None
    per_day: int | None
    amount_per_day: int | None
    has_quota: bool
    commitment: Commitment | None
    preference_ppm: int


class Field(NamedTuple):
    """Who stands to be chosen for a kind of charge, and who never does."""

    candidates: Mapping[str, Candidate]
    excluded: tuple[Excluded, ...]
    # Of these banks, instruments go to the channels that say so.
    banks_must: frozenset[str]
    # What is said of each candidate that is not looked at.
    not_drawn: tuple[Excluded, ...]


class FieldKey(NamedTuple):
    taking: str
    instrument: str
    scheme: str
    currency: str


def field_key(facts: Facts) -> FieldKey:
    return FieldKey(facts.taking, facts.instrument, facts.scheme, facts.currency)


@dataclass(frozen=True, slots=True)
class Terms:
    """What is in force in a cell. Immutable but for what it has worked out."""

    channels: Mapping[str, ChannelPolicy]
    choice: ChoicePolicy
    # Of each policy document, by `kind/name`: etcd's revision.
    revisions: Mapping[str, int]
    digest: str
    # Whose: policies may be of some cells only.
    cell: str = ""
    _fields: dict[FieldKey, Field] = field(default_factory=dict, compare=False, repr=False)

    @property
    def revision(self) -> int:
        return max(self.revisions.values(), default=0)

    def field_of(self, facts: Facts) -> Field:
        key = field_key(facts)
        found = self._fields.get(key)
        if found is None:
            if len(self._fields) >= _FIELDS_MAX:
                self._fields.clear()
            found = self._fields[key] = _field(self.channels.values(), key)
        return found


def terms_of(policies: PolicySet, cell: str) -> Terms:
    """The last document of a channel, by its policy's name, holds; so does the last choice."""
    documents: dict[str, ChannelPolicy | ChoicePolicy] = {}
    revisions: dict[str, int] = {}
    for _, policy in sorted(policies.policies.items()):
        document = policy.document
        if not isinstance(document, ChannelPolicy | ChoicePolicy):
            continue
        if not document.cells or cell in document.cells:
            documents[f"{policy.kind}/{policy.name}"] = document
            revisions[f"{policy.kind}/{policy.name}"] = policy.revision
    return make_terms(list(documents.values()), revisions, cell)


def make_terms(
    documents: Sequence[ChannelPolicy | ChoicePolicy],
    revisions: Mapping[str, int],
    cell: str = "",
) -> Terms:
    channels = {item.channel: item for item in documents if isinstance(item, ChannelPolicy)}
    choices = [item for item in documents if isinstance(item, ChoicePolicy)]
    return Terms(
        dict(sorted(channels.items())),
        choices[-1] if choices else _NO_CHOICE,
        dict(revisions),
        digest_of(revisions),
        cell,
    )


def digest_of(revisions: Mapping[str, int]) -> str:
    """Names a set of policies: the same documents at the same revisions."""
    text = json.dumps(sorted(revisions.items()), separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def band_of(choice: ChoicePolicy, currency: str, amount: int) -> int:
    """The number of the amount band that success is counted by."""
    return bisect_left(choice.bands.get(currency, ()), amount)


def _field(channels: Iterable[ChannelPolicy], key: FieldKey) -> Field:
    candidates: dict[str, Candidate] = {}
    excluded: list[Excluded] = []
    for channel in channels:
        reason, fees = _standing_reason(channel, key)
        if reason is not None or fees is None:
            excluded.append(Excluded(channel.channel, reason or Exclusion.UNPRICED))
        else:
            candidates[channel.channel] = _candidate(channel, key.currency, fees)
    must = _ANY.union(*(item.banks_must for item in candidates.values()))
    not_drawn = tuple(Excluded(name, Exclusion.NOT_DRAWN) for name in candidates)
    return Field(candidates, tuple(excluded), must, not_drawn)


def _standing_reason(channel: ChannelPolicy, key: FieldKey) -> tuple[Exclusion | None, Fees | None]:
    if channel.blocked:
        return Exclusion.BLOCKED, None
    if key.taking not in channel.taking:
        return Exclusion.TAKING, None
    if key.instrument not in channel.instruments:
        return Exclusion.INSTRUMENT, None
    is_card = key.instrument == InstrumentKind.CARD
    if is_card and channel.schemes and key.scheme not in channel.schemes:
        return Exclusion.SCHEME, None
    if key.currency not in channel.amounts:
        return Exclusion.CURRENCY, None
    for table in channel.fees:
        fits = not table.schemes or key.scheme in table.schemes
        if table.currency == key.currency and fits:
            return None, table
    return Exclusion.UNPRICED, None


def _candidate(channel: ChannelPolicy, currency: str, fees: Fees) -> Candidate:
    quotas, banks = channel.quotas, channel.banks
    amount_per_day = quotas.amount_per_day.get(currency)
    limits = (quotas.per_minute, quotas.per_day, amount_per_day)
    return Candidate(
        name=channel.channel,
        key=key_of(channel.channel),
        low=channel.amounts[currency].minimum,
        high=channel.amounts[currency].maximum,
        fees=fees,
        from_volumes=tuple(tier.from_volume for tier in fees.tiers),
        banks_only=_only(banks),
        banks_never=frozenset(banks.never),
        banks_must=frozenset(banks.must),
        merchants_only=_only(channel.merchants),
        merchants_never=frozenset(channel.merchants.never),
        zone=channel.zone,
        hours=channel.hours,
        per_minute=quotas.per_minute,
        per_day=quotas.per_day,
        amount_per_day=amount_per_day,
        has_quota=any(limit is not None for limit in limits),
        commitment=next((item for item in channel.commitments if item.currency == currency), None),
        preference_ppm=channel.preference_ppm,
    )


def _only(whom: Banks | Only) -> frozenset[str] | None:
    return frozenset(whom.only) if whom.only else None
