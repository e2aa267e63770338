"""What holds for payouts through every adapter that makes them, at once or by files and later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import structlog.testing

from cells.channels.model import (
    Answer,
    AnswerReason,
    ChannelSettings,
    Operation,
    Request,
    Verdict,
)
from tests.conformance.batch_bank import FileBank
from tests.conformance.cases import ACCOUNT, BEHAVIOUR, CASES, Case
from tests.conformance.stand import PATIENT_S, SHORT_S, Stand, payout, query_of, standing


def _batch(name: str, transport: str, *, fixed: bool) -> Case:
    """Its bank answers by files: PENDING first, the outcome to the listener."""

    def bank(folder: Path) -> Mapping[str, Any]:
        return {**FileBank(folder, fixed=fixed).bank(**BEHAVIOUR), "name": name}

    def channel(ports: Mapping[str, int], folder: Path) -> ChannelSettings:
        settings = FileBank.found(folder, fixed=fixed).channel(ports, transport=transport)
        return replace(settings, name=name)

    return Case(
        name, bank, channel,
        declined=("AC01", AnswerReason.INSTRUMENT_INVALID),
        failed=("AB05", AnswerReason.ISSUER_UNAVAILABLE),
        sealed=False,
    )  # fmt: skip


PAYING = [
    *(case for case in CASES if case.name == "clearing"),
    _batch("batch-pain-https", "https", fixed=False),
    _batch("batch-fixed-sftp", "sftp", fixed=True),
]


@pytest_asyncio.fixture(scope="module", params=PAYING, ids=lambda case: case.name)
async def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stand]:
    case: Case = request.param
    async with standing(case, tmp_path_factory.mktemp(case.name)) as stand:
        yield stand


@pytest_asyncio.fixture
async def stand(running: Stand) -> Stand:
    await running.bank.forget()
    await running.bank.behave(**BEHAVIOUR)
    running.heard.clear()
    return running


async def outcome(stand: Stand, request: Request) -> Answer:
    """Its final answer, however it comes."""
    answer = await stand.perform(request)
    if answer.verdict is not Verdict.PENDING:
        return answer
    async with asyncio.timeout(PATIENT_S):
        while True:
            for heard in stand.heard:
                if heard.reference == request.reference and heard.answer.verdict.is_final:
                    return heard.answer
            await asyncio.sleep(0.02)


async def test_a_payout_is_paid_once_however_often_it_is_asked_for(stand: Stand) -> None:
    request = payout()
    first = await outcome(stand, request)
    assert first.verdict is Verdict.APPROVED
    assert first.clearing_date == BEHAVIOUR["day"]
    assert first.bank_reference == (await stand.held(request))["bank_reference"]
    stand.heard.clear()
    again = await outcome(stand, request)
    assert (again.verdict, again.bank_reference) == (first.verdict, first.bank_reference)
    assert (await stand.bank.totals())["taken"] == -request.amount
    assert (await stand.query(request)).verdict is Verdict.APPROVED


async def test_of_many_at_once_each_has_its_own_outcome(stand: Stand) -> None:
    code, reason = stand.case.declined
    rule = {"action": "decline", "code": code, "amount_ends": "7"}
    await stand.bank.behave(rule, **BEHAVIOUR)
    requests = [payout(1_000 + number) for number in range(40)]
    answers = await asyncio.gather(*(outcome(stand, request) for request in requests))
    for request, answer in zip(requests, answers, strict=True):
        refused = request.amount % 10 == 7
        assert answer.verdict is (Verdict.DECLINED if refused else Verdict.APPROVED)
        assert answer.reason is (reason if refused else AnswerReason.NONE)
    paid = sum(request.amount for request in requests if request.amount % 10 != 7)
    assert (await stand.bank.totals())["taken"] == -paid


async def test_a_failure_of_the_channel_says_that_another_may_pay(stand: Stand) -> None:
    code, reason = stand.case.failed
    await stand.bank.behave({"action": "decline", "code": code}, **BEHAVIOUR)
    answer = await outcome(stand, payout())
    assert (answer.verdict, answer.reason) == (Verdict.FAILED, reason)


@pytest.mark.parametrize("action", ["silent", "lose"])
async def test_what_nobody_answers_is_known_by_a_query(stand: Stand, action: str) -> None:
    await stand.bank.behave({"action": action, "operations": ["payout"]}, **BEHAVIOUR)
    request = payout()
    timeout_s = SHORT_S if Operation.AUTHORISE in stand.channel.operations else PATIENT_S
    first = await stand.perform(request, timeout_s)
    assert first.verdict in {Verdict.UNKNOWN, Verdict.PENDING}
    async with asyncio.timeout(PATIENT_S):
        while not await stand.bank.arrivals(request.reference):
            await asyncio.sleep(0.02)
    told = await stand.query(request)
    if action == "silent":
        assert told.verdict is Verdict.APPROVED
        return
    assert (told.verdict, told.reason) == (Verdict.FAILED, AnswerReason.NOT_FOUND)
    # That was a promise: it is refused, should it come yet.
    await stand.bank.behave(**BEHAVIOUR)
    assert (await outcome(stand, request)).verdict in {Verdict.DECLINED, Verdict.FAILED}
    assert (await stand.bank.totals())["taken"] == 0


async def test_another_amount_than_was_asked_for_is_not_believed(stand: Stand) -> None:
    await stand.bank.behave({"action": "lie", "operations": ["payout"]}, **BEHAVIOUR)
    request = payout()
    answer = await stand.perform(request)
    if answer.verdict is Verdict.PENDING:
        answer = (await stand.until_heard(request.reference)).answer
    assert (answer.verdict, answer.reason) == (Verdict.UNKNOWN, AnswerReason.NOT_AUTHENTIC)
    assert (await stand.query(request)).verdict is Verdict.APPROVED


async def test_a_payout_of_the_morrow_is_pending_until_then(stand: Stand) -> None:
    await stand.bank.behave({"action": "pend", "after_ms": 60_000}, **BEHAVIOUR)
    request = payout()
    assert (await stand.perform(request)).verdict is Verdict.PENDING
    async with asyncio.timeout(PATIENT_S):
        while await stand.held(request) is None:
            await asyncio.sleep(0.02)
    assert (await stand.query(request)).verdict is Verdict.PENDING
    assert (await stand.bank.totals())["taken"] == 0


async def test_what_it_cannot_do_is_refused_and_not_sent(stand: Stand) -> None:
    for operation in set(Operation) - stand.channel.operations:
        request = Request(operation, query_of(payout()).reference, 5, "CNY", original="att_x")
        answer = await stand.perform(request)
        assert (answer.verdict, answer.reason) == (Verdict.FAILED, AnswerReason.UNSUPPORTED)
    for amount in (0, -5):
        answer = await stand.perform(payout(amount))
        assert (answer.verdict, answer.reason) == (Verdict.FAILED, AnswerReason.NOT_SENT)
    assert await stand.bank.arrivals() == []


async def test_no_log_line_and_no_answer_holds_an_accounts_number(stand: Stand) -> None:
    shown: list[object] = []
    with structlog.testing.capture_logs() as logs:
        for action in ("garble", "lie", "silent", "decline"):
            rule = {"action": action, "code": stand.case.declined[0], "operations": ["payout"]}
            await stand.bank.behave(rule, **BEHAVIOUR)
            request = payout()
            shown += [request, await stand.perform(request, SHORT_S), await stand.query(request)]
    shown += stand.heard
    assert ACCOUNT.number not in repr(logs) + repr(shown)
