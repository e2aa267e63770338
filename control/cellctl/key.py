"""`cellctl key`: public keys of merchants. The first key of a merchant comes in here; the merchant
itself changes keys by requests that it signs."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from cellpay.keys.v1 import keys_pb2 as pb
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from control.cellctl.options import DATA, DEFAULT_DATA, JSON
from control.cellctl.session import Session
from control.cellctl.show import print_json, table
from router.client import CallPolicy, Mesh

app = typer.Typer(help="Merchants' public keys.", add_completion=False, no_args_is_help=True)

_COLUMNS = ("key", "algorithm", "state", "from", "until", "reason")
_TIMEOUT_S = 20.0
_Answer = TypeVar("_Answer")


@app.command(name="list")
def list_keys(merchant: str, data: DATA = DEFAULT_DATA, as_json: JSON = False) -> None:
    """All keys of a merchant, also those that have ended."""

    async def ask(mesh: Mesh) -> pb.ListKeysResponse:
        return await mesh.keys.ListKeys(pb.ListKeysRequest(merchant_id=merchant))

    _show(list(asyncio.run(_on_mesh(data, ask)).keys), as_json)


@app.command()
def register(
    file: Annotated[Path, typer.Argument(help="JSON: what `curl.sh proof` prints.")],
    data: DATA = DEFAULT_DATA,
    as_json: JSON = False,
) -> None:
    """Registers a merchant's key by the proof that the merchant has its private half."""
    try:
        request = ParseDict(json.loads(file.read_text("utf-8")), pb.RegisterKeyRequest())
    except (OSError, ValueError, ParseError) as error:
        raise typer.BadParameter(f"{file} is no registration: {error}") from None

    async def ask(mesh: Mesh) -> pb.Key:
        return await mesh.keys.RegisterKey(request)

    _show([asyncio.run(_on_mesh(data, ask))], as_json)


@app.command()
def revoke(
    key_id: str,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the key.")],
    data: DATA = DEFAULT_DATA,
    as_json: JSON = False,
) -> None:
    """Ends a key now and for good, in every cell within seconds."""
    request = pb.RevokeKeyRequest(key_id=key_id, reason=reason, idempotency_key=uuid.uuid4().hex)

    async def ask(mesh: Mesh) -> pb.Key:
        return await mesh.keys.RevokeKey(request)

    _show([asyncio.run(_on_mesh(data, ask))], as_json)


async def _on_mesh(data: Path, ask: Callable[[Mesh], Awaitable[_Answer]]) -> _Answer:
    async with Session.open(data).mesh(CallPolicy(timeout_s=_TIMEOUT_S)) as mesh:
        return await ask(mesh)


def _show(keys: list[pb.Key], as_json: bool) -> None:
    if as_json:
        print_json([MessageToDict(key, preserving_proto_field_name=True) for key in keys])
        return
    rows = [
        (
            key.key_id,
            key.algorithm,
            pb.Key.State.Name(key.state).removeprefix("STATE_").lower(),
            _moment(key.start_time.seconds),
            _moment(key.expire_time.seconds),
            key.reason,
        )
        for key in keys
    ]
    table("keys", _COLUMNS, rows)


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else ""
