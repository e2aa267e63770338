"""The checks of what a request leaves behind beside its entries: records, epochs, events.

Queries as in checks.py: each is for the rows that should not be there.
"""

from __future__ import annotations

from cells.verification.checks import Check
from cells.verification.model import Severity

# Events are kept at least since then (see auditor.audit).
_KEPT_SINCE = "CAST(:kept_since AS timestamptz)"
_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

# What the record of a method names: the ID's column and the methods.
_RESOURCES = {
    "refunds": ("refund_id", "'RefundPayment'"),
    "movements": ("movement_id", "'Deposit', 'Withdraw'"),
    "transfers": ("transfer_id", "'CreateTransfer', 'FundCollection'"),
    "orders": ("order_id", "'CreateOrder', 'CloseOrder'"),
    "accounts": ("account_id", "'OpenAccount', 'CloseAccount'"),
    "charges": ("charge_id", "'CreateCharge'"),
    "charge_refunds": ("refund_id", "'RefundCharge'"),
    "payouts": ("payout_id", "'CreatePayout'"),
}
KNOWN_METHODS = ", ".join(methods for _, methods in _RESOURCES.values())
_MAY_REPEAT = "'OpenAccount', 'CloseAccount', 'CloseOrder'"
_ALL_RESOURCES = " UNION ALL ".join(
    f"SELECT r.slot, r.idempotency_id, r.method, r.resource_id FROM idempotency AS r"
    f" LEFT JOIN {table} AS t ON t.slot = r.slot AND t.{column} = r.resource_id"
    f" WHERE r.method IN ({methods}) AND t.{column} IS NULL"
    for table, (column, methods) in _RESOURCES.items()
)
# What a request with a key made. Settlement has no request: it takes what is free, and neither has
# the refund of a charge whose order had ended. Payments hold their own key.
_EFFECTS = """
    SELECT slot, order_id AS id FROM orders
    UNION ALL SELECT slot, movement_id FROM movements UNION ALL SELECT slot, refund_id FROM refunds
    UNION ALL SELECT slot, transfer_id FROM transfers WHERE kind <> 'settlement'
    UNION ALL SELECT slot, charge_id FROM charges UNION ALL SELECT slot, payout_id FROM payouts
    UNION ALL SELECT slot, refund_id FROM charge_refunds WHERE cause = 'requested'
    UNION ALL SELECT slot, account_id FROM accounts WHERE purpose = 'balance'"""

REQUESTS = (
    Check(
        "record_has_its_resource",
        2,
        "the idempotency record of a {method} names {resource_id}, which does not exist",
        f"SELECT method, resource_id FROM ({_ALL_RESOURCES}) AS r",
    ),
    Check(
        "effect_has_one_request",
        2,
        "{resource_id} has {records} idempotency records: {records} requests made one thing",
        f"""SELECT resource_id, count(*) AS records FROM idempotency
        WHERE method IN ({KNOWN_METHODS}) AND method NOT IN ({_MAY_REPEAT})
        GROUP BY resource_id HAVING count(*) > 1""",
    ),
    Check(
        "effect_has_its_request",
        2,
        "{id} has no idempotency record: a repeat of its request would make it twice",
        f"""SELECT w.id FROM ({_EFFECTS}) AS w LEFT JOIN (
            SELECT DISTINCT slot, resource_id FROM idempotency
            WHERE method NOT IN ('CloseOrder', 'CloseAccount')
        ) AS r ON r.slot = w.slot AND r.resource_id = w.id
        WHERE r.resource_id IS NULL""",
    ),
    Check(
        "payment_has_its_request",
        2,
        "{payment_id} holds no idempotency key: a repeat of its request would not find it",
        "SELECT payment_id FROM payments WHERE idempotency_key = ''",
    ),
)

_IDS = {
    "accounts": "account_id", "movements": "movement_id", "orders": "order_id",
    "payments": "payment_id", "refunds": "refund_id", "transfers": "transfer_id",
    "branches": "branch_id", "outbox": "batch_id", "attempts": "attempt_id",
    "decisions": "attempt_id", "charges": "charge_id", "charge_refunds": "refund_id",
    "payouts": "payout_id", "adjustments": "adjustment_id",
    "risk_cases": "case_id", "risk_decisions": "decision_id", "risk_factors": "factor_id",
}  # fmt: skip
_ALL_IDS = " UNION ALL ".join(
    f"SELECT '{table}' AS held_in, slot, {column} AS id FROM {table}"
    for table, column in _IDS.items()
)

