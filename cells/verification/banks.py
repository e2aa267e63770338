"""The checks of dealings with banks: charges, their refunds, payouts, attempts, adjustments.

Queries as in checks.py: each is for the rows that should not be there.
"""

from __future__ import annotations

from cells.verification.checks import POSTING, Check, account_join, not_exactly
from cells.verification.model import Severity

OPEN = "'sent', 'pending', 'unknown'"
_APPROVED = """SELECT owner_id, count(*) AS approvals, max(attempt_id) AS attempt_id FROM attempts
            WHERE state = 'approved' AND operation IN ('authorise', 'refund', 'payout')
            GROUP BY owner_id"""
# Owners of attempts, and whether they still wait for a bank.
_OWNERS = """SELECT slot, charge_id AS owner_id, state IN ('processing', 'reversing') AS waits
            FROM charges
            UNION ALL SELECT slot, refund_id, state = 'sending' FROM charge_refunds
            UNION ALL SELECT slot, payout_id, state = 'sending' FROM payouts"""
# What each ended owner posted between a user and a channel.
_SETTLED = """SELECT slot, charge_id AS owner_id, attempt_id, state = 'succeeded' AS posted,
            state = 'reversing' AS undoing, state FROM charges
            UNION ALL SELECT slot, refund_id, attempt_id, state = 'succeeded', false, state
            FROM charge_refunds
            UNION ALL SELECT slot, payout_id, attempt_id, state IN ('paid', 'returned'), false,
            state FROM payouts"""


def _moved_nothing(name: str, noun: str, table: str, column: str, moved: str) -> Check:
    return Check(
        name,
        1,
        f"{noun} {{id}} is {{state}} but has {{entries}} entries",
        f"""SELECT t.{column} AS id, t.state, count(*) AS entries FROM {table} AS t
        JOIN entries AS e ON e.posting_id = t.{column}
        WHERE t.state NOT IN ({moved}) GROUP BY t.{column}, t.state""",
    )


