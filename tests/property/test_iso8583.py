"""Whatever bytes a bank sends, nothing but the words for it comes out: frames, fields, answers."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from cells.channels.iso8583 import rules
from cells.channels.iso8583.channel import IsoChannel
from cells.channels.iso8583.codec import Codec, Undecodable
from cells.channels.iso8583.connection import Connection
from cells.channels.iso8583.dialect import Dialect, Header, LengthForm
from cells.channels.iso8583.framing import Framer, FramingLost
from cells.channels.iso8583.mac import Mac
from cells.channels.iso8583.options import options_of
from cells.channels.model import (
    Answer,
    AnswerReason,
    Card,
    Operation,
    Request,
    Verdict,
)

FOLDER = Path(__file__).resolve().parents[2] / "examples/channels"
DIALECTS = {
    path.stem: TypeAdapter(Dialect).validate_json(path.read_bytes())
    for path in sorted(FOLDER.glob("iso8583-*.json"))
}
KEY = bytes(range(16))
NOW = datetime(2026, 11, 24, 9, 30, 1, tzinfo=UTC)

headers = st.builds(
    Header,
    length=st.sampled_from(LengthForm),
    inclusive=st.booleans(),
    tpdu=st.sampled_from(["", "6000030000"]),
)
dialects = st.sampled_from(list(DIALECTS.values()))


@st.composite
def requests(draw: st.DrawFn) -> Request:
    operation = draw(st.sampled_from(Operation))
    speaks_of_another = operation not in {Operation.AUTHORISE, Operation.PAYOUT}
    return Request(
        operation=operation,
        reference="att_"
        + draw(st.text("0123456789ABCDEFGHJKMNPQRSTVWXYZ", min_size=28, max_size=28)),
        amount=0 if operation is Operation.QUERY else draw(st.integers(1, 10**12 - 1)),
        currency=draw(st.sampled_from(["CNY", "JPY", "KWD"])),
        instrument=Card(draw(st.text("0123456789", min_size=12, max_size=19)), "3012", "unionpay"),
        capture=draw(st.booleans()),
        original="att_original" if speaks_of_another else "",
        original_bank_reference=draw(st.text("ABC123", max_size=6)),
        original_amount=draw(st.integers(0, 10**12 - 1)) if speaks_of_another else 0,
        merchant=draw(st.text(max_size=60)),
    )


@given(headers, st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.data())
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(
    header: Header, messages: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(Framer(header, 4_096).wrap(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    framer = Framer(header, 4_096)
    found: list[bytes] = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += framer.feed(stream[begin:end])
    assert found == messages


@given(headers, st.lists(st.binary(max_size=200), max_size=10))
def test_a_stream_of_anything_gives_frames_or_is_lost(header: Header, chunks: list[bytes]) -> None:
    framer = Framer(header, 64)
    try:
        for chunk in chunks:
            for message in framer.feed(chunk):
                assert len(message) <= 64
    except FramingLost:
        pass


def test_what_was_whole_before_the_stream_was_lost_is_delivered() -> None:
    framer = Framer(Header(length=LengthForm.ASCII4), 64)
    found: list[bytes] = []
    with pytest.raises(FramingLost):
        found.extend(framer.feed(b"0003abc0002de 99x"))
    # extend() takes what came before the error.
    assert found == [b"abc", b"de"]


@pytest.mark.parametrize("length", ["+003", " 003", "0_03", "-003", "3   ", "\u0663003"])
def test_a_length_is_digits_and_nothing_that_int_would_take(length: str) -> None:
    framer = Framer(Header(length=LengthForm.ASCII4), 4_096)
    with pytest.raises(FramingLost):
        list(framer.feed(length.encode("utf-8") + b"abc"))


@given(
    dialects,
    st.one_of(st.binary(max_size=400), st.from_regex(rb"0[0-9]{3}[0-9A-F]{16,32}.{0,200}")),
)
def test_any_bytes_are_a_message_or_undecodable(dialect: Dialect, message: bytes) -> None:
    try:
        fields = Codec(dialect).decode(message)
    except Undecodable:
        return
    assert all(isinstance(value, str) for value in fields.values())


def _message(codec: Codec, dialect: Dialect, request: Request, mac: Mac | None) -> bytes | None:
    spelling = rules.spelling_of(dialect, request)
    if spelling is None:
        return None
    return codec.encode(rules.fields_of(dialect, request, spelling, "000123", NOW), mac)


def _mac(dialect: Dialect) -> Mac | None:
    return Mac(dialect.mac, KEY) if dialect.keys is not None else None


@given(dialects, requests())
def test_a_request_can_be_said_in_every_dialect_and_is_read_back(
    dialect: Dialect, request: Request
) -> None:
    codec, mac = Codec(dialect), _mac(dialect)
    message = _message(codec, dialect, request, mac)
    if message is None:
        assert request.operation not in rules.supported(dialect)
        return
    fields = codec.decode(message)
    assert fields[dialect.reference_field] == request.reference
    assert fields.get(dialect.original_field, "") == request.original
    if request.operation in {Operation.AUTHORISE, Operation.REFUND}:
        assert int(fields["4"]) == request.amount
    if mac is not None:
        assert codec.verify(message, fields, mac)
        assert not codec.verify(message, fields, Mac(dialect.mac, KEY[::-1]))


@given(dialects, requests(), st.data())
def test_a_message_with_any_bit_flipped_is_not_authentic(
    dialect: Dialect, request: Request, data: st.DataObject
) -> None:
    codec, mac = Codec(dialect), _mac(dialect)
    message = _message(codec, dialect, request, mac)
    if message is None or mac is None:
        return
    at = data.draw(st.integers(0, len(message) - 1))
    spoiled = bytearray(message)
    spoiled[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        fields = codec.decode(bytes(spoiled))
    except Undecodable:
        return
    # Hexadecimal digits of a MAC may differ in case alone.
    assert not codec.verify(bytes(spoiled), fields, mac) or spoiled.upper() == message.upper()


class _Sink(asyncio.Transport):
    """Takes what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


