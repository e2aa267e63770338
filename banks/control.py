"""A bank's control API: HTTP with JSON on 127.0.0.1, for tests, drills and sandboxes.

GET  /                     name, kind, ports, today
GET  /behaviour            PUT /behaviour: replaces it as a whole
GET  /statement-orders     PUT /statement-orders: errors and fees
GET  /holdings/{reference} what the bank holds for it (full or short); 404: nothing
GET  /holdings             all, in the order in which they came
GET  /totals?currency=     what moved
GET  /arrivals             each request as it came, the last 10,000; ?reference= of one
GET  /oddities             what the tongue could not read or believe, counted
GET  /network              network messages by code (sign-on, echo, …), counted
GET  /statement/{day}      rows, and the errors that were made in them
POST /ask                  a request as if it had come over the wire, without misbehaviour
POST /do/hang-up           closes all connections of the tongue
POST /do/{command}         what else the tongue can (iso8583: change-key)
POST /forget               an empty book
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from typing import Any

from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from banks.bank import Bank
from banks.behaviour import BEHAVIOUR
from banks.book import Holding
from banks.model import Asked
from banks.statement import ORDERS

_ASKED = TypeAdapter(Asked)
_BODY_BYTES_MAX = 16 * 1024 * 1024


class Control:
    def __init__(self, bank: Bank, kind: str, ports: Mapping[str, int]) -> None:
        self._bank = bank
        self._kind = kind
        self._ports = dict(ports)

    def application(self) -> web.Application:
        app = web.Application(client_max_size=_BODY_BYTES_MAX, middlewares=[_told_clearly])
        app.add_routes(
            [
                web.get("/", self._about),
                web.get("/behaviour", self._behaviour),
                web.put("/behaviour", self._behave),
                web.get("/statement-orders", self._orders),
                web.put("/statement-orders", self._order),
                web.get("/holdings", self._holdings),
                web.get("/holdings/{reference}", self._holding),
                web.get("/totals", self._totals),
                web.get("/arrivals", self._arrivals),
                web.get("/oddities", self._oddities),
                web.get("/network", self._network),
                web.get("/statement/{day}", self._statement),
                web.post("/ask", self._ask),
                web.post("/do/{command}", self._do),
                web.post("/forget", self._forget),
            ]
        )
        return app

    async def _about(self, request: web.Request) -> web.Response:
        bank = self._bank
        return _json(
            {"name": bank.name, "kind": self._kind, "ports": self._ports, "today": bank.today}
        )

    async def _behaviour(self, request: web.Request) -> web.Response:
        return web.Response(
            body=BEHAVIOUR.dump_json(self._bank.behaviour), content_type="application/json"
        )

    async def _behave(self, request: web.Request) -> web.Response:
        self._bank.behave(BEHAVIOUR.validate_json(await request.read()))
        return await self._behaviour(request)

    async def _orders(self, request: web.Request) -> web.Response:
        return web.Response(
            body=ORDERS.dump_json(self._bank.orders), content_type="application/json"
        )

    async def _order(self, request: web.Request) -> web.Response:
        self._bank.orders = ORDERS.validate_json(await request.read())
        return await self._orders(request)

    async def _holdings(self, request: web.Request) -> web.Response:
        return _json([_shown(held) for held in self._bank.book])

    async def _holding(self, request: web.Request) -> web.Response:
        held = self._bank.book.find(request.match_info["reference"])
        if held is None:
            raise web.HTTPNotFound(text="it holds nothing for that reference")
        return _json(_shown(held))

    async def _totals(self, request: web.Request) -> web.Response:
        return _json(asdict(self._bank.book.totals(request.query.get("currency", ""))))

    async def _arrivals(self, request: web.Request) -> web.Response:
        wanted = request.query.get("reference")
        found = [row for row in self._bank.arrivals if wanted in {None, row.reference}]
        return _json([asdict(row) for row in found])

    async def _oddities(self, request: web.Request) -> web.Response:
        return _json(dict(self._bank.oddities))

    async def _network(self, request: web.Request) -> web.Response:
        return _json(dict(self._bank.network))

    async def _statement(self, request: web.Request) -> web.Response:
        try:
            day = date.fromisoformat(request.match_info["day"])
        except ValueError as error:
            raise web.HTTPBadRequest(text="a day is YYYY-MM-DD") from error
        rows, made = self._bank.statement(day)
        return _json(
            {"rows": [asdict(row) for row in rows], "errors": [asdict(error) for error in made]}
        )

    async def _ask(self, request: web.Request) -> web.Response:
        return _json(asdict(self._bank.ask(_ASKED.validate_json(await request.read()))))

    async def _do(self, request: web.Request) -> web.Response:
        command = self._bank.commands.get(request.match_info["command"])
        if command is None:
            raise web.HTTPNotFound(text=f"it can {', '.join(sorted(self._bank.commands))}")
        command()
        return _json({})

    async def _forget(self, request: web.Request) -> web.Response:
        self._bank.forget()
        return _json({})


@web.middleware
async def _told_clearly(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        return _json({"errors": details}, status=422)
    return response


def _shown(held: Holding) -> dict[str, Any]:
    shown = asdict(held)
    # A simulator's log or page may be kept: no whole number of a card leaves it.
    shown["instrument"] = held.instrument[-4:]
    shown["taken"] = held.taken
    return shown


def _json(body: Any, status: int = 200) -> web.Response:
    return web.json_response(
        body, status=status, dumps=lambda value: json.dumps(value, default=str)
    )