POSTINGS = (
    Check(
        "charge_has_its_posting",
        1,
        "charge {id} " + POSTING,
        not_exactly(
            """SELECT c.charge_id AS id, c.charge_id AS posting_id, c.amount,
            bank.account_id AS debit, payer.account_id AS credit FROM charges AS c
            JOIN attempts AS t ON t.slot = c.slot AND t.attempt_id = c.attempt_id"""
            + account_join("payer", "c.slot", "balance", "c.currency", "c.user_id")
            + account_join("bank", "c.slot", "channel", "c.currency", "t.channel")
            + " WHERE c.state = 'succeeded'"
        ),
    ),
    _moved_nothing(
        "unsettled_charge_moved_nothing", "charge", "charges", "charge_id", "'succeeded'"
    ),
    Check(
        "charge_refund_has_its_posting",
        1,
        "refund {id} of a charge " + POSTING,
        not_exactly(
            """SELECT r.refund_id AS id, r.refund_id AS posting_id, r.amount,
            payee.account_id AS debit, bank.account_id AS credit FROM charge_refunds AS r"""
            + account_join("payee", "r.slot", "balance", "r.currency", "r.user_id")
            + account_join("bank", "r.slot", "channel", "r.currency", "r.channel")
            + " WHERE r.state = 'succeeded'"
        ),
    ),
    _moved_nothing(
        "unsettled_charge_refund_moved_nothing",
        "refund",
        "charge_refunds",
        "refund_id",
        "'succeeded'",
    ),
    Check(
        "payout_has_its_posting",
        1,
        "payout {id} " + POSTING,
        not_exactly(
            """SELECT p.payout_id AS id, p.payout_id AS posting_id, p.amount,
            payee.account_id AS debit, bank.account_id AS credit FROM payouts AS p"""
            + account_join("payee", "p.slot", "balance", "p.currency", "p.user_id")
            + account_join("bank", "p.slot", "channel", "p.currency", "p.channel")
            + " WHERE p.state IN ('paid', 'returned')"
        ),
    ),
    _moved_nothing(
        "unpaid_payout_moved_nothing", "payout", "payouts", "payout_id", "'paid', 'returned'"
    ),
    Check(
        "returned_payout_has_its_posting",
        1,
        "payout {id} came back, and " + POSTING,
        not_exactly(
            """SELECT p.payout_id AS id, p.payout_id || '/returned' AS posting_id, p.amount,
            bank.account_id AS debit, payee.account_id AS credit FROM payouts AS p"""
            + account_join("payee", "p.slot", "balance", "p.currency", "p.user_id")
            + account_join("bank", "p.slot", "channel", "p.currency", "p.channel")
            + " WHERE p.state = 'returned'"
        ),
    ),
    Check(
        "payout_came_back_once_it_was_returned",
        1,
        "payout {payout_id} is {state}, but money of it came back",
        """SELECT p.payout_id, p.state FROM payouts AS p
        JOIN entries AS e ON e.posting_id = p.payout_id || '/returned'
        WHERE p.state <> 'returned' GROUP BY p.payout_id, p.state""",
    ),
    Check(
        "adjustment_has_its_posting",
        1,
        "adjustment {id} " + POSTING,
        not_exactly(
            """SELECT j.adjustment_id AS id, j.adjustment_id AS posting_id, j.amount,
            CASE j.source WHEN 'user' THEN payer.account_id WHEN 'channel' THEN bank.account_id
                WHEN 'fees' THEN fees.account_id ELSE suspense.account_id END AS debit,
            CASE j.target WHEN 'user' THEN payer.account_id WHEN 'channel' THEN bank.account_id
                WHEN 'fees' THEN fees.account_id ELSE suspense.account_id END AS credit
            FROM adjustments AS j"""
            + account_join("payer", "j.slot", "balance", "j.currency", "j.user_id")
            + account_join("bank", "j.slot", "channel", "j.currency", "j.channel")
            + account_join("fees", "j.slot", "fees", "j.currency")
            + account_join("suspense", "j.slot", "suspense", "j.currency")
        ),
    ),
    Check(
        "charge_names_its_payment",
        1,
        "charge {charge_id} of order {order_id} names payment {payment_id}, which is not of it",
        """SELECT c.charge_id, c.order_id, c.payment_id FROM charges AS c
        LEFT JOIN payments AS p ON p.slot = c.slot AND p.payment_id = c.payment_id
            AND p.order_id = c.order_id AND p.amount = c.amount AND p.payer_id = c.user_id
        WHERE c.payment_id <> '' AND (p.payment_id IS NULL OR c.state <> 'succeeded')""",
    ),
    Check(
        "charge_refunds_are_within_charge",
        1,
        "charge {charge_id} of {amount} says {refunded} refunded; its refunds are {refunds}",
        """SELECT c.charge_id, c.amount, c.refunded, COALESCE(r.refunds, 0) AS refunds
        FROM charges AS c LEFT JOIN (
            SELECT slot, charge_id, sum(amount) AS refunds FROM charge_refunds
            WHERE state <> 'failed' GROUP BY slot, charge_id
        ) AS r ON r.slot = c.slot AND r.charge_id = c.charge_id
        WHERE c.refunded <> COALESCE(r.refunds, 0) OR c.refunded > c.amount OR c.refunded < 0
            OR (c.refunded > 0 AND c.state <> 'succeeded')""",
    ),
)

