"""What may be wrong with books: each is done to them by SQL, as a fault of the ledger would."""

from __future__ import annotations

import json

from tests.integration.bank_corruptions import BANK_CORRUPTIONS
from tests.integration.broken import Broken, post
from tests.integration.risk_corruptions import RISK_CORRUPTIONS


def record(method: str, resource: str, slot: str, key: str = "stray") -> str:
    return (
        "INSERT INTO idempotency (slot, idempotency_id, method, request_hash, resource_id,"
        f" created_at) VALUES ({slot}, '{key}', '{method}', '\\x00', '{resource}', now())"
    )


def _event(event: str, type_: str, subject: str, slot: str = "{ann_slot}") -> str:
    payload = json.dumps({"payment_id": subject, "payer_id": '"payment_id": "x"'})
    return (
        "INSERT INTO outbox (slot, batch_id, type, events, lines)"
        f" VALUES ({slot}, '{event}', '{type_}', 1, '{_escaped(payload)}')"
    )


def _escaped(payload: str) -> str:
    """Braces doubled, except around the names of IDs, for str.format."""
    return payload.replace('{"', '{{"').replace('"}', '"}}')


_CONSERVATION = ("money_is_conserved", "mesh_sums_to_zero")
_LAST = "sequence = (SELECT max(sequence) FROM entries WHERE account_id = '{ann}')"

