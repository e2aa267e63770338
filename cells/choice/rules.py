"""Who may be asked, what asking each is worth, and in which order. Pure: the same facts, terms and
snapshot give the same decision."""

from __future__ import annotations

from operator import itemgetter
from typing import assert_never

from cells.channels.model import Answer, AnswerReason, Verdict
from cells.choice.beliefs import drawn, key_of, uniform
from cells.choice.calendar import is_open, moment_of
from cells.choice.fees import PPM, fee, tier_of
from cells.choice.model import (
    UNUSED,
    Decision,
    Evidence,
    Excluded,
    Exclusion,
    Facts,
    Scored,
    Snapshot,
    Standing,
    Usage,
)
from cells.choice.terms import Candidate, Terms
from router.policies.channels import ChoicePolicy

# A commitment that lags by so many days of its month's minimum counts in full.
_LAG_DAYS_FULL = 1.0
_UTILITY, _CHANNEL = 6, 0


def decide(facts: Facts, terms: Terms, snapshot: Snapshot) -> Decision:
    """Channels in the order to ask them; none when nobody may be asked."""
    field, choice = terms.field_of(facts), terms.choice
    owner = key_of(facts.owner_id)
    must = facts.bank in field.banks_must
    scored: list[Scored] = []
    excluded: list[Excluded] = []
    usages, away, limit = snapshot.usages, snapshot.away, choice.channels_max
    read: dict[str, Standing] = {}
    used: dict[str, Usage] = {}
    for name, standing in snapshot.standings.items():
        candidate = field.candidates.get(name)
        if candidate is None:
            continue
        if len(scored) == limit:
            break
        read[name] = standing
        used[name] = usage = usages.get(name, UNUSED)
        reason = exclusion(candidate, facts, usage, must)
        if reason is None and name in away:
            reason = Exclusion.BREAKER_OPEN
        if reason is None:
            scored.append(score(candidate, facts, standing, usage, choice, owner))
        else:
            excluded.append(Excluded(name, reason))
    if len(read) < len(field.candidates):
        excluded += [item for item in field.not_drawn if item.channel not in read]
    # Channels of the same worth come by name, so that the order is one.
    scored.sort(key=itemgetter(_CHANNEL))
    scored.sort(key=itemgetter(_UTILITY), reverse=True)
    return Decision(
        facts, terms.cell, terms.digest, terms.revision, tuple(scored),
        tuple(excluded) + field.excluded, Snapshot(read, used, away & read.keys()),
    )  # fmt: skip


def exclusion(candidate: Candidate, facts: Facts, usage: Usage, must: bool) -> Exclusion | None:
    """Why this channel may not be asked for this charge now; None: it may. `must`: the instrument's
    bank is one that some channels claim."""
    name, bank = candidate.name, facts.bank
    if (facts.must_use and facts.must_use != name) or (must and bank not in candidate.banks_must):
        return Exclusion.MUST_USE
    if bank in candidate.banks_never or (
        candidate.banks_only is not None and bank not in candidate.banks_only
    ):
        return Exclusion.BANK
    if facts.merchant in candidate.merchants_never or (
        candidate.merchants_only is not None and facts.merchant not in candidate.merchants_only
    ):
        return Exclusion.MERCHANT
    if facts.amount < candidate.low:
        return Exclusion.AMOUNT_LOW
    if facts.amount > candidate.high:
        return Exclusion.AMOUNT_HIGH
    if candidate.hours and not is_open(candidate.hours, moment_of(candidate.zone, facts.at_ms)):
        return Exclusion.CLOSED_NOW
    return over_quota(candidate, facts.amount, usage) if candidate.has_quota else None


def over_quota(candidate: Candidate, amount: int, usage: Usage) -> Exclusion | None:
    """Whether one more of this amount would be more than the bank takes."""
    if candidate.per_minute is not None and usage.minute >= candidate.per_minute:
        return Exclusion.QUOTA_MINUTE
    if candidate.per_day is not None and usage.day >= candidate.per_day:
        return Exclusion.QUOTA_DAY
    limit = candidate.amount_per_day
    if limit is not None and usage.day_amount + amount > limit:
        return Exclusion.QUOTA_AMOUNT
    return None


def score(
    candidate: Candidate,
    facts: Facts,
    standing: Standing,
    usage: Usage,
    choice: ChoicePolicy,
    owner: int,
) -> Scored:
    """What asking it is worth: an approval's worth less its fee, as likely as was drawn, less what
    the request and the waiting cost."""
    amount = facts.amount
    chance = drawn(standing, uniform(owner, candidate.key))
    tier = tier_of(candidate.from_volumes, usage.month_amount)
    charged, attempt = fee(candidate.fees, tier, amount), candidate.fees.attempt
    bonus = 0.0
    if candidate.preference_ppm or candidate.commitment is not None:
        bonus = amount * (candidate.preference_ppm + _urgency_ppm(candidate, facts, usage)) / PPM
    waiting = amount * choice.delay_ppm_per_s * standing.latency_ms / (1000 * PPM)
    worth = chance * (amount * choice.approval_ppm / PPM + bonus - charged)
    utility = worth - attempt - waiting
    return Scored(candidate.name, chance, charged, attempt, tier, bonus, utility)


def _urgency_ppm(candidate: Candidate, facts: Facts, usage: Usage) -> float:
    """What volume is worth to a commitment: nothing while it is on its way to the month's minimum
    or past it, the shortfall's whole price when it lags by a day."""
    commitment = candidate.commitment
    if commitment is None or usage.month_amount >= commitment.month_minimum:
        return 0.0
    moment = moment_of(candidate.zone, facts.at_ms)
    lag = commitment.month_minimum * moment.month_part - usage.month_amount
    full = commitment.month_minimum * _LAG_DAYS_FULL / moment.month_days
    return commitment.shortfall_ppm * min(max(lag / full, 0.0), 1.0)


def works(answer: Answer) -> bool | None:
    """Whether the channel works, as far as its breaker is concerned; None: it says nothing."""
    if answer.reason in {AnswerReason.ISSUER_UNAVAILABLE, AnswerReason.UNSUPPORTED}:
        return None
    return answer.verdict not in {Verdict.FAILED, Verdict.UNKNOWN}


def evidence_of(answer: Answer) -> Evidence:
    """What an answer says of the channel that gave it, or did not."""
    match answer.verdict:
        case Verdict.APPROVED:
            return Evidence.GOOD
        case Verdict.FAILED | Verdict.UNKNOWN:
            return Evidence.BAD
        case Verdict.PENDING:
            return Evidence.NONE
        case Verdict.DECLINED:
            return _of_decline(answer.reason)
    assert_never(answer.verdict)


def _of_decline(reason: AnswerReason) -> Evidence:
    """Some banks' requests are refused more often than others': such a refusal counts. That there
    is no money on the account is the same everywhere."""
    match reason:
        case AnswerReason.DO_NOT_HONOUR | AnswerReason.SUSPECTED_FRAUD | AnswerReason.NOT_PERMITTED:
            return Evidence.BAD
        case _:
            return Evidence.NONE
