"""The bank's side of ISO 8583:1987 over TCP.

Reads the same dialect document as its customer, with code of its own: what the two sides agree on
is the document. It answers network messages, hands out working keys, checks MACs, and does to its
answers what the behaviour says.
"""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import iso8583
from iso8583.specs import default as binary_spec
from iso8583.specs import default_ascii as ascii_spec

from banks.bank import Bank, Plan
from banks.behaviour import Action, Closed
from banks.iso8583_keys import Vault
from banks.model import Asked, Operation, Said, Status, Why

Fields = dict[str, str]

_FRAME_MAX = 65_535
# Numeric currencies that the bank knows (ISO 4217).
_CURRENCIES = {"156": "CNY", "840": "USD", "978": "EUR", "392": "JPY", "344": "HKD", "414": "KWD"}
_CODES = {
    Why.NONE: "00",
    Why.MAINTENANCE: "90",
    Why.UNSUPPORTED: "40",
    Why.UNKNOWN_ORIGINAL: "25",
    Why.OVER_AMOUNT: "13",
    Why.DUPLICATE_DIFFERS: "94",
    Why.CLOSED: "12",
    Why.NO_FUNDS: "51",
}
_WRONG_MAC = "97"
_FORMAT_ERROR = "30"
_PENDING = "09"
_ECHOED = ("3", "4", "7", "11", "12", "13", "32", "37", "41", "42", "49")


class Tongue:
    """What all connections share: the dialect, the keys, the bank."""

    def __init__(self, bank: Bank, options: Mapping[str, Any]) -> None:
        dialect = options.get("dialect", {})
        self.bank = bank
        self.dialect = dialect
        header = dialect.get("header", {})
        self.length_form: str = header.get("length", "binary2")
        self.width = 2 if self.length_form in {"binary2", "bcd2"} else 4
        self.inclusive: bool = header.get("inclusive", False)
        self.tpdu = bytes.fromhex(header.get("tpdu", ""))
        base = ascii_spec if dialect.get("base", "ascii") == "ascii" else binary_spec
        self.spec: dict[str, Any] = copy.deepcopy(dict(base))
        for name, form in dialect.get("fields", {}).items():
            self.spec[name] = {"len_enc": "ascii", "len_type": 0, "desc": "", **form}
        self.reference_field: str = dialect.get("reference_field", "62")
        self.original_field: str = dialect.get("original_field", "63")
        inquiry = dialect.get("inquiry", {})
        self.code_field: str = inquiry.get("code_field", "60")
        self.reversed_code: str = inquiry.get("reversed_code", "R0")
        network = {"sign_on": "001", "sign_off": "002", "echo": "301", "key_change": "101"}
        self.network = {**network, **dialect.get("network", {})}
        self.operations = _operations(dialect.get("operations", {}))
        mac = dialect.get("mac", "none")
        self.vault: Vault | None = None
        if mac != "none":
            master = Path(options["zone_master_key_file"]).read_text(encoding="ascii").strip()
            keys = dialect["keys"]
            self.vault = Vault(mac, keys["scheme"], bytes.fromhex(master))
            self.key_field: str = keys.get("field", "48")
        self.talks: set[Talk] = set()
        bank.commands["change-key"] = self.push_key

    def push_key(self) -> None:
        """The bank itself begins a change of keys, on every connection."""
        for talk in list(self.talks):
            talk.push_key()

    def asked(self, fields: Fields) -> Asked | None:
        spelt = (fields["t"], fields.get("3", "000000"))
        found = self.operations.get(spelt)
        if found is None and fields["t"][:2] == "04":
            found = (Operation.VOID, True)
        if found is None:
            return None
        operation, capture = found
        amount = fields.get("4", "0")
        if not amount.isdigit():
            return None
        short = fields.get("37", "")
        return Asked(
            operation=operation,
            reference=fields.get(self.reference_field, "") or short,
            amount=int(amount),
            currency=_CURRENCIES.get(fields.get("49", ""), fields.get("49", "")),
            instrument=fields.get("2", "") or fields.get("103", ""),
            capture=capture,
            original=fields.get(self.original_field, ""),
            short_reference=short,
        )

    def answer(self, request: Fields, said: Said) -> Fields:
        fields = {name: request[name] for name in _ECHOED if name in request}
        if self.reference_field in request:
            fields[self.reference_field] = request[self.reference_field]
        fields["t"] = _answer_type(request["t"])
        told = said.of != "" and request["t"][:2] != "04" and self._is_query(request)
        if told:
            fields["39"] = "25" if said.status is Status.ABSENT else "00"
            fields[self.code_field] = self._code(said)
            if said.status is not Status.ABSENT:
                fields["4"] = f"{said.amount:012}"
        else:
            code = self._code(said)
            fields["39"] = _CODES[Why.CLOSED] if code == self.reversed_code else code
        if said.bank_reference:
            fields["38"] = said.bank_reference
        if said.clearing_date:
            fields["15"] = said.clearing_date[5:7] + said.clearing_date[8:10]
        return fields

    def _is_query(self, request: Fields) -> bool:
        found = self.operations.get((request["t"], request.get("3", "000000")))
        return found is not None and found[0] is Operation.QUERY

    def _code(self, said: Said) -> str:
        match said.status:
            case Status.APPROVED:
                return "00"
            case Status.PENDING:
                return _PENDING
            case Status.REVERSED:
                return self.reversed_code
            case _:
                return said.code or _CODES.get(said.why, "05")

    def encode(self, fields: Fields, *, forge: bool = False) -> bytes:
        """With a MAC, if this bank seals its messages and this is no network message."""
        if self.vault is None or fields["t"][1] == "8":
            return bytes(iso8583.encode(fields, self.spec)[0])
        place = "128" if any(name.isdigit() and int(name) > 64 for name in fields) else "64"
        fields[place] = "0" * 16
        size = self.spec[place]["max_len"]
        data = bytes(iso8583.encode(fields, self.spec)[0])[:-size]
        seal = self.vault.mac(data)
        if forge:
            seal = bytes([seal[0] ^ 1]) + seal[1:]
        return data + (seal if size == 8 else seal.hex().upper().encode("ascii"))

    def is_authentic(self, message: bytes, fields: Fields) -> bool:
        if self.vault is None or fields["t"][1] == "8":
            return True
        place = "128" if "1" in fields else "64"
        if place not in fields:
            return False
        size = self.spec[place]["max_len"]
        seal = message[-size:]
        if size == 16:
            try:
                seal = bytes.fromhex(seal.decode("ascii"))
            except ValueError:
                return False
        return self.vault.verify(message[:-size], seal)

    def frame(self, message: bytes) -> bytes:
        message = self.tpdu + message
        length = len(message) + (self.width if self.inclusive else 0)
        form = self.length_form
        if form.startswith("binary"):
            return length.to_bytes(self.width, "big") + message
        digits = f"{length:04}"
        return (digits.encode() if form == "ascii4" else bytes.fromhex(digits)) + message


