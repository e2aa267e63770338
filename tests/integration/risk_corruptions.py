"""What may be wrong with risk's cases (see corruptions.py)."""

from __future__ import annotations

from tests.integration.broken import Broken

# An ID of ann's slot: that of her account, as another kind.
_BODY = "substr('{ann}', 4)"
_DECISION = (
    f"INSERT INTO risk_decisions VALUES ({{ann_slot}}, 'dec' || {_BODY}, 'x', 'transfer', 'review',"
    " '', '', 1, 'USD', '', '', '', 1, '', now())"
)


def _case(family: str, kind: str, state: str) -> str:
    return (
        f"INSERT INTO risk_cases VALUES ({{ann_slot}}, '{family}' || {_BODY}, '{kind}', '{state}',"
        f" 'x', 'transfer', '', '', 1, 'USD', 'never', '', 'dec' || {_BODY}, '', '', '', 0, '', '',"
        " '', now(), now(), now())"
    )


RISK_CORRUPTIONS = {
    "a challenge that was used up by nothing": Broken(
        "used_case_has_its_effect", [_DECISION, _case("chl", "challenge", "used")]
    ),
    "a review that passed by itself": Broken(
        "review_was_decided_by_somebody", [_DECISION, _case("rvw", "review", "passed")]
    ),
    "a case that nobody decided to open": Broken(
        "case_has_its_decision", [_case("chl", "challenge", "open")]
    ),
}
