"""The clearing house's tongue, against a bank in a process of its own, over TLS."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import ValidationError

from cells.channels.callbacks import CallbackSettings, Caller, serving
from cells.channels.clearing.channel import ClearingChannel, open_channel
from cells.channels.clearing.signing import Signer, read_signer
from cells.channels.model import (
    AnswerReason,
    Card,
    Heard,
    Operation,
    Request,
    Verdict,
)
from cells.channels.reporter import NotReported
from router.client.bootstrap import xds_bootstrap
from router.ids import Kind, mint
from tests.conformance.clearing_house import CLEARING, House, make_key
from tests.conformance.process import ROOT, BankProcess, bank_process

CARD = Card("6222020000000000001", "3012", "unionpay")
_numbers = iter(range(1, 1_000_000))


def reference() -> str:
    return mint(Kind.ATTEMPT, 7, unix_ms=1_700_000_000_000, random_80=next(_numbers))


def purchase(amount: int = 1234) -> Request:
    return Request(Operation.AUTHORISE, reference(), amount, "CNY", CARD)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
async def bank(house: House) -> AsyncIterator[BankProcess]:
    async with bank_process(house.bank(), house.folder) as process:
        yield process


@pytest.fixture
async def channel(house: House, bank: BankProcess) -> AsyncIterator[ClearingChannel]:
    await bank.behave()
    found = open_channel(house.channel(bank.ports), _nobody, None)
    assert isinstance(found, ClearingChannel)
    running = asyncio.get_running_loop().create_task(found.run())
    yield found
    running.cancel()


def _nobody(heard: Heard) -> None:
    raise AssertionError("a clearing house is heard by callbacks")


async def test_a_purchase_a_refund_and_their_queries(
    channel: ClearingChannel, bank: BankProcess
) -> None:
    asked = purchase()
    answer = await channel.perform(asked, 5.0)
    assert (answer.verdict, answer.reason) == (Verdict.APPROVED, AnswerReason.NONE)
    assert answer.bank_reference
    assert answer.clearing_date == await bank.today()
    assert await channel.perform(asked, 5.0) == answer, "repeated, it has one effect"
    refund = Request(
        Operation.REFUND, reference(), 234, "CNY", original=asked.reference, original_amount=1234
    )
    assert (await channel.perform(refund, 5.0)).verdict is Verdict.APPROVED
    query = Request(Operation.QUERY, reference(), 0, "CNY", original=asked.reference)
    assert (await channel.perform(query, 5.0)).verdict is Verdict.APPROVED
    assert (await bank.held(asked.reference))["taken"] == 1000


@pytest.mark.parametrize(
    ("rule", "verdict", "reason"),
    [
        ({"action": "decline", "code": "51"}, Verdict.DECLINED, AnswerReason.INSUFFICIENT_FUNDS),
        ({"action": "decline", "code": "??"}, Verdict.DECLINED, AnswerReason.DO_NOT_HONOUR),
        ({"action": "decline", "code": "91"}, Verdict.FAILED, AnswerReason.ISSUER_UNAVAILABLE),
        ({"action": "decline", "code": "94"}, Verdict.UNKNOWN, AnswerReason.CONNECTION_LOST),
        ({"action": "silent"}, Verdict.UNKNOWN, AnswerReason.TIMED_OUT),
        ({"action": "lose"}, Verdict.UNKNOWN, AnswerReason.TIMED_OUT),
        ({"action": "hang_up"}, Verdict.UNKNOWN, AnswerReason.CONNECTION_LOST),
        ({"action": "disconnect"}, Verdict.UNKNOWN, AnswerReason.CONNECTION_LOST),
        ({"action": "forge"}, Verdict.UNKNOWN, AnswerReason.NOT_AUTHENTIC),
        ({"action": "lie"}, Verdict.UNKNOWN, AnswerReason.NOT_AUTHENTIC),
        ({"action": "garble"}, Verdict.UNKNOWN, AnswerReason.MALFORMED),
        ({"action": "pend", "after_ms": 60_000}, Verdict.PENDING, AnswerReason.NONE),
    ],
)
async def test_what_a_bank_does_has_a_verdict(
    channel: ClearingChannel,
    bank: BankProcess,
    rule: dict[str, Any],
    verdict: Verdict,
    reason: AnswerReason,
) -> None:
    await bank.behave(rule)
    answer = await channel.perform(purchase(), 0.6)
    assert (answer.verdict, answer.reason) == (verdict, reason), answer


async def test_nobody_is_charged_when_the_bank_is_not_there(house: House) -> None:
    nowhere = open_channel(house.channel({"clearing": 1}), _nobody, None)
    answer = await nowhere.perform(purchase(), 2.0)
    assert (answer.verdict, answer.reason) == (Verdict.FAILED, AnswerReason.NOT_SENT)
    query = Request(Operation.QUERY, reference(), 0, "CNY", original=reference())
    assert (await nowhere.perform(query, 2.0)).verdict is Verdict.UNKNOWN


async def test_a_server_with_another_certificate_hears_nothing(
    house: House, bank: BankProcess, tmp_path: Path
) -> None:
    stranger = House(tmp_path)
    settings = house.channel(bank.ports, ca=stranger.tls.ca)
    answer = await open_channel(settings, _nobody, None).perform(purchase(), 3.0)
    assert (answer.verdict, answer.reason) == (Verdict.FAILED, AnswerReason.NOT_SENT)


async def test_what_is_signed_with_another_key_has_no_effect(
    house: House, bank: BankProcess, tmp_path: Path
) -> None:
    await bank.behave()
    other, _ = make_key(tmp_path, "other")
    asked = purchase()
    settings = house.channel(bank.ports, key_file=str(other))
    answer = await open_channel(settings, _nobody, None).perform(asked, 3.0)
    assert answer.verdict is Verdict.UNKNOWN
    assert await bank.held(asked.reference) is None
    assert (await bank.oddities())["signature"] >= 1


async def test_a_void_is_repeated_until_it_is_answered(
    channel: ClearingChannel, bank: BankProcess
) -> None:
    asked = purchase()
    await channel.perform(asked, 5.0)
    await bank.behave({"action": "disconnect", "operations": ["void"], "times": 2})
    void = Request(
        Operation.VOID, reference(), 1234, "CNY", original=asked.reference, original_amount=1234
    )
    assert (await channel.perform(void, 10.0)).verdict is Verdict.APPROVED
    assert len(await bank.arrivals(void.reference)) == 3
    assert (await bank.held(asked.reference))["status"] == "reversed"
    again = await channel.perform(asked, 5.0)
    assert (again.verdict, again.message) == (Verdict.FAILED, "it was reversed")


async def test_not_found_is_a_promise(channel: ClearingChannel, bank: BankProcess) -> None:
    asked = purchase()
    query = Request(Operation.QUERY, reference(), 0, "CNY", original=asked.reference)
    answer = await channel.perform(query, 5.0)
    assert (answer.verdict, answer.reason) == (Verdict.FAILED, AnswerReason.NOT_FOUND)
    late = await channel.perform(asked, 5.0)
    assert late.verdict is Verdict.DECLINED
    assert (await bank.totals())["count"] >= 1
    assert (await bank.held(asked.reference))["taken"] == 0


async def test_rsa_keys_do_as_well(tmp_path: Path) -> None:
    house = House(tmp_path, kind="rsa")
    async with bank_process(house.bank(), tmp_path) as bank:
        found = open_channel(house.channel(bank.ports), _nobody, None)
        assert (await found.perform(purchase(), 10.0)).verdict is Verdict.APPROVED


@pytest.mark.parametrize(
    "options",
    [{"base_url": "http://localhost"}, {"colour": "red"}, {"repeat_s": 0}, {"operations": ["x"]}],
)
def test_options_that_cannot_work_are_refused(house: House, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        open_channel(house.channel({"clearing": 1}, **options), _nobody, None)


class _Homes:
    """A mesh for tests: what was reported, and whether it may be."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.refuses: NotReported | None = None
        self.refused = 0
        self.arrived = asyncio.Event()

    async def report(self, heard: Heard) -> None:
        if self.refuses is not None:
            self.refused += 1
            self.arrived.set()
            raise self.refuses
        self.heard.append(heard)
        self.arrived.set()