OWNERSHIP = (
    Check(
        "epoch_is_not_from_the_future",
        3,
        "entry {sequence} of account {account_id} has epoch {epoch}; slot {slot} is at"
        " {current_epoch}",
        """SELECT e.account_id, e.sequence, e.epoch, e.slot,
            COALESCE(s.epoch, 0) AS current_epoch
        FROM entries AS e LEFT JOIN slots AS s ON s.slot = e.slot
        WHERE e.epoch > COALESCE(s.epoch, 0)""",
    ),
    Check(
        "epochs_never_fall",
        3,
        "entry {sequence} of account {account_id} has epoch {epoch}, after one of epoch {earlier}",
        """SELECT account_id, sequence, epoch, earlier FROM (
            SELECT account_id, sequence, epoch, lag(epoch) OVER (
                PARTITION BY slot, account_id ORDER BY sequence
            ) AS earlier FROM entries
        ) AS e WHERE earlier > epoch""",
    ),
    Check(
        "epoch_was_assigned",
        3,
        "{entries} entries in slot {slot} have epoch {epoch}, which nobody was ever given",
        """SELECT e.slot, e.epoch, count(*) AS entries FROM entries AS e
        LEFT JOIN slot_history AS h ON h.slot = e.slot AND h.epoch = e.epoch
        WHERE h.slot IS NULL AND e.epoch <> 1 GROUP BY e.slot, e.epoch""",
    ),
    Check(
        "owner_is_in_history",
        3,
        "slot {slot} is {owner}'s at epoch {epoch}, but its history says {recorded}",
        """SELECT s.slot, s.owner, s.epoch, COALESCE(h.owner, 'nothing') AS recorded
        FROM slots AS s LEFT JOIN slot_history AS h ON h.slot = s.slot AND h.epoch = s.epoch
        WHERE h.owner <> s.owner OR (h.owner IS NULL AND s.epoch <> 1)""",
    ),
    Check(
        "history_is_not_ahead",
        3,
        "the history of slot {slot} reaches epoch {newest}; the slot is at {epoch}",
        """SELECT h.slot, max(h.epoch) AS newest, COALESCE(max(s.epoch), 0) AS epoch
        FROM slot_history AS h LEFT JOIN slots AS s ON s.slot = h.slot
        GROUP BY h.slot HAVING max(h.epoch) > COALESCE(max(s.epoch), 0)""",
    ),
    Check(
        "every_slot_is_there",
        3,
        "slot {slot} has no row in slots: nothing can be written for it",
        """SELECT n.slot FROM generate_series(0, 1023) AS n(slot)
        LEFT JOIN slots AS s ON s.slot = n.slot WHERE s.slot IS NULL""",
    ),
    Check(
        "id_carries_its_slot",
        3,
        "{id} in {held_in} lies in slot {slot}, which is not the slot that it carries",
        f"""SELECT held_in, slot, id FROM ({_ALL_IDS}) AS i
        WHERE (strpos('{_DIGITS}', substr(id, 5, 1)) - 1) * 32
            + strpos('{_DIGITS}', substr(id, 6, 1)) - 1 <> slot""",
    ),
    Check(
        "assignment_names_its_operation",
        7,
        "slot {slot} went to {owner} at epoch {epoch} by no operation",
        """SELECT slot, owner, epoch FROM slot_history
        WHERE epoch <> 1 AND operation_id = ''""",
    ),
)


# The events of the batches, a row each.
_LINES = "(SELECT type, unnest(string_to_array(lines, chr(10))) AS line FROM outbox) AS l"


def _told(noun: str, prefix: str, types: str) -> str:
    """Events with the ID that they tell of. A pattern, not a cast to JSON: bad JSON must not stop
    the audit. Quotes inside JSON strings are escaped, so only the real field matches."""
    pattern = f'"{noun}_id": ?"{prefix}_[0-9A-Z]{{28}}'
    return (
        f"SELECT type, right(substring(line, '{pattern}'), 32) AS id FROM {_LINES}"
        f" WHERE type IN ({types})"
    )