CORRUPTIONS = {
    **BANK_CORRUPTIONS,
    **RISK_CORRUPTIONS,
    "an entry and its account gained a cent": Broken(
        "posting_sums_to_zero",
        [
            "UPDATE entries SET amount = amount + 1"
            " WHERE account_id = '{ann}' AND posting_id = '{deposit}'",
            "UPDATE entries SET balance_after = balance_after + 1 WHERE account_id = '{ann}'",
            "UPDATE accounts SET balance = balance + 1 WHERE account_id = '{ann}'",
        ],
        (*_CONSERVATION, "movement_has_its_posting"),
    ),
    "a posting mixes currencies": Broken(
        "posting_sums_to_zero",
        [
            "UPDATE accounts SET currency = 'JPY' WHERE account_id = '{abe}'",
        ],
        _CONSERVATION,
    ),
    "a posting that nothing caused": Broken("posting_has_its_cause", post("ghost")),
    "entries of an account that is not there": Broken(
        "entry_has_its_account",
        [
            "INSERT INTO entries VALUES ({bea_slot}, '{new_acc}', 1, 'ghost', 'x', 5, 5, 1, now()),"
            " ({bea_slot}, '{new_acc}', 2, 'ghost', 'x', -5, 0, 1, now())"
        ],
        ("posting_has_its_cause",),
    ),
    "two balances that are not the sum of their entries": Broken(
        "balance_is_sum_of_entries",
        [
            "UPDATE accounts SET balance = balance + 1 WHERE account_id = '{ann}'",
            "UPDATE accounts SET balance = balance - 1 WHERE account_id = '{abe}'",
        ],
    ),
    "an account counts one entry too many": Broken(
        "entries_are_contiguous",
        ["UPDATE accounts SET sequence = sequence + 1 WHERE account_id = '{ann}'"],
    ),
    "an account's entries have a gap": Broken(
        "entries_are_contiguous",
        [
            "UPDATE entries SET sequence = sequence + 1 WHERE account_id = '{ann}' AND " + _LAST,
            "UPDATE accounts SET sequence = sequence + 1 WHERE account_id = '{ann}'",
        ],
    ),
    "an entry with a wrong balance after it": Broken(
        "balance_after_is_running_sum",
        [
            "UPDATE entries SET balance_after = balance_after + 1"
            " WHERE account_id = '{ann}' AND sequence = 2"
        ],
    ),
    "a balance below its limit": Broken(
        "balance_is_above_its_limit",
        [
            "ALTER TABLE accounts DROP CONSTRAINT accounts_floor",
            "UPDATE accounts SET held = balance + 1 WHERE account_id = '{abe}'",
        ],
        ("held_is_tries",),
    ),
    "a user's account with a limit below zero": Broken(
        "balance_is_above_its_limit",
        [
            "UPDATE accounts SET floor = -100000 WHERE account_id = '{bea}'",
            *post("{null_cancelled}", "bea", "abe"),
        ],
        ("undecided_or_cancelled_transfer_moved_nothing",),
    ),
    "a deposit of another amount than its posting": Broken(
        "money_is_conserved",
        ["UPDATE movements SET amount = amount + 1 WHERE movement_id = '{deposit}'"],
        ("external_is_what_moved", "movement_has_its_posting"),
    ),
    "an external balance that moved alone": Broken(
        "mesh_sums_to_zero",
        ["UPDATE accounts SET balance = balance + 1 WHERE account_id = '{external_a}'"],
        ("balance_is_sum_of_entries", "external_is_what_moved"),
    ),
    "money taken from outside without a movement": Broken(
        "external_is_what_moved",
        post("{null_cancelled}", "external_a", "abe"),
        ("money_is_conserved", "undecided_or_cancelled_transfer_moved_nothing"),
    ),
    "money stuck in a clearing account": Broken(
        "clearing_is_money_in_flight",
        post("{null_cancelled}", "abe", "clearing_a"),
        ("undecided_or_cancelled_transfer_moved_nothing",),
    ),
    "more reserved than refunds wait for": Broken(
        "reserved_is_pending_refunds",
        ["UPDATE accounts SET reserved = reserved + 1 WHERE account_id = '{collection}'"],
    ),
    "a second account of a user": Broken(
        "user_has_one_account",
        [
            "INSERT INTO accounts SELECT slot, '{new_acc}', user_id, currency, purpose, kind,"
            " state, 0, 0, 0, 0, 0, 0, created_at FROM accounts WHERE account_id = '{bea}'",
            record("OpenAccount", "{new_acc}", "{bea_slot}"),
        ],
    ),
    "a closed account with money": Broken(
        "closed_account_is_empty",
        ["UPDATE accounts SET state = 'closed' WHERE account_id = '{ann}'"],
    ),
    "a merchant listed as closed": Broken(
        "merchant_list_matches_accounts",
        ["UPDATE merchants SET state = 'closed' WHERE account_id = '{shop_a}'"],
    ),
    "a merchant not listed": Broken(
        "merchant_list_matches_accounts", ["DELETE FROM merchants WHERE account_id = '{shop_b}'"]
    ),
    "a movement of another account": Broken(
        "movement_has_its_posting",
        ["UPDATE movements SET account_id = '{abe}' WHERE movement_id = '{deposit}'"],
    ),
    "an order of another amount than its payment": Broken(
        "payment_has_its_order",
        ["UPDATE orders SET amount = amount + 1 WHERE order_id = '{order}'"],
    ),
    "a paid order that is open again": Broken(
        "payment_has_its_order",
        ["UPDATE orders SET state = 'open', payment_id = '' WHERE order_id = '{order}'"],
    ),
    "a paid order without a payment": Broken(
        "paid_order_has_its_payment",
        ["UPDATE orders SET state = 'paid' WHERE order_id = '{open_order}'"],
    ),
    "a closed order that names a payment": Broken(
        "paid_order_has_its_payment",
        ["UPDATE orders SET payment_id = '{payment}' WHERE order_id = '{closed_order}'"],
    ),
    "two payments of one order": Broken(
        "order_is_paid_once",
        ["UPDATE payments SET order_id = '{order}' WHERE payment_id = '{payment_2}'"],
        ("payment_has_its_order", "paid_order_has_its_payment"),
    ),
    "a payment of another amount than its posting": Broken(
        "payment_has_its_posting",
        [
            "UPDATE orders SET amount = amount + 1 WHERE order_id = '{order}'",
            "UPDATE payments SET amount = amount + 1 WHERE payment_id = '{payment}'",
        ],
    ),
    "a payment posted twice": Broken(
        "payment_has_its_posting", post("{payment}", "ann", "collection", 300)
    ),
    "more refunded than the refunds": Broken(
        "refunds_are_within_payment",
        ["UPDATE payments SET refunded = refunded + 1 WHERE payment_id = '{payment}'"],
    ),
    "a refund in another currency than its payment": Broken(
        "refund_has_its_payment",
        ["UPDATE refunds SET currency = 'EUR' WHERE refund_id = '{refund_unfunded}'"],
    ),
    "a refund posted twice": Broken("refund_has_its_posting", post("{refund}")),
    "a failed refund that moved money": Broken(
        "unpaid_refund_moved_nothing", post("{refund_unfunded}")
    ),
    "a hold older than its transfer": Broken(
        "held_is_tries", ["UPDATE accounts SET held = held + 1 WHERE account_id = '{ann}'"]
    ),
    "a try that holds nothing": Broken(
        "held_is_tries", ["UPDATE accounts SET held = 0 WHERE account_id = '{ann}'"]
    ),
    "a promise of nobody": Broken(
        "promised_is_tries_and_refunds",
        ["UPDATE accounts SET promised = promised + 1 WHERE account_id = '{bob}'"],
    ),
    "a pending refund that is not promised": Broken(
        "promised_is_tries_and_refunds",
        ["UPDATE accounts SET promised = promised - 20 WHERE account_id = '{ann}'"],
    ),
    "a transfer in one cell posted twice": Broken(
        "transfer_in_one_cell_has_its_posting", post("{local}")
    ),
    "a transfer in one cell of another amount": Broken(
        "transfer_in_one_cell_has_its_posting",
        ["UPDATE transfers SET amount = amount + 1 WHERE transfer_id = '{sweep}'"],
    ),
    "a payer who paid twice": Broken(
        "committed_transfer_left_the_payer", post("{confirmed}/payer")
    ),
    "a decided transfer whose payer did not pay": Broken(
        "committed_transfer_left_the_payer",
        [
            "UPDATE transfers SET state = 'committing' WHERE transfer_id = '{tried}'",
            "UPDATE accounts SET held = held - 25 WHERE account_id = '{ann}'",
        ],
        ("clearing_is_money_in_flight",),
    ),
    "a transfer that went both ways": Broken(
        "transfer_moves_money_one_way", post("{confirmed}")
    ),
    "a cancelled transfer that moved money": Broken(
        "undecided_or_cancelled_transfer_moved_nothing", post("{cancelled}")
    ),
    "a transfer being tried that moved money": Broken(
        "undecided_or_cancelled_transfer_moved_nothing", post("{trying}/payer")
    ),
    "a branch still tried under a cancelled transfer": Broken(
        "branch_obeys_the_decision",
        [
            "UPDATE branches SET state = 'tried' WHERE branch_id = '{cancelled_branch}'",
            "UPDATE accounts SET promised = promised + 40 WHERE account_id = '{bob}'",
        ],
    ),
    "a branch still tried under a confirmed transfer": Broken(
        "branch_obeys_the_decision",
        [
            "UPDATE transfers SET state = 'confirmed' WHERE transfer_id = '{committing}'",
            "UPDATE outbox SET type = 'transfer.confirmed',"
            " lines = '{{\"transfer_id\": \"{committing}\"}}'"
            " WHERE lines LIKE '%{cancelled}%'",
            "UPDATE transfers SET created_at = now() - INTERVAL '8 days'"
            " WHERE transfer_id = '{cancelled}'",
        ],
        ("clearing_is_money_in_flight",),
    ),
    "a branch cancelled under a committing transfer": Broken(
        "branch_obeys_the_decision",
        [
            "UPDATE branches SET state = 'cancelled' WHERE branch_id = '{committing_branch}'",
            "UPDATE accounts SET promised = promised - 15 WHERE account_id = '{bob}'",
        ],
    ),
    "a committing transfer without a branch": Broken(
        "branch_obeys_the_decision",
        [
            "DELETE FROM branches WHERE branch_id = '{committing_branch}'",
            "UPDATE accounts SET promised = promised - 15 WHERE account_id = '{bob}'",
        ],
    ),
    "a branch of another amount": Broken(
        "branch_matches_its_transfer",
        ["UPDATE branches SET amount = amount + 1 WHERE branch_id = '{cancelled_branch}'"],
    ),
    "a branch of no transfer": Broken(
        "branch_matches_its_transfer",
        [
            "UPDATE branches SET transfer_id = '{new_pay}'"
            " WHERE branch_id = '{null_cancelled_branch}'"
        ],
    ),
    "a second branch": Broken(
        "transfer_has_one_branch",
        [
            "INSERT INTO branches SELECT slot, '{new_brn}', transfer_id, payee_account_id, 0, '',"
            " state, created_at FROM branches WHERE branch_id = '{cancelled_branch}'"
        ],
    ),
    "a payee paid twice": Broken("confirmed_branch_paid_the_payee", post("{confirmed}/payee")),
    "a branch confirmed without a posting": Broken(
        "confirmed_branch_paid_the_payee",
        [
            "UPDATE branches SET state = 'confirmed' WHERE branch_id = '{committing_branch}'",
            "UPDATE accounts SET promised = promised - 15 WHERE account_id = '{bob}'",
        ],
        ("clearing_is_money_in_flight",),
    ),
    "a payee paid by a branch that is only tried": Broken(
        "payee_was_paid_by_a_confirmed_branch", post("{committing}/payee")
    ),
    "a record of a refund that is not there": Broken(
        "record_has_its_resource", [record("RefundPayment", "{new_pay}", "{ann_slot}")]
    ),
    "two requests that made one refund": Broken(
        "effect_has_one_request", [record("RefundPayment", "{refund}", "{ann_slot}")]
    ),
    "a payment without a key": Broken(
        "payment_has_its_request",
        ["UPDATE payments SET idempotency_key = '' WHERE payment_id = '{payment}'"],
    ),
    **{
        f"no request for a {noun}": Broken(
            "effect_has_its_request",
            [f"DELETE FROM idempotency WHERE resource_id = '{{{resource}}}'"],
        )
        for noun, resource in {
            "order": "open_order", "movement": "deposit", "refund": "refund",
            "transfer": "local", "account": "bea",
        }.items()
    },
    "an entry of an epoch that is not yet": Broken(
        "epoch_is_not_from_the_future",
        ["UPDATE entries SET epoch = 2 WHERE account_id = '{ann}' AND " + _LAST],
        ("epoch_was_assigned",),
    ),
    "an old owner wrote after the new one": Broken(
        "epochs_never_fall",
        ["UPDATE entries SET epoch = 3 - epoch WHERE account_id = '{ben}'"],
    ),
    "an epoch that nobody was given": Broken(
        "epoch_was_assigned",
        [
            "UPDATE slot_history SET epoch = 3 WHERE slot = {ben_slot}",
            "UPDATE slots SET epoch = 3 WHERE slot = {ben_slot}",
        ],
    ),
    "an owner who is not in the history": Broken(
        "owner_is_in_history", ["UPDATE slots SET owner = 'x' WHERE slot = {ben_slot}"]
    ),
    "an epoch without a history": Broken(
        "owner_is_in_history", ["UPDATE slots SET epoch = 2 WHERE slot = {empty_slot}"]
    ),
    "a slot that went back": Broken(
        "history_is_not_ahead",
        ["INSERT INTO slot_history VALUES ({empty_slot}, 7, 'b', 'op-7', now())"],
    ),
    "a slot without a row": Broken(
        "every_slot_is_there", ["DELETE FROM slots WHERE slot = {empty_slot}"]
    ),
    "a row in a slot that its ID does not carry": Broken(
        "id_carries_its_slot",
        ["UPDATE outbox SET slot = {abe_slot} WHERE lines LIKE '%\"{payment}\"%'"
         " AND type = 'payment.succeeded'"],
    ),
    "an assignment by no operation": Broken(
        "assignment_names_its_operation",
        ["UPDATE slot_history SET operation_id = '' WHERE slot = {ben_slot}"],
    ),
    **{
        f"no event of a {noun}": Broken(
            "effect_has_its_event", [f"DELETE FROM outbox WHERE lines LIKE '%{{{subject}}}%'{of}"]
        )
        for noun, subject, of in (
            ("payment", "payment", " AND type = 'payment.succeeded'"), ("refund", "refund", ""),
            ("failed refund", "refund_unfunded", ""), ("transfer", "local", ""),
            ("cancelled transfer", "cancelled", ""), ("settlement", "sweep", ""),
        )
    },
    "an event of a payment that is not there": Broken(
        "event_tells_the_truth",
        [_event("{new_evt_ann}", "payment.succeeded", "{new_pay}")],
    ),
    "an event that names nothing": Broken(
        "event_tells_the_truth",
        ["INSERT INTO outbox (slot, batch_id, type, events, lines)"
         " VALUES ({ann_slot}, '{new_evt_ann}', 'payment.succeeded', 1, 'not JSON')"],
    ),
    "a batch that has lost an event": Broken(
        "batch_counts_its_events",
        ["UPDATE outbox SET events = events + 1 WHERE lines LIKE '%\"{payment}\"%'"
         " AND type = 'payment.succeeded'"],
    ),
    "a payment told twice": Broken(
        "effect_is_told_once", [_event("{new_evt_ann}", "payment.succeeded", "{payment}")]
    ),
}  # fmt: skip