def callback_settings(house: House, **changes: Any) -> CallbackSettings:
    caller = house.caller()
    known = Caller(
        caller["channel"], {"bank-1": house.bank_public}, caller["key_id"], house.our_key
    )
    return replace(
        CallbackSettings("127.0.0.1", 0, house.tls.certificate, house.tls.key, (known,)), **changes
    )


async def test_a_callback_reaches_its_home_once_it_is_there(
    house: House, bank: BankProcess
) -> None:
    homes = _Homes()
    homes.refuses = NotReported("UNAVAILABLE", final=False)
    async with serving(callback_settings(house), homes) as port:
        await bank.behave({"action": "pend", "after_ms": 1})
        url = f"https://localhost:{port}/v1/callbacks/{CLEARING}"
        found = open_channel(house.channel(bank.ports, callback_url=url), _nobody, None)
        asked = purchase()
        assert (await found.perform(asked, 5.0)).verdict is Verdict.PENDING
        # Its home is away: the bank is told to come again, and does.
        await homes.arrived.wait()
        homes.arrived.clear()
        homes.refuses = None
        while not homes.heard:
            await homes.arrived.wait()
            homes.arrived.clear()
        (heard,) = homes.heard
        assert (heard.channel, heard.reference) == (CLEARING, asked.reference)
        assert heard.answer.verdict is Verdict.APPROVED
        assert homes.refused >= 1


