"""Every parser that reads what others wrote, for a while, with what was right once and is not now.

Mutations with a fixed seed and a budget of time each: a parser must raise what it promises and
nothing else, a server must not answer that it broke. Property tests explore most of them from
grammars: tests/property/test_iso8583.py, test_statement_columns.py, test_risk_expressions.py,
test_policies.py, test_signing.py.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import grpc
import pytest

from cells.channels.iso8583.codec import Codec, Undecodable
from cells.channels.iso8583.dialect import Dialect
from cells.channels.iso8583.framing import Framer, FramingLost
from cells.requests import Checker, page_start
from cells.statements.layouts import CamtLayout, CsvLayout, FixedLayout
from cells.statements.model import Limits, StatementFault
from cells.statements.reading import AnyLayout, read_lines
from control.cellctl.session import Session
from router.access import METHODS
from router.errors import Refusal
from router.identity import EDGE, Caller, principal_of, spiffe_id
from router.ids import kind_of_id, slot_of_id
from router.policies.model import PolicyKind
from router.policies.rules import InvalidPolicy, parse
from router.risk.expressions import BadExpression, compile_expression
from router.risk.facts import FACTS
from router.signing.model import Algorithm, Claims, SignedMessage
from router.signing.rules import Malformed, canonical, read_header
from tests.attacks.requests import request_for, served, unsaid
from tests.attacks.test_edge import request as http_request
from tests.attacks.test_edge import said_to, statuses
from tests.attacks.test_idor import things_of
from tests.attacks.world import Shop, call, issued, to_slot

BUDGET_S = 1.0
SEED = 20261129
VECTORS = Path(__file__).parents[1] / "vectors"
TOKENS = (
    b"", b"\x00", b"\xff", b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", b"'", b'"', b"\\", b"<",
    b"-1", b"9" * 40, b"\r\n", b"%00", b"\xe2\x80\xae", b"\xed\xa0\x80", b"(" * 50, b"null", b" ",
    b"1e999", b"NaN", b"/../", b"]]>", b"&#0;",
    b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>",
)  # fmt: skip


def mutated(chance: random.Random, seeds: list[bytes]) -> bytes:
    """One of the seeds, with a few changes."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(data))
        match chance.randint(0, 5):
            case 0:
                data[at:at] = chance.choice(TOKENS)
            case 1:
                del data[at : at + chance.randint(1, 20)]
            case 2 if data:
                data[at % len(data)] ^= 1 << chance.randint(0, 7)
            case 3:
                data[at:at] = data[: chance.randint(0, 60)]
            case 4:
                data = data[:at]
            case _:
                other = chance.choice(seeds)
                data[at:at] = other[chance.randint(0, len(other)) :][:60]
    return bytes(data)


def during(seconds: float, seeds: list[bytes], salt: str) -> Iterator[bytes]:
    """Mutations until the budget is used up; the same ones each time."""
    chance = random.Random(f"{SEED}{salt}")
    until = time.monotonic() + seconds
    yield from seeds
    while time.monotonic() < until:
        yield mutated(chance, seeds)


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _ids(data: bytes) -> None:
    text = text_of(data)
    for read in (kind_of_id, slot_of_id):
        try:
            read(text)
        except ValueError:
            continue
    if text.isascii() and "\n" not in text:
        check = Checker()
        page_start(check, text, 2)


def _iso8583(data: bytes) -> None:
    dialect = Dialect()
    try:
        fields = Codec(dialect).decode(data)
        assert all(isinstance(value, str) for value in fields.values())
    except Undecodable:
        pass
    try:
        list(Framer(dialect.header, dialect.frame_bytes_max).feed(data))
    except FramingLost:
        pass


def _cel(data: bytes) -> None:
    try:
        compile_expression(text_of(data), FACTS, frozenset({"vip"}))
    except BadExpression:
        pass


def _policies(data: bytes) -> None:
    for kind in PolicyKind:
        try:
            parse(kind, text_of(data))
        except InvalidPolicy as error:
            assert error.violations


def _signing(data: bytes) -> None:
    text = text_of(data)
    try:
        claims = read_header(text)
    except Malformed:
        claims = Claims("key", Algorithm.RSA_PSS_SHA256, 1_790_000_000, "n" * 16, b"")
    message = SignedMessage("POST", text[:40], text[40:60], text[60:80], text[80:100], data)
    try:
        lines = canonical(message, claims, bytes(32))
    except Malformed:
        return
    # Whatever is in it, it has as many lines as it should.
    assert lines.count(b"\n") == 11
    assert lines.endswith(b"\n")


class _Edge:
    def __init__(self, shown: str) -> None:
        self._shown = shown

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"peer_spiffe_id": [spiffe_id(EDGE, "edge").encode()]}

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        # What a client sent, and what Envoy appends to it.
        return (("x-forwarded-client-cert", f"{self._shown},Hash=1;URI={MALLORY.spiffe_id}"),)


MALLORY = Caller(spiffe_id("merchant", "mallory"), "merchant", "mallory")


def _certificates(data: bytes) -> None:
    assert principal_of(_Edge(text_of(data))) == MALLORY


