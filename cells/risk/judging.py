"""From what was read of a request to its facts, and from what the rules say to its verdict.

Nothing here waits: the screening reads before and submits after.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from cells.ledger.model import AccountKind
from cells.risk.asking import Asked, Whence
from cells.risk.cases.model import (
    NO_TIME,
    Case,
    CaseKind,
    CaseState,
    Conclusion,
    Factor,
    StoredDecision,
    Verdict,
)
from cells.risk.cases.rules import case_id, conclude, fingerprint
from cells.risk.interface import Score
from cells.risk.lookups import AccountFacts, Found, known_state
from cells.settings import RiskSettings
from router.ids import Kind
from router.minting import mint_now
from router.risk.facts import NO_SCORE, SCORE, Value
from router.risk.features import Observation
from router.risk.model import Action, Decision
from router.risk.record import Record

_FACTS_CHARACTERS_MAX = 8192
_DAY_S = 86_400


class Subject(NamedTuple):
    """Who moves what to whom, whoever said it."""

    user_id: str
    payee_id: str
    amount: int
    currency: str


@dataclass(slots=True)
class Judged:
    """One request on its way through the screening. Filled in from above to below."""

    asked: Asked
    whence: Whence
    found: Found
    subject: Subject
    fingerprint: str
    challenge: CaseState | None
    review: CaseState | None
    observation: Observation
    facts: dict[str, Value] = field(default_factory=dict)
    score: Score | None = None
    shadows: list[tuple[str, float]] = field(default_factory=list)


def judged_of(asked: Asked, whence: Whence, found: Found) -> Judged:
    subject = Subject(asked.user_id, asked.payee_id, asked.amount, asked.currency)
    if asked.order_id and not asked.user_id:
        subject = Subject(found.payer_id, found.merchant_id, found.amount, found.currency)
    printed = ""
    if found.challenge is not None or found.review is not None:
        printed = fingerprint_of(asked, subject)
    return Judged(
        asked, whence, found, subject, printed,
        known_state(found.challenge, found.now, printed),
        known_state(found.review, found.now, printed),
        Observation(
            int(found.now.timestamp() * 1000), asked.operation, Action.ALLOW, subject.user_id,
            subject.payee_id, whence.device, whence.ip, whence.card, subject.amount,
            subject.currency,
        ),
    )  # fmt: skip


def fingerprint_of(asked: Asked, subject: Subject) -> str:
    return fingerprint(
        asked.operation, subject.user_id, asked.order_id, subject.payee_id, subject.amount,
        subject.currency,
    )  # fmt: skip


def facts_of(judged: Judged, features: Mapping[str, Value]) -> dict[str, Value]:
    """All that is known. The score is not known yet.

    `features`: every one that there is, by the fact's name; what the others are was said.
    """
    asked, whence, subject, found = judged.asked, judged.whence, judged.subject, judged.found
    now, account = found.now, found.account
    return {
        **features,
        "operation": asked.operation,
        "amount": subject.amount,
        "currency": subject.currency,
        "user.id": subject.user_id,
        "user.account_age_days": _age_days(account, now),
        "user.balance": account.balance if account else 0,
        "payee.id": subject.payee_id,
        "payee.is_merchant": _is_merchant(asked, found),
        "device.id": whence.device,
        "ip.address": whence.ip,
        "ip.country": whence.ip_country,
        "card.token": whence.card,
        "card.scheme": whence.card_scheme,
        "card.country": whence.card_country,
        "time.hour": now.hour,
        "time.weekday": now.weekday(),
        "challenge.passed": judged.challenge == CaseState.PASSED,
        SCORE: NO_SCORE,
    }


def _age_days(account: AccountFacts | None, now: datetime) -> int:
    if account is None:
        return 0
    return max(0, int((now - account.created_at).total_seconds())) // _DAY_S


def _is_merchant(asked: Asked, found: Found) -> bool:
    if asked.order_id and not asked.user_id:
        # Only merchants make orders.
        return True
    return asked.payee_is_merchant or found.payee_kind == AccountKind.MERCHANT


def verdict_of(
    judged: Judged, decision: Decision, factor: Factor | None, model: str, settings: RiskSettings
) -> Verdict:
    """`factor`: the user's, asked for where the rules want a challenge."""
    asked = judged.asked
    conclusion, why = conclude(
        decision.action, judged.challenge, judged.review, answerable=_answers(factor, judged)
    )
    if conclusion == Conclusion.ALLOW:
        return Verdict(conclusion, uses=tuple(_passed(judged)))
    reasons = (why,) if why else decision.reasons
    subject = judged.subject
    stored = StoredDecision(
        asked.slot, mint_now(Kind.DECISION, asked.slot), subject.user_id, asked.operation,
        conclusion, asked.order_id, subject.payee_id, subject.amount, subject.currency,
        ",".join(reasons), ",".join(hit.rule for hit in decision.hits if not hit.shadow),
        ",".join(sorted(decision.without)), decision.version, model, NO_TIME,
    )  # fmt: skip
    if conclusion == Conclusion.DENY:
        return Verdict(conclusion, reasons, stored)
    is_challenge = conclusion == Conclusion.CHALLENGE
    case = _case(judged, CaseKind.CHALLENGE if is_challenge else CaseKind.REVIEW, stored)
    ttl_s = settings.challenge_ttl_s if is_challenge else settings.review_ttl_s
    return Verdict(conclusion, reasons, stored, case, ttl_s)


