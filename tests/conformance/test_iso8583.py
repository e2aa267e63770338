"""What is ISO 8583's own: network messages, keys, repeats, streams that are lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import structlog.testing

from cells.channels.interface import Channel
from cells.channels.model import AnswerReason, ChannelSettings, Heard, Verdict
from cells.channels.registry import UnknownKind, open_channel
from tests.conformance.cases import BEHAVIOUR, CASES
from tests.conformance.process import BankProcess, bank_process
from tests.conformance.stand import PATIENT_S, SHORT_S, Stand, purchase, void_of

BY_NAME = {case.name: case for case in CASES}
SEALED = ("iso8583-bcd-tpdu", "iso8583-aes")


@dataclass(frozen=True, slots=True)
class Banks:
    """One process for each dialect; each test has a channel of its own to one of them."""

    processes: Mapping[str, tuple[BankProcess, Path]]

    @asynccontextmanager
    async def connected(self, name: str, **options: Any) -> AsyncIterator[Stand]:
        bank, folder = self.processes[name]
        await bank.forget()
        case = BY_NAME[name]
        settings = case.channel(bank.ports, folder)
        settings = replace(settings, options={**settings.options, **options})
        heard: list[Heard] = []
        async with running(open_channel(settings, heard.append)) as channel:
            yield Stand(case, bank, channel, heard)


@asynccontextmanager
async def running(channel: Channel) -> AsyncIterator[Channel]:
    task = asyncio.get_running_loop().create_task(channel.run())
    try:
        yield channel
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest_asyncio.fixture(scope="module")
async def banks(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Banks]:
    processes = {}
    async with AsyncExitStack() as stack:
        for name in ("iso8583-ascii", *SEALED):
            folder = tmp_path_factory.mktemp(name)
            bank = await stack.enter_async_context(bank_process(BY_NAME[name].bank(folder), folder))
            processes[name] = (bank, folder)
        yield Banks(processes)


async def until(stand: Stand, code: str, count: int) -> None:
    """Until the bank has heard so many network messages."""
    async with asyncio.timeout(PATIENT_S):
        while (await stand.bank.network()).get(code, 0) < count:
            await asyncio.sleep(0.02)


async def test_a_reversal_is_repeated_in_the_words_of_its_dialect(banks: Banks) -> None:
    async with banks.connected("iso8583-ascii") as stand:
        request = purchase()
        await stand.perform(request)
        await stand.bank.behave({"action": "lose", "times": 3}, **BEHAVIOUR)
        void = void_of(request)
        assert (await stand.perform(void)).verdict is Verdict.APPROVED
        arrivals = await stand.bank.arrivals(void.reference)
        assert [row["wire"] for row in arrivals] == ["0400", "0420", "0421", "0421"]


async def test_a_reversal_goes_on_over_the_next_connection(banks: Banks) -> None:
    async with banks.connected("iso8583-aes") as stand:
        request = purchase()
        await stand.perform(request)
        await stand.bank.behave({"action": "hang_up", "times": 2}, **BEHAVIOUR)
        void = void_of(request)
        assert (await stand.perform(void)).verdict is Verdict.APPROVED
        assert len(await stand.bank.arrivals(void.reference)) == 3
        assert (await stand.bank.totals())["taken"] == 0


async def test_what_the_bank_works_on_is_pending_until_it_tells(banks: Banks) -> None:
    async with banks.connected("iso8583-bcd-tpdu") as stand:
        await stand.bank.behave({"action": "pend", "after_ms": 30_000}, **BEHAVIOUR)
        slow = purchase()
        assert (await stand.perform(slow)).verdict is Verdict.PENDING
        assert (await stand.query(slow)).verdict is Verdict.PENDING
        assert (await stand.bank.totals())["taken"] == 0
        await stand.bank.behave({"action": "pend", "after_ms": 1}, **BEHAVIOUR)
        quick = purchase()
        assert (await stand.perform(quick)).verdict is Verdict.PENDING
        async with asyncio.timeout(PATIENT_S):
            while (answer := await stand.query(quick)).verdict is Verdict.PENDING:
                await asyncio.sleep(0.01)
        assert answer.verdict is Verdict.APPROVED
        assert (await stand.bank.totals())["taken"] == quick.amount


async def test_a_late_answer_that_comes_twice_is_heard_once(banks: Banks) -> None:
    async with banks.connected("iso8583-aes") as stand:
        twice = {"action": "duplicate", "after_ms": 10}
        await stand.bank.behave(twice, latency={"median_ms": 400}, **BEHAVIOUR)
        request = purchase()
        assert (await stand.perform(request, SHORT_S)).verdict is Verdict.UNKNOWN
        await stand.until_heard(request.reference)
        # Answered behind the second answer.
        await stand.bank.behave(latency={"median_ms": 100}, **BEHAVIOUR)
        assert (await stand.perform(purchase())).verdict is Verdict.APPROVED
        assert [heard.reference for heard in stand.heard] == [request.reference]


async def test_an_idle_connection_echoes(banks: Banks) -> None:
    async with banks.connected("iso8583-ascii", echo_s=0.05) as stand:
        await until(stand, "301", 3)
        assert (await stand.perform(purchase())).verdict is Verdict.APPROVED


async def test_an_echo_without_an_answer_ends_the_connection(banks: Banks) -> None:
    options = {"echo_s": 0.05, "network_timeout_s": 0.2}
    async with banks.connected("iso8583-ascii", **options) as stand:
        assert (await stand.perform(purchase())).verdict is Verdict.APPROVED
        # It hears, and says nothing: a connection that looks alive.
        await stand.bank.behave(closed="silent", **BEHAVIOUR)
        request = purchase()
        answer = await stand.perform(request)
        assert answer.verdict is Verdict.UNKNOWN
        assert answer.reason is AnswerReason.CONNECTION_LOST
        await stand.bank.behave(**BEHAVIOUR)
        assert (await stand.perform(purchase())).verdict is Verdict.APPROVED


@pytest.mark.parametrize("name", SEALED)
async def test_keys_change_under_way_from_either_side(banks: Banks, name: str) -> None:
    async with banks.connected(name) as stand:
        await stand.bank.behave(latency={"median_ms": 30}, **BEHAVIOUR)
        loop = asyncio.get_running_loop()
        for _ in range(3):
            tasks = [loop.create_task(stand.perform(purchase())) for _ in range(20)]
            async with asyncio.timeout(PATIENT_S):
                while not await stand.bank.arrivals():
                    await asyncio.sleep(0.005)
            await stand.bank.do("change-key")
            answers = await asyncio.gather(*tasks)
            assert {answer.verdict for answer in answers} == {Verdict.APPROVED}
        assert await stand.bank.oddities() == {}


async def test_wrong_macs_in_a_row_ask_for_a_new_key(banks: Banks) -> None:
    async with banks.connected("iso8583-aes") as stand:
        assert (await stand.perform(purchase())).verdict is Verdict.APPROVED
        await stand.bank.behave({"action": "forge", "times": 3}, **BEHAVIOUR)
        for _ in range(3):
            answer = await stand.perform(purchase())
            assert answer.reason is AnswerReason.NOT_AUTHENTIC
        # One at sign-on, one by doubt.
        await until(stand, "161", 2)
        assert (await stand.perform(purchase())).verdict is Verdict.APPROVED


@pytest.mark.parametrize("name", SEALED)
async def test_another_master_key_than_the_banks_sends_nothing(
    banks: Banks, name: str, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    key = "11" * 16
    await asyncio.to_thread(wrong.write_text, key)
    options = {"zone_master_key_file": str(wrong), "ready_wait_s": 0.3}
    with structlog.testing.capture_logs() as logs:
        async with banks.connected(name, **options) as stand:
            answer = await stand.perform(purchase())
            assert (answer.verdict, answer.reason) == (Verdict.FAILED, AnswerReason.NOT_SENT)
            assert await stand.bank.arrivals() == []
    assert any(row["event"] == "iso8583.no_connection" for row in logs)
    assert key not in repr(logs)


async def test_unknown_settings_are_refused_before_anything_is_sent() -> None:
    options = {"host": "127.0.0.1", "port": 1}
    settings = ChannelSettings("bank", "iso8583", options)
    open_channel(settings, lambda _: None)
    for wrong in (
        {"prot": 1},
        {"dialect": {"mac": "x9.19"}},
        {"dialect": {"fields": {"129x": {"data_enc": "ascii", "max_len": 1}}}},
        {"dialect": {"fields": {"2": {"data_enc": "klingon", "max_len": 1}}}},
        {"dialect": {"codes": {"05": {"verdict": "perhaps"}}}},
    ):
        with pytest.raises(ValueError, match=r".+"):
            open_channel(replace(settings, options={**options, **wrong}), lambda _: None)
    with pytest.raises(UnknownKind, match="iso8583"):
        open_channel(replace(settings, kind="telex"), lambda _: None)


# A bank of the test's own: what it says to a message (type and STAN, in ASCII), as it is.
Script = Callable[[str, str], bytes]


def framed(message: str) -> bytes:
    return len(message).to_bytes(2, "big") + message.encode("latin-1")


def network_answer(stan: str) -> bytes:
    return framed("0810" + "0020000002000000" + stan + "00")


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[tuple[int, list[str]]]:
    """Its port, and the types of all it heard; connections are counted as `connected`."""
    heard: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append("connected")
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(2), "big")
                message = (await reader.readexactly(length)).decode("ascii")
                mti = message[:4]
                heard.append(mti)
                # Field 11 stands behind 7 in network messages.
                second = 16 if mti == "0800" else 0
                stan = message[20 + second + 10 :][:6]
                answer = network_answer(stan) if mti == "0800" else script(mti, stan)
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], heard
    finally:
        server.close()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"\xff\xff" + b"x" * 100, id="a length beyond all bounds"),
        pytest.param(framed("not a message") * 8, id="frames that are no messages"),
        pytest.param(framed("0210" + "F" * 32 + "0" * 40) * 9, id="bitmaps of all fields"),
        pytest.param(framed("0210" + "4000000000000000" + "99") * 8, id="fields cut short"),
        pytest.param(framed("0210" + "\xff" * 16) * 8, id="bitmaps that are no digits"),
        pytest.param(framed("0210" + "4000000000000000" + "-1" + "4") * 8, id="negative lengths"),
    ],
)
async def test_a_stream_that_makes_no_sense_is_left_for_another(answer: bytes) -> None:
    async with scripted(lambda mti, stan: answer) as (port, heard):
        options = {"host": "127.0.0.1", "port": port, "backoff_first_s": 0.01}
        channel = open_channel(ChannelSettings("bank", "iso8583", options), lambda _: None)
        async with running(channel):
            with structlog.testing.capture_logs() as logs:
                told = await channel.perform(purchase(), PATIENT_S)
                assert told.verdict is Verdict.UNKNOWN
                assert told.reason is AnswerReason.CONNECTION_LOST
                again = await channel.perform(purchase(), PATIENT_S)
                assert again.verdict is Verdict.UNKNOWN
            assert heard.count("connected") >= 2
            events = {row["event"] for row in logs}
            assert events & {"iso8583.framing_lost", "iso8583.closed_as_unreadable"}


async def test_one_frame_that_is_no_message_harms_no_other_request() -> None:
    def script(mti: str, stan: str) -> bytes:
        return framed("garbage")

    async with scripted(script) as (port, heard):
        options = {"host": "127.0.0.1", "port": port, "backoff_first_s": 0.01}
        channel = open_channel(ChannelSettings("bank", "iso8583", options), lambda _: None)
        async with running(channel):
            for _ in range(3):
                answer = await channel.perform(purchase(), 0.2)
                assert (answer.verdict, answer.reason) == (
                    Verdict.UNKNOWN,
                    AnswerReason.TIMED_OUT,
                )
            assert heard.count("connected") == 1