_REFUND_EVENTS = "'refund.succeeded', 'refund.failed'"
_TRANSFER_EVENTS = ", ".join(
    f"'{kind}.{state}'"
    for kind in ("transfer", "settlement", "funding")
    for state in ("confirmed", "cancelled")
)
_TOLD = " UNION ALL ".join(
    [
        _told("payment", "pay", "'payment.succeeded'"),
        _told("refund", "ref", _REFUND_EVENTS),
        _told("transfer", "tra", _TRANSFER_EVENTS),
        _told("charge", "chg", "'charge.succeeded', 'charge.failed'"),
        _told("refund", "ref", "'charge_refund.succeeded', 'charge_refund.failed'"),
        _told("payout", "pyo", "'payout.paid', 'payout.failed', 'payout.returned'"),
    ]
)
_TO_TELL = """
    SELECT payment_id AS id, 'payment.succeeded' AS type, created_at FROM payments
    UNION ALL SELECT refund_id, 'refund.' || state, created_at FROM refunds
    WHERE state IN ('succeeded', 'failed')
    UNION ALL SELECT transfer_id, kind || '.' || state, created_at FROM transfers
    WHERE state IN ('confirmed', 'cancelled')
    UNION ALL SELECT charge_id, 'charge.' || state, created_at FROM charges
    WHERE state IN ('succeeded', 'failed')
    UNION ALL SELECT refund_id, 'charge_refund.' || state, created_at FROM charge_refunds
    WHERE state IN ('succeeded', 'failed')
    UNION ALL SELECT payout_id, 'payout.' || state, created_at FROM payouts
    WHERE state IN ('paid', 'failed', 'returned')
    UNION ALL SELECT payout_id, 'payout.paid', created_at FROM payouts
    WHERE state = 'returned'"""

EVENTS = (
    Check(
        "effect_has_its_event",
        6,
        "{id} has no event {type} in the outbox: nobody will hear of it",
        f"""SELECT w.id, w.type FROM ({_TO_TELL}) AS w
        LEFT JOIN ({_TOLD}) AS x ON x.id = w.id AND x.type = w.type
        WHERE x.id IS NULL AND w.created_at > {_KEPT_SINCE}""",
    ),
    Check(
        "event_tells_the_truth",
        6,
        "the outbox has {events} events {type} of {id}, which is not so",
        f"""SELECT x.type, COALESCE(x.id, 'nothing') AS id, count(*) AS events
        FROM ({_TOLD}) AS x LEFT JOIN ({_TO_TELL}) AS w ON w.id = x.id AND w.type = x.type
        WHERE w.id IS NULL GROUP BY x.type, x.id""",
    ),
    Check(
        "effect_is_told_once",
        6,
        "the outbox has {events} events {type} of {id}",
        f"""SELECT type, id, count(*) AS events FROM ({_TOLD}) AS x
        WHERE id IS NOT NULL GROUP BY type, id HAVING count(*) > 1""",
    ),
    Check(
        "batch_counts_its_events",
        6,
        "batch {batch_id} says {events} events and holds {lines}",
        """SELECT batch_id, events, array_length(string_to_array(lines, chr(10)), 1) AS lines
        FROM outbox WHERE events <> array_length(string_to_array(lines, chr(10)), 1)""",
    ),
    Check(
        "batch_is_unsent",
        6,
        "batch {batch_id} of {events} events ({type}) of {created_at} is not sent yet",
        "SELECT batch_id, events, type, created_at FROM outbox WHERE NOT sent",
        Severity.PENDING,
    ),
    Check(
        "event_is_delivered_once",
        6,
        "event {event_id} has {deliveries} deliveries",
        """SELECT event_id, count(*) AS deliveries FROM deliveries
        GROUP BY event_id HAVING count(*) > 1""",
        needs={"deliveries": ("event_id",)},
    ),
    Check(
        "delivery_is_pending",
        6,
        "delivery {delivery_id} of event {event_id} has not reached its merchant yet",
        "SELECT delivery_id, event_id FROM deliveries WHERE state = 'pending'",
        Severity.PENDING,
        needs={"deliveries": ("delivery_id", "event_id", "state")},
    ),
    Check(
        "delivery_is_dead",
        6,
        "delivery {delivery_id} of event {event_id} was given up and waits to be redelivered",
        "SELECT delivery_id, event_id FROM deliveries WHERE state = 'dead'",
        Severity.PENDING,
        needs={"deliveries": ("delivery_id", "event_id", "state")},
    ),
)

CHECKS = (*REQUESTS, *OWNERSHIP, *EVENTS)