Parser = Callable[[bytes], None]
_POLICY = {
    "rates": [{"by": "merchant", "per_s": 5, "burst": 5}],
    "circuit_breaker": {"requests_max": 3},
    "levels": {},
    "period_days": 9,
}
PARSERS: dict[str, tuple[Parser, list[bytes]]] = {
    "ids": (
        _ids,
        [b"pay_7Z01JDQ6T5R8V3K4M9XWEB2CHN5G", b"acc_00" + b"0" * 26, b"MjAyNgAfeA", b"evt_"],
    ),
    "iso8583": (
        _iso8583,
        [
            vector.get("text", "").encode("ascii") or bytes.fromhex(vector.get("message", ""))
            for vector in json.loads((VECTORS / "iso8583.json").read_text(encoding="utf-8"))
            if "frame" not in vector
        ],
    ),
    "cel": (
        _cel,
        [
            b"amount > 1000 && country in ['DE', 'FR']",
            b"user.id.startsWith('a') || !(challenge.passed) ? true : 1 / 0 == 2",
            b"matches(user.id, '(a+)+$') && size('x') > 0",
            b"in_list('vip', user.id) && double(3) * 1e300 > -0.5",
        ],
    ),
    "policies": (_policies, [json.dumps(_POLICY).encode(), b"{}", b"[]", b'{"force": "open"}']),
    "signing": (
        _signing,
        [
            b'CELLPAY1 key="k",algorithm="rsa-pss-sha256",timestamp="1790000000",'
            b'nonce="nnnnnnnnnnnnnnnn",signature="AAAA"',
            b"/v1/orders/x?y=z" + b"a" * 100,
        ],
    ),
    "certificates": (
        _certificates,
        [
            b"Hash=1;URI=spiffe://cellpay.local/service/client",
            b'By=x;Subject="CN=a,O=\\"b";URI=spiffe://cellpay.local/edge/edge',
            b",;=,URI=",
        ],
    ),
}


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_wants_a_parser_to_break(name: str) -> None:
    parser, seeds = PARSERS[name]
    tried = 0
    for data in during(BUDGET_S, seeds, name):
        parser(data)
        tried += 1
    assert tried > len(seeds)


@pytest.mark.parametrize("name", ["camt", "csv", "fixed"])
def test_wants_a_banks_statement_to_break_its_reader(name: str, tmp_path: Path) -> None:
    """Entities that name files included: what is read is a fault, or lines."""
    layouts: dict[str, AnyLayout] = {
        "camt": CamtLayout(),
        "csv": CsvLayout(),
        "fixed": FixedLayout(),
    }
    csv = b"#statement,S1,east,2026-11-23\nreference,kind,amount\nR1,charge,1.00\n#total,CNY,1\n"
    seeds = {"camt": [item.read_bytes() for item in (VECTORS / "camt053").glob("*.xml")]}
    path = tmp_path / "statement"
    limits = Limits(file_bytes_max=200_000, lines_max=1000)
    for data in during(BUDGET_S, seeds.get(name, [csv]), name):
        path.write_bytes(data)
        try:
            lines = list(read_lines(path, layouts[name], "east", date(2026, 11, 23), limits))
        except StatementFault:
            continue
        assert "root:" not in repr(lines)


@pytest.mark.mesh
async def test_wants_a_cell_to_break_by_a_request(session: Session, victim: Shop) -> None:
    """Bytes that were a request once, to each method, at each cell."""
    cells = [session.state.address(f"cell-{cell}") for cell in session.state.cells]
    broken: list[Any] = []
    values = things_of(victim)
    slow = ("CreateCharge", "CreatePayout", "DrainSlots", "RecoverSlots")
    methods = [name for name in served() if not name.endswith(slow)]
    seeds = {name: request_for(name, unsaid(name, values)).SerializeToString() for name in methods}
    chance = random.Random(SEED)
    until = time.monotonic() + 3 * BUDGET_S

    async def attack(address: str, kind: str) -> None:
        mine = [name for name in methods if kind in METHODS[name].kinds]
        credentials = issued(session, kind, "fuzzer").channel_credentials()
        async with grpc.aio.secure_channel(address, credentials) as channel:
            while mine and time.monotonic() < until:
                name = chance.choice(mine)
                data = mutated(chance, [seeds[name], chance.choice(list(seeds.values()))])
                answer = await call(channel, name, data, to_slot(chance.randint(0, 1023)))
                if answer.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
                    broken.append((name, data, answer))

    kinds = ("service", "cell", "merchant")
    await asyncio.gather(*(attack(address, kind) for address in cells for kind in kinds))
    assert broken == []


@pytest.mark.mesh
async def test_wants_the_http_edge_to_break(session: Session, victim: Shop) -> None:
    """What was an HTTP request once; Envoy answers with a 4xx, or ends it, and lives."""
    files = issued(session, "service", "fuzzer")
    pid = session.state.processes["envoy"].identity.pid
    seeds = [
        http_request(
            f"/v1/users/{victim.merchant_id}/balances/USD", "connection: close", method="GET"
        ),
        http_request(
            f"/v1/users/{victim.payer_id}/orders",
            "connection: close",
            "content-type: application/json",
            "content-length: 25",
            body=b'{"merchant_id": "\\u0073"}\n',
        ),
        http_request(
            "/v1/orders/ord_00:pay?x=%00", "transfer-encoding: chunked", body=b"0\r\n\r\n"
        ),
    ]
    chance = random.Random(SEED)
    until = time.monotonic() + 2 * BUDGET_S
    seen: set[int] = set()

    async def attack() -> None:
        while time.monotonic() < until:
            said = await said_to(session.http_address, files, mutated(chance, seeds), 0.2)
            seen.update(statuses(said))

    await asyncio.gather(*(attack() for _ in range(8)))
    assert seen
    assert not seen & {500, 502}, seen
    assert session.state.processes["envoy"].identity.pid == pid
    alive = await said_to(session.http_address, files, seeds[0])
    assert statuses(alive) == [200]


def test_wants_the_page_tokens_reader_to_take_what_no_method_said() -> None:
    for token in ("AAAA", "gICA", "AB8A", "\ud800", "H" * 100_000):
        check = Checker()
        assert page_start(check, token, 2) is None
        with pytest.raises(Refusal):
            check.done()
