"""The checks of the books: each is a query for the rows that should not be there.

Plain SQL, set-based, valid on PostgreSQL and CockroachDB; sums of 64-bit columns are NUMERIC on
both, so no sum overflows. `sentence` says what is wrong with one such row, with its columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cells.verification.model import Severity


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    invariant: int
    sentence: str
    sql: str
    severity: Severity = Severity.BROKEN
    # Optional tables and their columns: the check is skipped while they are not there.
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def account_join(
    alias: str, slot: str, purpose: str, currency: str, user: str | None = None
) -> str:
    """A join that finds an account by what it is for, not by its computed ID."""
    owner = f" AND {alias}.user_id = {user}" if user else ""
    return (
        f" LEFT JOIN accounts AS {alias} ON {alias}.slot = {slot} AND {alias}.purpose = '{purpose}'"
        f" AND {alias}.currency = {currency}{owner}"
    )


def not_exactly(rows: str) -> str:
    """Of `rows` (id, posting_id, amount, debit, credit): those without just these two entries."""
    return f"""
        SELECT d.id, d.posting_id, d.amount, count(e.posting_id) AS entries
        FROM ({rows}) AS d LEFT JOIN entries AS e ON e.posting_id = d.posting_id
        GROUP BY d.id, d.posting_id, d.amount
        HAVING count(e.posting_id) <> 2
            OR count(CASE WHEN e.account_id = d.debit AND e.amount = -d.amount THEN 1 END) <> 1
            OR count(CASE WHEN e.account_id = d.credit AND e.amount = d.amount THEN 1 END) <> 1"""


POSTING = "has {entries} entries under {posting_id}, not just the two that move {amount}"

# Movements with their sign: deposits minus withdrawals.
_FLOWS = """SELECT slot, currency, CASE direction WHEN 'in' THEN amount ELSE -amount END AS amount
            FROM movements"""

MONEY = (
    Check(
        "posting_sums_to_zero",
        1,
        "posting {posting_id} sums to {amount} {currency}, not to zero",
        """SELECT e.posting_id, COALESCE(a.currency, '?') AS currency, sum(e.amount) AS amount
        FROM entries AS e
        LEFT JOIN accounts AS a ON a.slot = e.slot AND a.account_id = e.account_id
        GROUP BY e.posting_id, COALESCE(a.currency, '?') HAVING sum(e.amount) <> 0""",
    ),
    Check(
        "posting_has_its_cause",
        1,
        "posting {posting_id} ({kind}, {entries} entries) belongs to no movement, payment, refund,"
        " transfer, charge, payout or adjustment",
        """SELECT e.posting_id, min(e.kind) AS kind, count(*) AS entries FROM entries AS e
        LEFT JOIN (
            SELECT movement_id AS id FROM movements UNION ALL SELECT payment_id FROM payments
            UNION ALL SELECT refund_id FROM refunds UNION ALL SELECT transfer_id FROM transfers
            UNION ALL SELECT transfer_id || '/payer' FROM transfers
            UNION ALL SELECT transfer_id || '/payee' FROM transfers
            UNION ALL SELECT charge_id FROM charges UNION ALL SELECT refund_id FROM charge_refunds
            UNION ALL SELECT payout_id FROM payouts
            UNION ALL SELECT payout_id || '/returned' FROM payouts
            UNION ALL SELECT adjustment_id FROM adjustments
        ) AS cause ON cause.id = e.posting_id
        WHERE cause.id IS NULL GROUP BY e.posting_id""",
    ),
    Check(
        "entry_has_its_account",
        1,
        "account {account_id} has {entries} entries in slot {slot} but does not exist there",
        """SELECT e.account_id, e.slot, count(*) AS entries FROM entries AS e
        LEFT JOIN accounts AS a ON a.slot = e.slot AND a.account_id = e.account_id
        WHERE a.account_id IS NULL GROUP BY e.account_id, e.slot""",
    ),
    Check(
        "balance_is_sum_of_entries",
        1,
        "account {account_id} ({purpose} of {user_id}) has balance {balance} but its entries sum"
        " to {entered}",
        """SELECT a.account_id, a.user_id, a.purpose, a.balance, COALESCE(e.entered, 0) AS entered
        FROM accounts AS a LEFT JOIN (
            SELECT slot, account_id, sum(amount) AS entered FROM entries GROUP BY slot, account_id
        ) AS e ON e.slot = a.slot AND e.account_id = a.account_id
        WHERE a.balance <> COALESCE(e.entered, 0)""",
    ),
    Check(
        "entries_are_contiguous",
        1,
        "account {account_id} has {entries} entries, {lowest} to {highest}, but counts {sequence}",
        """SELECT a.account_id, a.sequence, COALESCE(e.entries, 0) AS entries,
            COALESCE(e.lowest, 0) AS lowest, COALESCE(e.highest, 0) AS highest
        FROM accounts AS a LEFT JOIN (
            SELECT slot, account_id, count(*) AS entries, min(sequence) AS lowest,
                max(sequence) AS highest
            FROM entries GROUP BY slot, account_id
        ) AS e ON e.slot = a.slot AND e.account_id = a.account_id
        WHERE COALESCE(e.entries, 0) <> a.sequence OR COALESCE(e.highest, 0) <> a.sequence
            OR COALESCE(e.lowest, 1) <> 1""",
    ),
    Check(
        "balance_after_is_running_sum",
        1,
        "entry {sequence} of account {account_id} says balance {balance_after}, its sum so far is"
        " {running}",
        """SELECT account_id, sequence, balance_after, running FROM (
            SELECT account_id, sequence, balance_after, sum(amount) OVER (
                PARTITION BY slot, account_id ORDER BY sequence
            ) AS running FROM entries
        ) AS e WHERE balance_after <> running""",
    ),
    Check(
        "balance_is_above_its_limit",
        1,
        "account {account_id} ({purpose} of {user_id}) has balance {balance}, held {held}, below"
        " its limit",
        """SELECT account_id, user_id, purpose, balance, held FROM accounts
        WHERE balance - held <
            CASE WHEN purpose IN ('balance', 'collection') THEN 0 ELSE floor END""",
    ),
    Check(
        "money_is_conserved",
        1,
        "users, collection and clearing accounts, and what lies with banks, hold {held}"
        " {currency}; deposits minus withdrawals are {moved}",
        f"""SELECT currency, sum(held) AS held, sum(moved) AS moved FROM (
            SELECT currency, balance AS held, 0 AS moved FROM accounts WHERE purpose <> 'external'
            UNION ALL SELECT currency, 0, amount FROM ({_FLOWS}) AS f
        ) AS m GROUP BY currency HAVING sum(held) <> sum(moved)""",
    ),
    Check(
        "mesh_sums_to_zero",
        1,
        "all accounts in {currency}, the outside world included, sum to {balance}, not to zero",
        """SELECT currency, sum(balance) AS balance FROM accounts
        GROUP BY currency HAVING sum(balance) <> 0""",
    ),
    Check(
        "external_is_what_moved",
        1,
        "the external account of slot {slot} has {balance} {currency}; deposits minus"
        " withdrawals there are {moved}",
        f"""SELECT slot, currency, sum(balance) AS balance, sum(moved) AS moved FROM (
            SELECT slot, currency, balance, 0 AS moved FROM accounts WHERE purpose = 'external'
            UNION ALL SELECT slot, currency, 0, amount FROM ({_FLOWS}) AS f
        ) AS m GROUP BY slot, currency HAVING sum(balance) <> -sum(moved)""",
    ),
    Check(
        "clearing_is_money_in_flight",
        1,
        "clearing accounts hold {balance} {currency}; transfers in flight carry {flying}",
        """SELECT currency, sum(balance) AS balance, sum(flying) AS flying FROM (
            SELECT currency, balance, 0 AS flying FROM accounts WHERE purpose = 'clearing'
            UNION ALL SELECT t.currency, 0, t.amount FROM transfers AS t
            LEFT JOIN branches AS b ON b.transfer_id = t.transfer_id AND b.state = 'confirmed'
            WHERE t.state = 'committing' AND b.transfer_id IS NULL
        ) AS m GROUP BY currency HAVING sum(balance) <> sum(flying)""",
    ),
    Check(
        "reserved_is_pending_refunds",
        1,
        "account {account_id} (collection of {user_id}) reserves {reserved}; its pending refunds"
        " are {due}",
        """SELECT a.account_id, a.user_id, a.reserved, COALESCE(r.due, 0) AS due
        FROM accounts AS a LEFT JOIN (
            SELECT slot, merchant_id, currency, sum(amount) AS due FROM refunds
            WHERE state = 'pending' GROUP BY slot, merchant_id, currency
        ) AS r ON r.slot = a.slot AND r.merchant_id = a.user_id AND r.currency = a.currency
            AND a.purpose = 'collection'
        WHERE a.reserved <> COALESCE(r.due, 0)""",
    ),
    Check(
        "user_has_one_account",
        1,
        "{user_id} has {accounts} {purpose} accounts in {currency}",
        """SELECT user_id, purpose, currency, count(*) AS accounts FROM accounts
        GROUP BY user_id, purpose, currency, CASE purpose WHEN 'balance' THEN -1 ELSE slot END
        HAVING count(*) > 1""",
    ),
    Check(
        "closed_account_is_empty",
        1,
        "account {account_id} of {user_id} is closed but has balance {balance}, held {held},"
        " promised {promised}, reserved {reserved}",
        """SELECT account_id, user_id, balance, held, promised, reserved FROM accounts
        WHERE state = 'closed'
            AND (balance <> 0 OR held <> 0 OR promised <> 0 OR reserved <> 0)""",
    ),
    Check(
        "merchant_list_matches_accounts",
        1,
        "merchant account {account_id}: the account is {state}, the list of merchants says"
        " {listed}",
        """SELECT account_id, COALESCE(max(state), 'missing') AS state,
            COALESCE(max(listed), 'missing') AS listed FROM (
            SELECT slot, account_id, user_id, currency, state, CAST(NULL AS text) AS listed
            FROM accounts WHERE purpose = 'balance' AND kind = 'merchant'
            UNION ALL SELECT slot, account_id, merchant_id, currency, NULL, state FROM merchants
        ) AS m GROUP BY slot, account_id, user_id, currency
        HAVING COALESCE(max(state), '') <> COALESCE(max(listed), '')""",
    ),
    Check(
        "movement_has_its_posting",
        1,
        "movement {id} " + POSTING,
        not_exactly(
            """SELECT m.movement_id AS id, m.movement_id AS posting_id, m.amount,
            CASE m.direction WHEN 'in' THEN x.account_id ELSE m.account_id END AS debit,
            CASE m.direction WHEN 'in' THEN m.account_id ELSE x.account_id END AS credit
            FROM movements AS m"""
            + account_join("x", "m.slot", "external", "m.currency")
        ),
    ),
)

PAYMENTS = (
    Check(
        "payment_has_its_order",
        1,
        "payment {payment_id} of {amount} {currency}: its order {order_id} is {found}",
        """SELECT p.payment_id, p.order_id, p.amount, p.currency, CASE
            WHEN o.order_id IS NULL THEN 'missing'
            WHEN o.state <> 'paid' THEN o.state
            WHEN o.payment_id <> p.payment_id THEN 'paid by ' || o.payment_id
            ELSE 'for other parties or another amount' END AS found
        FROM payments AS p LEFT JOIN orders AS o ON o.slot = p.slot AND o.order_id = p.order_id
        WHERE o.order_id IS NULL OR o.state <> 'paid' OR o.payment_id <> p.payment_id
            OR o.amount <> p.amount OR o.currency <> p.currency
            OR o.payer_id <> p.payer_id OR o.merchant_id <> p.merchant_id""",
    ),
    Check(
        "paid_order_has_its_payment",
        1,
        "order {order_id} is {state} and names payment {payment_id}, which is {found}",
        """SELECT o.order_id, o.state, o.payment_id, CASE
            WHEN p.payment_id IS NULL THEN 'missing'
            WHEN p.order_id <> o.order_id THEN 'for order ' || p.order_id
            ELSE 'there' END AS found
        FROM orders AS o LEFT JOIN payments AS p ON p.slot = o.slot AND p.payment_id = o.payment_id
        WHERE (o.state = 'paid' AND (p.payment_id IS NULL OR p.order_id <> o.order_id))
            OR (o.state <> 'paid' AND o.payment_id <> '')""",
    ),
    Check(
        "order_is_paid_once",
        2,
        "order {order_id} has {payments} payments",
        """SELECT order_id, count(*) AS payments FROM payments
        GROUP BY order_id HAVING count(*) > 1""",
    ),
    Check(
        "payment_has_its_posting",
        1,
        "payment {id} " + POSTING,
        not_exactly(
            """SELECT p.payment_id AS id, p.payment_id AS posting_id, p.amount,
            payer.account_id AS debit, collection.account_id AS credit FROM payments AS p"""
            + account_join("payer", "p.slot", "balance", "p.currency", "p.payer_id")
            + account_join("collection", "p.slot", "collection", "p.currency", "p.merchant_id")
        ),
    ),
    Check(
        "refunds_are_within_payment",
        1,
        "payment {payment_id} of {amount} says {refunded} refunded; its refunds are {refunds}",
        """SELECT p.payment_id, p.amount, p.refunded, COALESCE(r.refunds, 0) AS refunds
        FROM payments AS p LEFT JOIN (
            SELECT slot, payment_id, sum(amount) AS refunds FROM refunds
            WHERE state <> 'failed' GROUP BY slot, payment_id
        ) AS r ON r.slot = p.slot AND r.payment_id = p.payment_id
        WHERE p.refunded <> COALESCE(r.refunds, 0) OR p.refunded > p.amount OR p.refunded < 0""",
    ),
    Check(
        "refund_has_its_payment",
        1,
        "refund {refund_id}: its payment {payment_id} is missing or between other parties",
        """SELECT r.refund_id, r.payment_id FROM refunds AS r
        LEFT JOIN payments AS p ON p.slot = r.slot AND p.payment_id = r.payment_id
            AND p.payer_id = r.payer_id AND p.merchant_id = r.merchant_id
            AND p.currency = r.currency
        WHERE p.payment_id IS NULL""",
    ),
    Check(
        "refund_has_its_posting",
        1,
        "refund {id} " + POSTING,
        not_exactly(
            """SELECT r.refund_id AS id, r.refund_id AS posting_id, r.amount,
            collection.account_id AS debit, payer.account_id AS credit FROM refunds AS r"""
            + account_join("payer", "r.slot", "balance", "r.currency", "r.payer_id")
            + account_join("collection", "r.slot", "collection", "r.currency", "r.merchant_id")
            + " WHERE r.state = 'succeeded'"
        ),
    ),
    Check(
        "unpaid_refund_moved_nothing",
        1,
        "refund {refund_id} is {state} but has {entries} entries",
        """SELECT r.refund_id, r.state, count(*) AS entries FROM refunds AS r
        JOIN entries AS e ON e.posting_id = r.refund_id
        WHERE r.state <> 'succeeded' GROUP BY r.refund_id, r.state""",
    ),
    Check(
        "refund_is_pending",
        1,
        "refund {refund_id} of payment {payment_id} waits for {amount} {currency} from its"
        " merchant's home",
        "SELECT refund_id, payment_id, amount, currency FROM refunds WHERE state = 'pending'",
        Severity.PENDING,
    ),
)

TRANSFERS = (
    Check(
        "held_is_tries",
        5,
        "account {account_id} of {user_id} holds {held}; its transfers being tried, payouts and"
        " refunds to cards are {tried}",
        """SELECT a.account_id, a.user_id, a.held, COALESCE(t.tried, 0) AS tried
        FROM accounts AS a LEFT JOIN (
            SELECT slot, account_id, sum(amount) AS tried FROM (
                SELECT slot, payer_account_id AS account_id, amount FROM transfers
                WHERE state = 'trying'
                UNION ALL SELECT p.slot, p.account_id, o.amount FROM (
                    SELECT slot, user_id, currency, amount FROM payouts
                    WHERE state IN ('held', 'sending')
                    UNION ALL SELECT slot, user_id, currency, amount FROM charge_refunds
                    WHERE state IN ('held', 'sending')
                ) AS o JOIN accounts AS p ON p.slot = o.slot AND p.user_id = o.user_id
                    AND p.currency = o.currency AND p.purpose = 'balance'
            ) AS hold GROUP BY slot, account_id
        ) AS t ON t.slot = a.slot AND t.account_id = a.account_id
        WHERE a.held <> COALESCE(t.tried, 0)""",
    ),
    Check(
        "promised_is_tries_and_refunds",
        5,
        "account {account_id} of {user_id} is promised {promised}; tried branches, pending"
        " refunds and charges to it are {due}",
        """SELECT a.account_id, a.user_id, a.promised, COALESCE(d.due, 0) AS due
        FROM accounts AS a LEFT JOIN (
            SELECT slot, account_id, sum(amount) AS due FROM (
                SELECT slot, payee_account_id AS account_id, amount FROM branches
                WHERE state = 'tried'
                UNION ALL SELECT p.slot, p.account_id, r.amount FROM (
                    SELECT slot, payer_id AS user_id, currency, amount FROM refunds
                    WHERE state = 'pending'
                    UNION ALL SELECT slot, user_id, currency, amount FROM charges
                    WHERE state IN ('processing', 'reversing')
                ) AS r JOIN accounts AS p ON p.slot = r.slot AND p.user_id = r.user_id
                    AND p.currency = r.currency AND p.purpose = 'balance'
            ) AS promise GROUP BY slot, account_id
        ) AS d ON d.slot = a.slot AND d.account_id = a.account_id
        WHERE a.promised <> COALESCE(d.due, 0)""",
    ),
    Check(
        "transfer_in_one_cell_has_its_posting",
        5,
        "transfer {id} is confirmed, has no branch, and " + POSTING,
        not_exactly(
            """SELECT t.transfer_id AS id, t.transfer_id AS posting_id, t.amount,
            t.payer_account_id AS debit, t.payee_account_id AS credit FROM transfers AS t
            LEFT JOIN branches AS b ON b.transfer_id = t.transfer_id
            WHERE t.state = 'confirmed' AND b.transfer_id IS NULL"""
        ),
    ),
    Check(
        "committed_transfer_left_the_payer",
        5,
        "transfer {id} is decided, and " + POSTING,
        not_exactly(
            """SELECT t.transfer_id AS id, t.transfer_id || '/payer' AS posting_id, t.amount,
            t.payer_account_id AS debit, c.account_id AS credit FROM transfers AS t
            LEFT JOIN branches AS b ON b.transfer_id = t.transfer_id"""
            + account_join("c", "t.slot", "clearing", "t.currency")
            + """ WHERE t.state = 'committing'
            OR (t.state = 'confirmed' AND b.transfer_id IS NOT NULL)"""
        ),
    ),
    Check(
        "transfer_moves_money_one_way",
        5,
        "transfer {transfer_id} moved money both in one cell and across cells",
        """SELECT t.transfer_id FROM transfers AS t
        JOIN entries AS e ON split_part(e.posting_id, '/', 1) = t.transfer_id
        GROUP BY t.transfer_id HAVING min(e.posting_id) = t.transfer_id
            AND max(e.posting_id) <> t.transfer_id""",
    ),
    Check(
        "undecided_or_cancelled_transfer_moved_nothing",
        5,
        "transfer {transfer_id} is {state} but has {entries} entries",
        """SELECT t.transfer_id, t.state, count(*) AS entries FROM transfers AS t
        JOIN entries AS e ON split_part(e.posting_id, '/', 1) = t.transfer_id
        WHERE t.state IN ('trying', 'cancelling', 'cancelled')
        GROUP BY t.transfer_id, t.state""",
    ),
    Check(
        "branch_obeys_the_decision",
        5,
        "transfer {transfer_id} is {state} but its branch is {branch}",
        """SELECT t.transfer_id, t.state, COALESCE(b.state, 'missing') AS branch
        FROM transfers AS t LEFT JOIN branches AS b ON b.transfer_id = t.transfer_id
        WHERE (t.state = 'committing' AND COALESCE(b.state, '') NOT IN ('tried', 'confirmed'))
            OR (t.state = 'confirmed' AND b.state IN ('tried', 'cancelled'))
            OR (t.state IN ('trying', 'cancelling', 'cancelled') AND b.state = 'confirmed')
            OR (t.state = 'cancelled' AND b.state = 'tried')""",
    ),
    Check(
        "branch_matches_its_transfer",
        5,
        "branch {branch_id} of {amount} {currency}: its transfer {transfer_id} is missing, in"
        " another amount or to another payee",
        """SELECT b.branch_id, b.transfer_id, b.amount, b.currency FROM branches AS b
        LEFT JOIN transfers AS t ON t.transfer_id = b.transfer_id
        WHERE t.transfer_id IS NULL OR b.payee_account_id <> t.payee_account_id
            OR ((b.amount <> t.amount OR b.currency <> t.currency)
                AND NOT (b.state = 'cancelled' AND b.amount = 0 AND b.currency = ''))""",
    ),
    Check(
        "transfer_has_one_branch",
        5,
        "transfer {transfer_id} has {branches} branches",
        """SELECT transfer_id, count(*) AS branches FROM branches
        GROUP BY transfer_id HAVING count(*) > 1""",
    ),
    Check(
        "confirmed_branch_paid_the_payee",
        5,
        "branch {id} is confirmed, and " + POSTING,
        not_exactly(
            """SELECT b.branch_id AS id, b.transfer_id || '/payee' AS posting_id, b.amount,
            c.account_id AS debit, b.payee_account_id AS credit FROM branches AS b"""
            + account_join("c", "b.slot", "clearing", "b.currency")
            + " WHERE b.state = 'confirmed'"
        ),
    ),
    Check(
        "payee_was_paid_by_a_confirmed_branch",
        5,
        "posting {posting_id} paid a payee, but its branch is {branch}",
        """SELECT e.posting_id, COALESCE(b.state, 'missing') AS branch FROM entries AS e
        LEFT JOIN branches AS b ON b.transfer_id = split_part(e.posting_id, '/', 1)
        WHERE split_part(e.posting_id, '/', 2) = 'payee' AND COALESCE(b.state, '') <> 'confirmed'
        GROUP BY e.posting_id, COALESCE(b.state, 'missing')""",
    ),
    Check(
        "transfer_is_in_doubt",
        5,
        "transfer {transfer_id} of {amount} {currency} is {state} since {since}",
        """SELECT transfer_id, amount, currency, state, touched_at AS since FROM transfers
        WHERE state IN ('trying', 'committing', 'cancelling')""",
        Severity.PENDING,
    ),
)

CHECKS = (*MONEY, *PAYMENTS, *TRANSFERS)
