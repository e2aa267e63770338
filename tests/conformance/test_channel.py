"""What holds for every adapter, whatever its bank's tongue (cells/channels/interface.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path

import pytest
import pytest_asyncio
import structlog.testing

from cells.channels.interface import StatementMissing
from cells.channels.model import AnswerReason, Operation, Verdict
from tests.conformance.cases import BEHAVIOUR, CARD, CASES, Case
from tests.conformance.stand import (
    PATIENT_S,
    SHORT_S,
    Stand,
    part_of,
    payout,
    purchase,
    query_of,
    standing,
    void_of,
)


@pytest_asyncio.fixture(scope="module", params=CASES, ids=lambda case: case.name)
async def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stand]:
    case: Case = request.param
    async with standing(case, tmp_path_factory.mktemp(case.name)) as stand:
        yield stand


@pytest_asyncio.fixture
async def stand(running: Stand) -> Stand:
    """With an empty book, and a bank that behaves."""
    await running.bank.forget()
    running.heard.clear()
    return running


async def test_a_purchase_is_approved_and_stands_in_the_banks_book(stand: Stand) -> None:
    request = purchase()
    answer = await stand.perform(request)
    assert answer.verdict is Verdict.APPROVED
    assert answer.reason is AnswerReason.NONE
    held = await stand.held(request)
    assert (held["taken"], held["currency"]) == (1_250, "CNY")
    assert answer.bank_reference == held["bank_reference"]
    assert answer.clearing_date == BEHAVIOUR["day"]


async def test_an_authorisation_is_captured_in_part_and_given_back_in_part(stand: Stand) -> None:
    request = purchase(5_000, capture=False)
    assert (await stand.perform(request)).verdict is Verdict.APPROVED
    assert (await stand.bank.totals())["taken"] == 0
    captured = await stand.perform(part_of(request, Operation.CAPTURE, 3_000))
    assert captured.verdict is Verdict.APPROVED
    refund = part_of(request, Operation.REFUND, 1_000)
    assert (await stand.perform(refund)).verdict is Verdict.APPROVED
    assert (await stand.perform(refund)).verdict is Verdict.APPROVED
    assert (await stand.bank.totals())["taken"] == 2_000
    # More than is left.
    over = await stand.perform(part_of(request, Operation.REFUND, 2_001))
    assert over.verdict is Verdict.DECLINED
    assert (await stand.bank.totals())["taken"] == 2_000


async def test_money_is_sent_to_an_account_if_the_bank_can(stand: Stand) -> None:
    request = payout()
    answer = await stand.perform(request)
    if Operation.PAYOUT not in stand.channel.operations:
        assert (answer.verdict, answer.reason) == (Verdict.FAILED, AnswerReason.UNSUPPORTED)
        assert await stand.bank.arrivals() == []
        return
    assert answer.verdict is Verdict.APPROVED
    assert (await stand.bank.totals())["taken"] == -request.amount


async def test_a_refusal_is_declined_with_its_reason(stand: Stand) -> None:
    code, reason = stand.case.declined
    await stand.bank.behave({"action": "decline", "code": code}, **BEHAVIOUR)
    request = purchase()
    answer = await stand.perform(request)
    assert (answer.verdict, answer.reason, answer.code) == (Verdict.DECLINED, reason, code)
    # It is the same for whoever asks again, though the bank behaves now.
    await stand.bank.behave(**BEHAVIOUR)
    assert (await stand.perform(request)).verdict is Verdict.DECLINED
    assert (await stand.query(request)).verdict is Verdict.DECLINED
    assert (await stand.held(request))["taken"] == 0


async def test_a_failure_of_the_channel_says_that_another_may_be_asked(stand: Stand) -> None:
    code, reason = stand.case.failed
    await stand.bank.behave({"action": "decline", "code": code}, **BEHAVIOUR)
    request = purchase()
    answer = await stand.perform(request)
    assert (answer.verdict, answer.reason) == (Verdict.FAILED, reason)
    assert (await stand.held(request))["taken"] == 0


async def test_no_answer_is_unknown_and_a_query_tells_that_it_was_done(stand: Stand) -> None:
    await stand.bank.behave({"action": "silent", "operations": ["authorise"]}, **BEHAVIOUR)
    request = purchase()
    answer = await stand.perform(request, SHORT_S)
    assert (answer.verdict, answer.reason) == (Verdict.UNKNOWN, AnswerReason.TIMED_OUT)
    told = await stand.query(request)
    assert told.verdict is Verdict.APPROVED
    assert told.bank_reference == (await stand.held(request))["bank_reference"]


async def test_no_answer_is_unknown_and_a_query_tells_that_it_never_came(stand: Stand) -> None:
    await stand.bank.behave({"action": "lose", "operations": ["authorise"]}, **BEHAVIOUR)
    request = purchase()
    answer = await stand.perform(request, SHORT_S)
    assert (answer.verdict, answer.reason) == (Verdict.UNKNOWN, AnswerReason.TIMED_OUT)
    told = await stand.query(request)
    assert (told.verdict, told.reason) == (Verdict.FAILED, AnswerReason.NOT_FOUND)
    # That was a promise: it is refused, should it come yet.
    await stand.bank.behave(**BEHAVIOUR)
    assert (await stand.perform(request)).verdict in {Verdict.DECLINED, Verdict.FAILED}
    assert (await stand.bank.totals())["taken"] == 0


async def test_a_query_without_an_answer_leaves_it_unknown(stand: Stand) -> None:
    request = purchase()
    await stand.perform(request)
    await stand.bank.behave({"action": "lose", "operations": ["query"]}, **BEHAVIOUR)
    answer = await stand.perform(query_of(request), SHORT_S)
    assert answer.verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("action", ["silent", "lose"])
async def test_an_unknown_outcome_is_undone_whichever_it_was(stand: Stand, action: str) -> None:
    await stand.bank.behave({"action": action, "operations": ["authorise"]}, **BEHAVIOUR)
    request = purchase()
    assert (await stand.perform(request, SHORT_S)).verdict is Verdict.UNKNOWN
    void = void_of(request)
    assert (await stand.perform(void)).verdict is Verdict.APPROVED
    assert (await stand.perform(void)).verdict is Verdict.APPROVED
    assert (await stand.bank.totals())["taken"] == 0
    # Should the original come yet, it has no effect.
    await stand.bank.behave(**BEHAVIOUR)
    assert (await stand.perform(request)).verdict in {Verdict.DECLINED, Verdict.FAILED}
    assert (await stand.bank.totals())["taken"] == 0


async def test_a_void_without_an_answer_is_repeated_within_its_time(stand: Stand) -> None:
    request = purchase()
    await stand.perform(request)
    lost = {"action": "lose", "operations": ["void"], "times": 2}
    await stand.bank.behave(lost, **BEHAVIOUR)
    void = void_of(request)
    assert (await stand.perform(void)).verdict is Verdict.APPROVED
    arrivals = await stand.bank.arrivals(void.reference)
    assert [row["arrival"] for row in arrivals] == [1, 2, 3]
    assert (await stand.bank.totals())["taken"] == 0


async def test_a_void_without_any_answer_is_unknown(stand: Stand) -> None:
    request = purchase()
    await stand.perform(request)
    await stand.bank.behave({"action": "silent", "operations": ["void"]}, **BEHAVIOUR)
    answer = await stand.void(request, SHORT_S)
    assert (answer.verdict, answer.reason) == (Verdict.UNKNOWN, AnswerReason.TIMED_OUT)


async def test_a_second_answer_is_absorbed(stand: Stand) -> None:
    await stand.bank.behave({"action": "duplicate", "after_ms": 1}, **BEHAVIOUR)
    requests = [purchase(100 + number) for number in range(20)]
    answers = await asyncio.gather(*(stand.perform(request) for request in requests))
    assert {answer.verdict for answer in answers} == {Verdict.APPROVED}
    # The bank has sent all its second answers before this one.
    await stand.bank.behave({"action": "late", "after_ms": 100}, **BEHAVIOUR)
    assert (await stand.perform(purchase())).verdict is Verdict.APPROVED
    assert stand.heard == []


async def test_a_late_answer_is_heard_once(stand: Stand) -> None:
    late = {"action": "late", "after_ms": SHORT_S * 1_000 + 200, "operations": ["authorise"]}
    await stand.bank.behave(late, **BEHAVIOUR)
    request = purchase()
    assert (await stand.perform(request, SHORT_S)).verdict is Verdict.UNKNOWN
    heard = await stand.until_heard(request.reference)
    assert (heard.channel, heard.answer.verdict) == (stand.channel.name, Verdict.APPROVED)
    assert heard.answer.bank_reference == (await stand.held(request))["bank_reference"]
    assert [each.reference for each in stand.heard] == [request.reference]


async def test_whoever_stops_waiting_leaves_the_request_at_the_bank(stand: Stand) -> None:
    await stand.bank.behave({"action": "late", "after_ms": 400}, **BEHAVIOUR)
    request = purchase()
    task = asyncio.get_running_loop().create_task(stand.perform(request))
    async with asyncio.timeout(PATIENT_S):
        while not await stand.bank.arrivals(request.reference):
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    heard = await stand.until_heard(request.reference)
    assert heard.answer.verdict is Verdict.APPROVED
    assert (await stand.held(request))["taken"] == request.amount


async def test_each_of_many_at_once_gets_its_own_answer(stand: Stand) -> None:
    code, _ = stand.case.declined
    await stand.bank.behave(
        {"action": "decline", "code": code, "amount_ends": "7"},
        latency={"spread": "lognormal", "median_ms": 20, "sigma": 1.0},
        **BEHAVIOUR,
    )
    requests = [purchase(1_000 + number) for number in range(200)]
    answers = await asyncio.gather(*(stand.perform(request) for request in requests))
    for request, answer in zip(requests, answers, strict=True):
        declined = request.amount % 10 == 7
        assert answer.verdict is (Verdict.DECLINED if declined else Verdict.APPROVED)
    taken = sum(request.amount for request in requests if request.amount % 10 != 7)
    assert (await stand.bank.totals())["taken"] == taken


async def test_the_same_reference_has_one_effect_however_often_and_at_once(stand: Stand) -> None:
    await stand.bank.behave(latency={"median_ms": 20}, **BEHAVIOUR)
    request = purchase()
    answers = await asyncio.gather(*(stand.perform(request) for _ in range(8)))
    answers.append(await stand.perform(request))
    assert len({(answer.verdict, answer.bank_reference) for answer in answers}) == 1
    assert answers[0].verdict is Verdict.APPROVED
    assert (await stand.bank.totals())["taken"] == request.amount


@pytest.mark.parametrize("action", ["disconnect", "hang_up"])
async def test_a_connection_that_breaks_leaves_it_unknown_and_is_made_again(
    stand: Stand, action: str
) -> None:
    broken = {"action": action, "operations": ["authorise"], "times": 1}
    await stand.bank.behave(broken, **BEHAVIOUR)
    request = purchase()
    answer = await stand.perform(request)
    assert answer.verdict is Verdict.UNKNOWN
    told = await stand.query(request)
    done = action == "disconnect"
    assert told.verdict is (Verdict.APPROVED if done else Verdict.FAILED)
    assert (await stand.bank.totals())["taken"] == (request.amount if done else 0)


async def test_what_is_under_way_when_the_bank_hangs_up_is_unknown(stand: Stand) -> None:
    await stand.bank.behave({"action": "late", "after_ms": 30_000}, **BEHAVIOUR)
    requests = [purchase(100 + number) for number in range(10)]
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(stand.perform(request)) for request in requests]
    async with asyncio.timeout(PATIENT_S):
        while len(await stand.bank.arrivals()) < len(requests):
            await asyncio.sleep(0.01)
    await stand.bank.do("hang-up")
    answers = await asyncio.gather(*tasks)
    assert {answer.verdict for answer in answers} == {Verdict.UNKNOWN}
    await stand.bank.behave(**BEHAVIOUR)
    assert (await stand.perform(purchase())).verdict is Verdict.APPROVED


async def test_an_answer_with_a_wrong_seal_is_not_believed(stand: Stand) -> None:
    if not stand.case.sealed:
        pytest.skip("its answers carry no seal")
    await stand.bank.behave({"action": "forge", "operations": ["authorise"]}, **BEHAVIOUR)
    request = purchase()
    answer = await stand.perform(request)
    assert (answer.verdict, answer.reason) == (Verdict.UNKNOWN, AnswerReason.NOT_AUTHENTIC)
    assert (await stand.query(request)).verdict is Verdict.APPROVED


async def test_an_answer_with_another_amount_is_not_believed(stand: Stand) -> None:
    await stand.bank.behave({"action": "lie", "operations": ["authorise"]}, **BEHAVIOUR)
    request = purchase()
    answer = await stand.perform(request)
    assert (answer.verdict, answer.reason) == (Verdict.UNKNOWN, AnswerReason.NOT_AUTHENTIC)
    assert (await stand.query(request)).verdict is Verdict.APPROVED


async def test_an_answer_that_is_none_leaves_it_unknown(stand: Stand) -> None:
    await stand.bank.behave({"action": "garble", "operations": ["authorise"]}, **BEHAVIOUR)
    request = purchase()
    answer = await stand.perform(request, SHORT_S)
    assert answer.verdict is Verdict.UNKNOWN
    assert answer.reason in stand.case.garbled
    assert (await stand.query(request)).verdict is Verdict.APPROVED


async def test_a_bank_under_maintenance_fails_cleanly(stand: Stand) -> None:
    await stand.bank.behave(closed="refuse", **BEHAVIOUR)
    request = purchase()
    answer = await stand.perform(request)
    assert (answer.verdict, answer.reason) == (Verdict.FAILED, stand.case.closed)
    await stand.bank.behave(**BEHAVIOUR)
    assert (await stand.perform(request)).verdict is Verdict.APPROVED


async def test_without_a_connection_nothing_is_sent(stand: Stand) -> None:
    await stand.bank.behave(closed="hang_up", **BEHAVIOUR)
    await stand.bank.do("hang-up")
    request = purchase()
    # What the adapter sent before it noticed is unknown; from then on it says that it did not send.
    async with asyncio.timeout(PATIENT_S):
        answer = await stand.perform(request, SHORT_S)
        while answer.verdict is Verdict.UNKNOWN:
            answer = await stand.perform(request, SHORT_S)
    assert (answer.verdict, answer.reason) == (Verdict.FAILED, AnswerReason.NOT_SENT)
    told = await stand.perform(query_of(request), SHORT_S)
    assert told.verdict is Verdict.UNKNOWN
    undone = await stand.perform(void_of(request), SHORT_S)
    assert (undone.verdict, undone.reason) == (Verdict.FAILED, AnswerReason.NOT_SENT)
    await stand.bank.behave(**BEHAVIOUR)
    assert (await stand.perform(request)).verdict is Verdict.APPROVED


async def test_a_request_that_the_bank_has_no_words_for_is_not_sent(stand: Stand) -> None:
    for request in (purchase(0), purchase(-5), purchase(10**15)):
        answer = await stand.perform(request)
        assert (answer.verdict, answer.reason) == (Verdict.FAILED, AnswerReason.NOT_SENT)
    assert await stand.bank.arrivals() == []


async def test_no_log_line_and_no_answer_holds_a_cards_number(stand: Stand) -> None:
    shown: list[object] = []
    with structlog.testing.capture_logs() as logs:
        for action in ("forge", "garble", "lie", "disconnect", "silent", "decline"):
            rule = {"action": action, "code": "05", "operations": ["authorise"]}
            await stand.bank.behave(rule, **BEHAVIOUR)
            request = purchase()
            shown += [request, await stand.perform(request, SHORT_S)]
            shown.append(await stand.query(request))
    assert CARD.pan not in repr(logs) + repr(shown)
    assert CARD.pan[4:-4] not in repr(logs) + repr(shown)


async def test_a_statement_comes_as_a_file_or_is_said_to_be_missing(
    stand: Stand, tmp_path: Path
) -> None:
    await stand.perform(purchase())
    day = date.fromisoformat(BEHAVIOUR["day"])
    try:
        file = await stand.channel.fetch_statement(day, tmp_path)
    except StatementMissing:
        return
    assert (file.channel, file.clearing_date) == (stand.channel.name, day)
    assert file.path.is_relative_to(tmp_path)
    assert await asyncio.to_thread(file.path.read_bytes)
