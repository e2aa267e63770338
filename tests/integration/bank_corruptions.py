"""What may be wrong with the books of dealings with banks (see corruptions.py)."""

from __future__ import annotations

from tests.integration.broken import Broken, post


def _attempt(name: str, state: str) -> str:
    return f"UPDATE attempts SET state = '{state}' WHERE attempt_id = '{{{name}}}'"


def _moved(posting: str, amount: int, debit: str, credit: str) -> list[str]:
    return post(posting, debit, credit, amount)


BANK_CORRUPTIONS = {
    "a charge credited twice": Broken(
        "charge_has_its_posting",
        _moved("{charge}", 300, "channel", "ann_eur"),
        ("channel_is_what_banks_approved",),
    ),
    "a failed charge that was credited": Broken(
        "unsettled_charge_moved_nothing",
        _moved("{charge_failed}", 40, "channel", "ann_eur"),
        ("channel_is_what_banks_approved",),
    ),
    "a refund to a card posted twice": Broken(
        "charge_refund_has_its_posting",
        _moved("{charge_refund_approved}", 50, "ann_eur", "channel"),
        ("channel_is_what_banks_approved",),
    ),
    "a declined refund that moved money": Broken(
        "unsettled_charge_refund_moved_nothing",
        _moved("{charge_refund_declined}", 60, "ann_eur", "channel"),
        ("channel_is_what_banks_approved",),
    ),
    "a payout posted twice": Broken(
        "payout_has_its_posting",
        _moved("{payout_paid}", 13, "ann_eur", "channel"),
        ("channel_is_what_banks_approved",),
    ),
    "a payout that moved money before the bank said": Broken(
        "unpaid_payout_moved_nothing",
        _moved("{payout_sending}", 12, "ann_eur", "channel"),
        ("channel_is_what_banks_approved",),
    ),
    "a payout that came back twice": Broken(
        "returned_payout_has_its_posting",
        _moved("{payout_returned}/returned", 16, "channel", "ann_eur"),
        ("channel_is_what_banks_approved",),
    ),
    "a payout that came back without a return": Broken(
        "payout_came_back_once_it_was_returned",
        _moved("{payout_paid}/returned", 13, "channel", "ann_eur"),
        ("channel_is_what_banks_approved",),
    ),
    "an adjustment of another amount": Broken(
        "adjustment_has_its_posting",
        ["UPDATE adjustments SET amount = amount + 1 WHERE adjustment_id = '{adjustment_0}'"],
        ("channel_is_what_banks_approved",),
    ),
    "an adjustment between other sides": Broken(
        "adjustment_has_its_posting",
        ["UPDATE adjustments SET source = 'fees' WHERE adjustment_id = '{adjustment_1}'"],
    ),
    "a charge that names another order's payment": Broken(
        "charge_names_its_payment",
        ["UPDATE charges SET payment_id = '{payment}' WHERE charge_id = '{charge}'"],
    ),
    "more refunded to the card than its refunds": Broken(
        "charge_refunds_are_within_charge",
        ["UPDATE charges SET refunded = refunded + 1 WHERE charge_id = '{charge}'"],
    ),
    "two approved requests for one payout": Broken(
        "owner_is_approved_once",
        [
            "UPDATE attempts SET owner_id = '{payout_paid}'"
            " WHERE attempt_id = '{payout_returned_attempt}'"
        ],
        ("money_moved_by_an_approval",),
    ),
    "a failed charge that a bank approved": Broken(
        "money_moved_by_an_approval",
        [_attempt("failed_attempt", "approved")],
        ("channel_is_what_banks_approved",),
    ),
    "a paid payout that the bank declined": Broken(
        "money_moved_by_an_approval",
        [_attempt("payout_paid_attempt", "declined")],
        ("channel_is_what_banks_approved",),
    ),
    "a request still open for a payout that has failed": Broken(
        "open_attempt_has_an_open_owner", [_attempt("payout_failed_attempt", "unknown")]
    ),
    "a payout that waits for nothing": Broken(
        "owner_waits_for_an_open_attempt", [_attempt("payout_sending_attempt", "declined")]
    ),
    "two open requests for one payout": Broken(
        "one_attempt_is_open_at_once",
        [
            "UPDATE attempts SET owner_id = '{payout_sending}', state = 'sent'"
            " WHERE attempt_id = '{payout_failed_attempt}'"
        ],
    ),
    "a bank's account that moved alone": Broken(
        "channel_is_what_banks_approved",
        _moved("{adjustment_0}", 2, "channel", "ann_eur"),
        ("adjustment_has_its_posting",),
    ),
    "a hold that outlives its payout": Broken(
        "held_is_tries",
        ["UPDATE payouts SET state = 'failed' WHERE payout_id = '{payout_held}'"],
        ("effect_has_its_event",),
    ),
    "a payout that is held and holds nothing": Broken(
        "held_is_tries", ["UPDATE accounts SET held = held - 11 WHERE account_id = '{ann_eur}'"]
    ),
    "a charge under way that is not promised": Broken(
        "promised_is_tries_and_refunds",
        ["UPDATE accounts SET promised = promised - 42 WHERE account_id = '{ann_eur}'"],
    ),
    **{
        f"no request for a {noun} with a bank": Broken(
            "effect_has_its_request",
            [f"DELETE FROM idempotency WHERE resource_id = '{{{resource}}}'"],
        )
        for noun, resource in {
            "charge": "charge", "refund": "charge_refund_declined", "payout": "payout_held",
        }.items()
    },
    **{
        f"no event of a {noun} with a bank": Broken(
            "effect_has_its_event",
            [f"DELETE FROM outbox WHERE lines LIKE '%{{{subject}}}%' AND type = '{kind}'"],
        )
        for noun, subject, kind in (
            ("charge", "charge", "charge.succeeded"),
            ("refund", "charge_refund_declined", "charge_refund.failed"),
            ("payout", "payout_returned", "payout.paid"),
            ("return", "payout_returned", "payout.returned"),
        )
    },
}  # fmt: skip