network_messages = st.fixed_dictionaries(
    {"t": st.sampled_from(["0800", "0810", "0820", "0830"]), "11": st.just("000123")},
    optional={
        "7": st.just("1124093001"),
        "39": st.sampled_from(["00", "91"]),
        "48": st.sampled_from(["", "zz", "00" * 19, "é"]),
        "70": st.sampled_from(["001", "101", "161", "301", "999"]),
    },
)


@given(st.sampled_from(sorted(DIALECTS)), requests(), network_messages, st.data())
def test_nothing_that_arrives_raises_out_of_a_connection(
    name: str, request: Request, network: dict[str, str], data: st.DataObject
) -> None:
    """Answers and network messages, whole, spoiled and cut, to a channel that waits for one."""
    dialect = DIALECTS[name]
    codec, framer = Codec(dialect), Framer(dialect.header, 4_096)
    spelling = rules.spelling_of(dialect, request)
    if spelling is None:
        return
    asked = rules.fields_of(dialect, request, spelling, "000123", NOW)
    answered_by = rules.answer_types(dialect, request, spelling)
    answer = {**asked, "t": min(answered_by), "39": "00", "15": "1124"}
    network = {key: value for key, value in network.items() if value.isascii()}
    stream = bytearray(
        framer.wrap(codec.encode(dict(network), None))
        + framer.wrap(codec.encode(dict(answer), _mac(dialect)))
        + framer.wrap(codec.encode(dict(answer), None))
    )
    for _ in range(data.draw(st.integers(0, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(stream)))

    async def receive() -> None:
        channel = _channel(dialect)
        connection = Connection(name, Framer(dialect.header, 4_096), codec)
        connection.receive = lambda raw, fields: channel._receive(connection, raw, fields)
        connection.connection_made(_Sink())
        sent = rules.sent_of(request, answered_by, asked)
        waiting = channel._expect(rules.match_key(dialect, asked), sent)
        connection.data_received(bytes(stream[:cut]))
        connection.data_received(bytes(stream[cut:]) + b"\xff\xff\xff\xff")
        if waiting.done() and dialect.keys is not None:
            # It has no key yet, so whatever came is not to be believed.
            assert waiting.result().verdict is Verdict.UNKNOWN

    asyncio.run(receive())


def _channel(dialect: Dialect) -> IsoChannel:
    document = json.loads(TypeAdapter(Dialect).dump_json(dialect))
    options = options_of(
        {"host": "127.0.0.1", "port": 1, "dialect": document, "zone_master_key_file": "/dev/null"}
    )
    return IsoChannel("bank", options, KEY, lambda _: None)


answers = st.dictionaries(
    st.sampled_from(["4", "11", "15", "37", "38", "39", "49", "60", "61", "62"]),
    st.one_of(st.text(max_size=14), st.sampled_from(["00", "05", "25", "000000001250", "156"])),
)


@given(answers, st.sampled_from(["0210", "0110", "0410", "0610"]), requests())
def test_an_answer_is_approved_only_if_it_contradicts_nothing(
    said: dict[str, str], mti: str, request: Request
) -> None:
    dialect = DIALECTS["iso8583-ascii"]
    spelling = rules.spelling_of(dialect, request)
    assert spelling is not None
    fields = rules.fields_of(dialect, request, spelling, "000123", NOW)
    sent = rules.sent_of(request, rules.answer_types(dialect, request, spelling), fields)
    answer = rules.answer_of(dialect, sent, {"t": mti, **said}, NOW.date())
    assert isinstance(answer, Answer)
    if answer.verdict is Verdict.APPROVED:
        assert mti in sent.answered_by
        assert said.get("11", "000123") == "000123"
        assert said.get("37", fields["37"]) == fields["37"]
        assert said.get("49", fields["49"]) == fields["49"]
        assert said.get("62", request.reference) == request.reference
        if request.operation is not Operation.QUERY:
            assert said.get("4", fields["4"]) == fields["4"]
            assert said["39"] in {"00", "08", "11", "16", "25"}
    if answer.reason is AnswerReason.NOT_AUTHENTIC:
        assert answer.verdict is Verdict.UNKNOWN


@given(st.dates(date(2000, 3, 1), date(2090, 1, 1)), st.integers(-170, 170))
def test_a_day_without_a_year_is_the_nearest_one(today: date, off: int) -> None:
    said = date.fromordinal(today.toordinal() + off)
    if (said.month, said.day) == (2, 29):
        return
    assert rules.clearing_date(f"{said:%m%d}", today) == said.isoformat()