def _answers(factor: Factor | None, judged: Judged) -> bool:
    """As `cases.rules.can_answer`, which decides."""
    if factor is None or not factor.secret_sealed:
        return False
    challenge = judged.found.challenge
    return challenge is None or factor.confirmed_at < challenge.created_at


def _passed(judged: Judged) -> Sequence[str]:
    if judged.challenge is None and judged.review is None:
        return ()
    asked = judged.asked
    states = {CaseKind.CHALLENGE: judged.challenge, CaseKind.REVIEW: judged.review}
    return [
        case_id(kind, asked.slot, asked.operation, asked.scope, asked.key)
        for kind, state in states.items()
        if state == CaseState.PASSED
    ]


def _case(judged: Judged, kind: CaseKind, decision: StoredDecision) -> Case:
    asked, subject = judged.asked, judged.subject
    return Case(
        asked.slot, case_id(kind, asked.slot, asked.operation, asked.scope, asked.key), kind,
        CaseState.OPEN, subject.user_id, asked.operation, asked.order_id, subject.payee_id,
        subject.amount, subject.currency, asked.key, fingerprint_of(asked, subject),
        decision.decision_id, decision.reasons, decision.rules, _told(judged.facts), 0, "", "", "",
        NO_TIME, NO_TIME, NO_TIME,
    )  # fmt: skip


def _told(facts: Mapping[str, Value]) -> str:
    """What a reviewer sees: all that has a value."""
    text = json.dumps({name: value for name, value in facts.items() if value})
    return text if len(text) <= _FACTS_CHARACTERS_MAX else "{}"


def record_of(
    judged: Judged, decision: Decision, conclusion: Conclusion, decision_id: str, model: str
) -> Record:
    """As the stream keeps it. Facts without a value are left out: `complete` puts them back."""
    score = judged.score
    return Record(
        decision_id or mint_now(Kind.DECISION, judged.asked.slot),
        judged.observation._replace(action=str(conclusion)),
        {name: value for name, value in judged.facts.items() if value},
        str(conclusion),
        decision.reasons,
        tuple(hit.rule for hit in decision.hits if not hit.shadow),
        tuple(hit.rule for hit in decision.hits if hit.shadow),
        decision.version,
        model,
        tuple(sorted(decision.without)),
        score.factors if score is not None else (),
        tuple(judged.shadows),
    )
