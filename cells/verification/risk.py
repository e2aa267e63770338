"""The checks of risk's cases: what passed a request, and who said so.

Queries as in checks.py: each is for the rows that should not be there.
"""

from __future__ import annotations

from cells.verification.checks import Check

CHECKS = (
    Check(
        "used_case_has_its_effect",
        2,
        "{case_id} of {user_id} was used up by a {operation} that did not happen",
        """SELECT c.case_id, c.user_id, c.operation FROM risk_cases AS c
        LEFT JOIN payments AS p ON c.operation = 'pay' AND p.slot = c.slot
            AND p.order_id = c.subject_id AND p.idempotency_key = c.idempotency_key
        LEFT JOIN idempotency AS i ON c.operation <> 'pay' AND i.slot = c.slot
            AND i.idempotency_id = c.user_id || chr(31) || c.idempotency_key
        WHERE c.state = 'used' AND p.payment_id IS NULL AND i.resource_id IS NULL""",
    ),
    Check(
        "review_was_decided_by_somebody",
        7,
        "review {case_id} of {user_id} is {state}, and nobody is named who decided it",
        """SELECT case_id, user_id, state FROM risk_cases
        WHERE kind = 'review' AND state IN ('passed', 'used', 'failed')
            AND (decided_by = '' OR audit_id = '')""",
    ),
    Check(
        "case_has_its_decision",
        7,
        "{case_id} of {user_id} names decision {decision_id}, which is not there",
        """SELECT c.case_id, c.user_id, c.decision_id FROM risk_cases AS c
        LEFT JOIN risk_decisions AS d ON d.slot = c.slot AND d.decision_id = c.decision_id
        WHERE d.decision_id IS NULL""",
    ),
)
