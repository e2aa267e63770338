"""Payouts in files, against a bank in a process of its own, by both transports and both formats."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cells.channels.batch.channel import BatchChannel, open_channel
from cells.channels.model import (
    Answer,
    AnswerReason,
    BankAccount,
    Card,
    ChannelSettings,
    Heard,
    Operation,
    Request,
    Verdict,
)
from router.ids import Kind, mint
from tests.conformance.batch_bank import BATCH, FileBank, ssh_key
from tests.conformance.process import BankProcess, bank_process

ACCOUNT = BankAccount("6222000011112222", "ICBKCNBJXXX", "Li Lei")
_numbers = iter(range(1, 1_000_000))


def payout(amount: int = 1234, account: BankAccount | Card = ACCOUNT) -> Request:
    reference = mint(Kind.ATTEMPT, 9, unix_ms=1_700_000_000_000, random_80=next(_numbers))
    return Request(Operation.PAYOUT, reference, amount, "CNY", account)


def query_of(request: Request) -> Request:
    reference = mint(Kind.ATTEMPT, 9, unix_ms=1_700_000_000_000, random_80=next(_numbers))
    return Request(
        Operation.QUERY, reference, 0, "CNY",
        original=request.reference, original_amount=request.amount,
    )  # fmt: skip


class Ears:
    """A listener that a test waits on."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self._arrived = asyncio.Event()

    def __call__(self, heard: Heard) -> None:
        self.heard.append(heard)
        self._arrived.set()

    async def final(self, reference: str) -> Answer:
        while True:
            for heard in self.heard:
                if heard.reference == reference and heard.answer.verdict.is_final:
                    return heard.answer
            self._arrived.clear()
            await self._arrived.wait()


@asynccontextmanager
async def opened(settings: ChannelSettings, ears: Ears) -> AsyncIterator[BatchChannel]:
    found = open_channel(settings, ears, None)
    running = asyncio.get_running_loop().create_task(found.run())
    try:
        yield found
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture(scope="module", params=["pain", "fixed"])
async def there(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[FileBank, BankProcess]]:
    files = FileBank(tmp_path_factory.mktemp("files"), fixed=request.param == "fixed")
    async with bank_process(files.bank(), files.folder) as process:
        yield files, process


There = tuple[FileBank, BankProcess]


@pytest.mark.parametrize("transport", ["https", "sftp"])
async def test_payouts_are_pending_and_then_paid(there: There, transport: str) -> None:
    files, bank = there
    await bank.behave({"action": "decline", "code": "AC01", "amount_min": 999, "amount_max": 999})
    ears = Ears()
    async with opened(files.channel(bank.ports, transport=transport), ears) as channel:
        requests = [payout(100 + number) for number in range(5)] + [payout(999)]
        answers = await asyncio.gather(*(channel.perform(one, 20.0) for one in requests))
        assert {answer.verdict for answer in answers} == {Verdict.PENDING}
        assert len({answer.bank_reference for answer in answers}) == 1, "one file"
        for request in requests[:5]:
            paid = await ears.final(request.reference)
            assert paid.verdict is Verdict.APPROVED
            assert paid.bank_reference
            assert paid.clearing_date == await bank.today()
            assert (await bank.held(request.reference))["amount"] == request.amount
        refused = await ears.final(requests[5].reference)
        assert (refused.verdict, refused.reason) == (
            Verdict.DECLINED, AnswerReason.INSTRUMENT_INVALID,
        )  # fmt: skip
        told = await channel.perform(query_of(requests[0]), 20.0)
        assert told.verdict is Verdict.APPROVED


async def test_a_payout_in_two_files_has_one_effect(there: There) -> None:
    files, bank = there
    await bank.behave()
    ears, request = Ears(), payout()
    async with opened(files.channel(bank.ports), ears) as channel:
        await channel.perform(request, 20.0)
        await ears.final(request.reference)
    # The cell dies; whoever comes next repeats the payout, and asks about it.
    async with opened(files.channel(bank.ports, sender="cellb"), ears) as channel:
        await channel.perform(request, 20.0)
        told = await channel.perform(query_of(request), 20.0)
    assert told.verdict is Verdict.APPROVED
    assert len(await bank.arrivals(request.reference)) == 2
    assert (await bank.held(request.reference))["moved"] == -request.amount


async def test_what_a_dead_cell_gathered_is_not_found_and_never_paid(there: There) -> None:
    files, bank = there
    await bank.behave()
    ears, request = Ears(), payout()
    paused = files.channel(bank.ports, window_s=1.0)
    async with opened(paused, ears) as old:
        assert (await old.perform(request, 0.01)).message == "gathered"
        async with opened(files.channel(bank.ports, sender="cellb"), ears) as heir:
            told = await heir.perform(query_of(request), 20.0)
            assert (told.verdict, told.reason) == (Verdict.FAILED, AnswerReason.NOT_FOUND)
        # The old cell was only slow: its file comes, and moves nothing.
        late = await ears.final(request.reference)
        assert late.verdict is Verdict.DECLINED
    assert (await bank.held(request.reference))["moved"] == 0