ATTEMPTS = (
    Check(
        "owner_is_approved_once",
        2,
        "{owner_id} has {approvals} approved requests to banks",
        f"SELECT owner_id, approvals FROM ({_APPROVED}) AS a WHERE approvals > 1",
    ),
    Check(
        "money_moved_by_an_approval",
        1,
        "{owner_id} is {state}; the approved request to a bank is {approved}",
        f"""SELECT o.owner_id, o.state, COALESCE(a.attempt_id, 'none') AS approved
        FROM ({_SETTLED}) AS o LEFT JOIN ({_APPROVED}) AS a ON a.owner_id = o.owner_id
        WHERE NOT o.undoing AND o.posted <> (COALESCE(a.attempt_id, '') = o.attempt_id
            AND o.attempt_id <> '')""",
    ),
    Check(
        "open_attempt_has_an_open_owner",
        5,
        "attempt {attempt_id} is {state}, but {owner_id} waits for no bank",
        f"""SELECT a.attempt_id, a.state, a.owner_id FROM attempts AS a
        LEFT JOIN ({_OWNERS}) AS o ON o.slot = a.slot AND o.owner_id = a.owner_id
        WHERE a.state IN ({OPEN}) AND NOT COALESCE(o.waits, false)""",
    ),
    Check(
        "owner_waits_for_an_open_attempt",
        5,
        "{owner_id} waits for a bank, but no request to one is open",
        f"""SELECT o.owner_id FROM ({_OWNERS}) AS o
        LEFT JOIN attempts AS a ON a.slot = o.slot AND a.owner_id = o.owner_id
            AND a.state IN ({OPEN})
        WHERE o.waits AND a.attempt_id IS NULL""",
    ),
    Check(
        "one_attempt_is_open_at_once",
        2,
        "{owner_id} has {attempts} open requests of the kind {operation}",
        f"""SELECT owner_id, operation, count(*) AS attempts FROM attempts
        WHERE state IN ({OPEN}) GROUP BY owner_id, operation HAVING count(*) > 1""",
    ),
    Check(
        "channel_is_what_banks_approved",
        1,
        "the account of channel {channel} in slot {slot} has {balance} {currency}; what it"
        " approved and what was adjusted come to {said}",
        """SELECT slot, channel, currency, sum(balance) AS balance, sum(said) AS said FROM (
            SELECT slot, user_id AS channel, currency, balance, 0 AS said FROM accounts
            WHERE purpose = 'channel'
            UNION ALL SELECT a.slot, a.channel, a.currency, 0,
                CASE a.operation WHEN 'authorise' THEN -a.amount ELSE a.amount END
            FROM attempts AS a
            LEFT JOIN charges AS c ON c.slot = a.slot AND c.charge_id = a.owner_id
            WHERE a.state = 'approved' AND a.operation IN ('authorise', 'refund', 'payout')
                AND COALESCE(c.state, '') <> 'reversing'
            UNION ALL SELECT slot, channel, currency, 0, -amount FROM payouts
            WHERE state = 'returned'
            UNION ALL SELECT slot, channel, currency, 0,
                CASE 'channel' WHEN source THEN -amount WHEN target THEN amount ELSE 0 END
            FROM adjustments
        ) AS m GROUP BY slot, channel, currency HAVING sum(balance) <> sum(said)""",
    ),
    Check(
        "attempt_is_disputed",
        1,
        "attempt {attempt_id} through {channel} is {state}, and the bank said later: {dispute}",
        "SELECT attempt_id, channel, state, dispute FROM attempts WHERE dispute <> ''",
        Severity.PENDING,
    ),
    Check(
        "attempt_is_open",
        5,
        "attempt {attempt_id} ({operation} of {amount} {currency}) through {channel} is {state}"
        " since {since}",
        f"""SELECT attempt_id, operation, amount, currency, channel, state, created_at AS since
        FROM attempts WHERE state IN ({OPEN})""",
        Severity.PENDING,
    ),
    Check(
        "payment_out_is_held",
        5,
        "{id} of {amount} {currency} is held and waits for a bank since {since}",
        """SELECT payout_id AS id, amount, currency, created_at AS since FROM payouts
        WHERE state = 'held'
        UNION ALL SELECT refund_id, amount, currency, created_at FROM charge_refunds
        WHERE state = 'held'""",
        Severity.PENDING,
    ),
)

CHECKS = (*POSTINGS, *ATTEMPTS)