def told(of: str, **changes: Any) -> bytes:
    body = {"reference": of, "status": "approved", "amount": 1, "currency": "CNY", **changes}
    return json.dumps(body).encode()


async def test_only_what_the_bank_signed_lately_is_reported(house: House) -> None:
    homes = _Homes()
    signer = read_signer("bank-1", house.bank_key)
    stranger = Signer("bank-1", make_key(house.folder, "stranger")[0].read_bytes())
    path, now = f"/v1/callbacks/{CLEARING}", int(time.time())
    mine = reference()
    good = told(mine)
    tries: list[tuple[dict[str, str], bytes, int]] = [
        (signer.request("POST", path, good, now), good, 200),
        (signer.request("POST", path, good, now), good, 200),
        ({}, good, 401),
        (stranger.request("POST", path, good, now), good, 401),
        (signer.request("POST", path, good, now - 3600), good, 401),
        (signer.request("POST", path, good, now + 3600), good, 401),
        (signer.request("POST", "/v1/callbacks/west", good, now), good, 401),
        (signer.request("PUT", path, good, now), good, 401),
        (signer.request("POST", path, good, now), told(mine, amount=2), 401),
        *(
            (signer.request("POST", path, body, now), body, 422)
            for body in (
                b"", b"{", b"[]", told("other-1"), told("pay_" + mine[4:]), told(mine, amount="1"),
                told(mine, status="perhaps"), told(mine, amount=-1), told(mine, amount=1.0),
            )
        ),
    ]  # fmt: skip
    async with (
        serving(callback_settings(house), homes) as port,
        aiohttp.ClientSession() as session,
    ):
        tls = ssl.create_default_context(cafile=house.tls.ca)
        for headers, body, expected in tries:
            async with session.post(
                f"https://localhost:{port}{path}", data=body, headers=headers, ssl=tls
            ) as response:
                assert response.status == expected, (body, await response.text())
        async with session.post(
            f"https://localhost:{port}/v1/callbacks/west", data=good, ssl=tls
        ) as response:
            assert response.status == 404
        huge = b"x" * 200_000
        async with session.post(f"https://localhost:{port}{path}", data=huge, ssl=tls) as response:
            assert response.status == 413
        homes.refuses = NotReported("NOT_FOUND", final=True)
        body = told(reference())
        async with session.post(
            f"https://localhost:{port}{path}",
            data=body, headers=signer.request("POST", path, body, now), ssl=tls,
        ) as response:  # fmt: skip
            assert response.status == 422
    # The repetition was answered from memory.
    assert [heard.reference for heard in homes.heard] == [mine]


async def test_the_process_tells_the_bank_to_come_again_while_no_home_answers(
    house: House, tmp_path: Path
) -> None:
    bootstrap = tmp_path / "bootstrap.json"
    bootstrap.write_text(json.dumps(xds_bootstrap("127.0.0.1:1", house.tls, "client-callbacks")))
    settings = {
        "host": "127.0.0.1", "port": 0, "certificate": house.tls.certificate,
        "key": house.tls.key, "callers": [house.caller()], "xds_bootstrap": str(bootstrap),
        "report_timeout_s": 0.5, "ends_with_parent": True,
    }  # fmt: skip
    path = tmp_path / "callbacks.json"
    path.write_text(json.dumps(settings))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cells.channels.callbacks", str(path), cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        port = json.loads(await process.stdout.readline())["port"]
        signer = read_signer("bank-1", house.bank_key)
        way, body = f"/v1/callbacks/{CLEARING}", told(reference())
        tls = ssl.create_default_context(cafile=house.tls.ca)
        async with aiohttp.ClientSession() as session:
            for headers, expected in (
                ({}, 401),
                (signer.request("POST", way, body, int(time.time())), 503),
            ):
                async with session.post(
                    f"https://localhost:{port}{way}", data=body, headers=headers, ssl=tls
                ) as response:
                    assert response.status == expected
        process.terminate()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