async def test_a_query_of_what_waits_here_needs_no_bank(there: There) -> None:
    files, bank = there
    await bank.behave()
    async with opened(files.channel(bank.ports, window_s=60.0), Ears()) as channel:
        request = payout()
        assert (await channel.perform(request, 0.01)).verdict is Verdict.PENDING
        assert (await channel.perform(query_of(request), 5.0)).verdict is Verdict.PENDING
        asking = asyncio.get_running_loop().create_task(channel.perform(payout(), 30.0))
        await asyncio.sleep(0)
    stopped = await asking
    assert (stopped.verdict, stopped.reason) == (Verdict.FAILED, AnswerReason.NOT_SENT)
    assert await bank.held(request.reference) is None


@pytest.mark.parametrize("action", ["silent", "garble"])
async def test_a_result_that_never_comes_is_asked_for(there: There, action: str) -> None:
    files, bank = there
    await bank.behave({"action": action, "operations": ["payout"]})
    ears, request = Ears(), payout()
    async with opened(files.channel(bank.ports), ears) as channel:
        assert (await channel.perform(request, 20.0)).verdict is Verdict.PENDING
        told = await channel.perform(query_of(request), 20.0)
        assert told.verdict is Verdict.APPROVED


@pytest.mark.parametrize(
    ("rule", "verdict", "reason"),
    [
        ({"action": "lie"}, Verdict.UNKNOWN, AnswerReason.NOT_AUTHENTIC),
        ({"action": "decline", "code": "AB05"}, Verdict.FAILED, AnswerReason.ISSUER_UNAVAILABLE),
        ({"action": "decline", "code": "ZZ99"}, Verdict.DECLINED, AnswerReason.DO_NOT_HONOUR),
        ({"action": "decline", "code": "AM05"}, Verdict.UNKNOWN, AnswerReason.CONNECTION_LOST),
        ({"action": "pend", "after_ms": 60_000}, Verdict.PENDING, AnswerReason.NONE),
    ],
)
async def test_what_a_result_says_has_a_verdict(
    there: There, rule: dict[str, Any], verdict: Verdict, reason: AnswerReason
) -> None:
    files, bank = there
    await bank.behave(rule)
    ears, request = Ears(), payout()
    async with opened(files.channel(bank.ports), ears) as channel:
        await channel.perform(request, 20.0)
        # What an earlier test left at the bank is heard here too.
        while not (heard := [one for one in ears.heard if one.reference == request.reference]):
            await asyncio.sleep(0.01)
    answer = heard[0].answer
    assert heard[0].channel == BATCH
    assert (answer.verdict, answer.reason) == (verdict, reason), answer


async def test_a_bank_that_is_closed_gets_the_file_later(there: There) -> None:
    files, bank = there
    await bank.behave(closed="silent")
    ears, request = Ears(), payout()
    async with opened(files.channel(bank.ports), ears) as channel:
        gathered = await channel.perform(request, 0.3)
        assert (gathered.verdict, gathered.message) == (Verdict.PENDING, "gathered")
        await bank.behave()
        assert (await ears.final(request.reference)).verdict is Verdict.APPROVED
    assert len(await bank.arrivals(request.reference)) == 1


async def test_a_host_with_another_key_gets_nothing(there: There, tmp_path: Path) -> None:
    files, bank = there
    await bank.behave()
    settings = files.channel(bank.ports, transport="sftp")
    mailbox = {**settings.options["mailbox"], "host_key": ssh_key(tmp_path / "x")}  # type: ignore[dict-item]
    request = payout()
    settings = files.channel(bank.ports, mailbox=mailbox)
    async with opened(settings, Ears()) as channel:
        assert (await channel.perform(request, 1.0)).message == "gathered"
    assert await bank.held(request.reference) is None


@pytest.mark.parametrize(
    "account",
    [
        Card("6222020000000000001", "3012", "unionpay"),
        BankAccount("1" * 35, "ICBKCNBJXXX", "x"),
        BankAccount("1", "ICBKCNBJXXX", "bell\x07"),
        BankAccount("1", "b" * 36, "x"),
    ],
)
async def test_what_has_no_place_in_the_file_is_not_sent(
    there: There, account: BankAccount | Card
) -> None:
    files, bank = there
    channel = open_channel(files.channel(bank.ports), Ears(), None)
    answer = await channel.perform(payout(1, account), 1.0)
    assert answer.verdict is Verdict.FAILED
    other = await channel.perform(
        Request(Operation.REFUND, "att_x", 1, "CNY", original="att_y"), 1.0
    )
    assert (other.verdict, other.reason) == (Verdict.FAILED, AnswerReason.UNSUPPORTED)


@pytest.mark.parametrize(
    "options", [{"sender": "a-b"}, {"colour": 1}, {"window_s": 0}, {"layout": {"format": "xls"}}]
)
def test_options_that_cannot_work_are_refused(there: There, options: dict[str, Any]) -> None:
    files, bank = there
    with pytest.raises(ValidationError):
        open_channel(files.channel(bank.ports, **options), Ears(), None)