class Talk(asyncio.Protocol):
    """One customer's connection."""

    def __init__(self, tongue: Tongue) -> None:
        self._tongue = tongue
        self._bank = tongue.bank
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._signed_on = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are no subclass of it.
        self._transport = cast("asyncio.Transport", transport)
        if self._bank.closed is Closed.HANG_UP:
            self._transport.abort()
            return
        self._tongue.talks.add(self)
        self._bank.connections.add(self._close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._tongue.talks.discard(self)
        self._bank.connections.discard(self._close)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (message := self._next()) is not None:
            self._hear(message)

    def _next(self) -> bytes | None:
        tongue = self._tongue
        form, width = tongue.length_form, tongue.width
        if len(self._buffer) < width:
            return None
        raw = bytes(self._buffer[:width])
        try:
            length = (
                int.from_bytes(raw, "big")
                if form.startswith("binary")
                else int(raw if form == "ascii4" else raw.hex())
            )
        except ValueError:
            length = -1
        length -= width if tongue.inclusive else 0
        if not 0 <= length <= _FRAME_MAX:
            self._bank.oddities["framing"] += 1
            self._close()
            return None
        if len(self._buffer) < width + length:
            return None
        message = bytes(self._buffer[width : width + length])
        del self._buffer[: width + length]
        return message[len(tongue.tpdu) :]

    def _hear(self, message: bytes) -> None:
        tongue = self._tongue
        try:
            fields = dict(iso8583.decode(message, tongue.spec)[0])
        except (iso8583.DecodeError, KeyError):
            self._bank.oddities["unreadable"] += 1
            return
        if fields["t"][1] == "8":
            self._hear_network(fields)
            return
        if not self._signed_on:
            self._bank.oddities["not signed on"] += 1
            return
        if not tongue.is_authentic(message, fields):
            self._bank.oddities["wrong mac"] += 1
            self._refuse(fields, _WRONG_MAC)
            return
        asked = tongue.asked(fields)
        if asked is None:
            self._bank.oddities["not understood"] += 1
            self._refuse(fields, _FORMAT_ERROR)
            return
        self._carry_out(fields, self._bank.hear(asked, fields["t"]))

    def _refuse(self, request: Fields, code: str) -> None:
        fields = {name: request[name] for name in _ECHOED if name in request}
        self._send({**fields, "t": _answer_type(request["t"]), "39": code})

    def _carry_out(self, request: Fields, plan: Plan) -> None:
        match plan.action:
            case Action.SILENT | Action.LOSE:
                return
            case Action.HANG_UP:
                self._close()
                return
        self._after(plan.wait_s, lambda: self._answer(request, plan))

    def _answer(self, request: Fields, plan: Plan) -> None:
        said = plan.said
        if said is None:
            assert plan.later is not None
            said = plan.later()
        fields = self._tongue.answer(request, said)
        match plan.action:
            case Action.FORGE:
                self._send(fields, forge=True)
            case Action.GARBLE:
                self._write(self._tongue.frame(b"0210" + b"\xff" * 40))
            case Action.DISCONNECT:
                frame = self._tongue.frame(self._tongue.encode(fields))
                self._write(frame[: len(frame) // 2])
                # What is written goes out first; the rest never does.
                if self._transport is not None:
                    self._transport.close()
            case Action.LIE:
                self._send({**fields, "4": f"{said.amount + 1:012}"})
            case Action.DUPLICATE:
                self._send(dict(fields))
                self._after(plan.again_s or 0.0, lambda: self._send(dict(fields)))
            case Action.PEND:
                self._send(fields)
                if plan.later is not None:
                    # This tongue has no callback: whoever wants to know asks.
                    self._after(plan.again_s or 0.0, plan.later)
            case _:
                self._send(fields)

    def _hear_network(self, fields: Fields) -> None:
        tongue = self._tongue
        if fields["t"][2] != "0":
            return
        code = fields.get("70", "")
        closed = self._bank.closed
        if closed is Closed.SILENT:
            return
        answer = {"t": "0810", "39": "00"}
        answer.update({name: fields[name] for name in ("7", "11", "70") if name in fields})
        if code == tongue.network["sign_on"]:
            self._signed_on = closed is None
            answer["39"] = "00" if self._signed_on else "91"
        elif code == tongue.network["sign_off"]:
            self._signed_on = False
        elif code == tongue.network["key_change"]:
            if tongue.vault is None:
                answer["39"] = "40"
            else:
                answer[tongue.key_field] = tongue.vault.change()
        elif code != tongue.network["echo"]:
            answer["39"] = "12"
        self._bank.network[code] += 1
        self._send(answer)

    def push_key(self) -> None:
        vault = self._tongue.vault
        if vault is not None:
            stan = f"{int.from_bytes(os.urandom(2), 'big'):06}"
            key = {self._tongue.key_field: vault.change()}
            code = self._tongue.network["key_change"]
            self._send({"t": "0800", "7": "1124000000", "11": stan, "70": code, **key})

    def _after(self, wait_s: float, do: Callable[[], object]) -> None:
        if wait_s > 0:
            asyncio.get_running_loop().call_later(wait_s, do)
        else:
            do()

    def _send(self, fields: Fields, *, forge: bool = False) -> None:
        self._write(self._tongue.frame(self._tongue.encode(fields, forge=forge)))

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


def _answer_type(mti: str) -> str:
    return mti[:2] + {"0": "1", "1": "1", "2": "3", "3": "3"}.get(mti[2], "1") + "0"


def _operations(spelt: Mapping[str, Any]) -> dict[tuple[str, str], tuple[Operation, bool]]:
    """By type and processing code: what is asked, and whether it is taken at once."""
    known: dict[str, tuple[str, str, Operation, bool]] = {
        "authorise": ("0100", "000000", Operation.AUTHORISE, False),
        "purchase": ("0200", "000000", Operation.AUTHORISE, True),
        "capture": ("0220", "000000", Operation.CAPTURE, True),
        "refund": ("0200", "200000", Operation.REFUND, True),
        "payout": ("0200", "260000", Operation.PAYOUT, True),
        "query": ("0600", "000000", Operation.QUERY, True),
    }
    found: dict[tuple[str, str], tuple[Operation, bool]] = {}
    for name, (mti, processing, operation, capture) in known.items():
        said = spelt.get(name, {})
        if said is None:
            continue
        key = (said.get("mti", mti), said.get("processing", processing))
        found[key] = (operation, capture)
    return found


@asynccontextmanager
async def serving(bank: Bank, options: Mapping[str, Any]) -> AsyncIterator[Mapping[str, int]]:
    tongue = Tongue(bank, options)
    loop = asyncio.get_running_loop()
    port = options.get("port", 0)
    server = await loop.create_server(lambda: Talk(tongue), "127.0.0.1", port)
    try:
        yield {"iso8583": server.sockets[0].getsockname()[1]}
    finally:
        server.close()
        bank.hang_up()
