"""`cellctl console`: serves the console of a mesh."""

from __future__ import annotations

import asyncio
import getpass
import ipaddress
import os
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
from pydantic import TypeAdapter, ValidationError

from control.cellctl.console.accounts import BadAccount, add_account, read_accounts
from control.cellctl.console.app import Console
from control.cellctl.console.meter import meter_of
from control.cellctl.console.oidc import OidcSettings, Provider
from control.cellctl.console.sources import TRACE_PLACE, Sources
from control.cellctl.options import DATA, DEFAULT_DATA
from control.cellctl.session import Session
from control.cellctl.show import console, errors
from router.documents import BadSettings, read_document

app = typer.Typer(help="The console: a web page of the control plane.", invoke_without_command=True)
PASSWORD_VARIABLE = "CELLPAY_CONSOLE_PASSWORD"


@app.callback()
def serve(
    context: typer.Context,
    data: DATA = DEFAULT_DATA,
    listen: Annotated[str, typer.Option(help="host:port; port 0 is any.")] = "127.0.0.1:7600",
    certificate: Annotated[Path | None, typer.Option(help="PEM; needed off loopback.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM.")] = None,
    oidc: Annotated[Path | None, typer.Option(help="JSON: sign in by OpenID Connect.")] = None,
    trace_url: Annotated[
        str, typer.Option(help="Where a trace is shown, with {trace_id} for its ID.")
    ] = "",
    parent: Annotated[int, typer.Option(hidden=True, help="End with this process.")] = 0,
) -> None:
    """Serves the console until Ctrl-C."""
    if context.invoked_subcommand is not None:
        return
    Session.open(data)
    host, _, port = listen.rpartition(":")
    if not _is_loopback(host) and certificate is None:
        errors.print("off loopback the console needs --certificate and --key")
        raise typer.Exit(2)
    if trace_url and not (
        trace_url.startswith(("http://", "https://")) and TRACE_PLACE in trace_url
    ):
        errors.print(f"--trace-url must be an http or https URL with {TRACE_PLACE} in it")
        raise typer.Exit(2)
    provider = _provider(oidc)
    if provider is None and not read_accounts(data):
        errors.print(f"nobody may sign in yet; add one: cellctl console account NAME --data {data}")
        raise typer.Exit(2)
    meter = meter_of(data)
    made = Console(
        data,
        lambda identity: Sources(data, identity, meter, trace_url),
        provider,
        secure=certificate is not None,
    )
    config = uvicorn.Config(
        made.application(),
        host=host,
        port=int(port),
        log_level="warning",
        ssl_certfile=certificate,
        ssl_keyfile=str(key) if key else None,
        server_header=False,
        timeout_graceful_shutdown=2,
        limit_concurrency=200,
        h11_max_incomplete_event_size=16 * 1024,
    )
    asyncio.run(_run(uvicorn.Server(config), host, secure=certificate is not None, parent=parent))


async def _run(server: uvicorn.Server, host: str, *, secure: bool, parent: int) -> None:
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.02)
        if server.started:
            port = server.servers[0].sockets[0].getsockname()[1]
            console.print(f"console: http{'s' if secure else ''}://{host}:{port}/", soft_wrap=True)
        while parent and not serving.done():
            if os.getppid() != parent:
                server.should_exit = True
            await asyncio.sleep(0.5)


@app.command()
def account(
    name: Annotated[str, typer.Argument(help="Whom to sign in as.")],
    identity: Annotated[
        str,
        typer.Option("--identity", help="The identity that acts for them; see cellctl identity."),
    ] = "operator",
    data: DATA = DEFAULT_DATA,
) -> None:
    """Adds an account, or gives it a new password (asked for, or in CELLPAY_CONSOLE_PASSWORD)."""
    session = Session.open(data)
    if not session.tls(identity).stamp():
        errors.print(f"there is no identity {identity}; make it: cellctl identity {identity}")
        raise typer.Exit(2)
    password = os.environ.get(PASSWORD_VARIABLE) or getpass.getpass(f"password for {name}: ")
    try:
        add_account(data, name, identity, password)
    except BadAccount as error:
        errors.print(str(error))
        raise typer.Exit(2) from None
    console.print(f"{name} may sign in and acts as {identity}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _provider(path: Path | None) -> Provider | None:
    if path is None:
        return None
    try:
        return Provider(TypeAdapter(OidcSettings).validate_json(read_document(path)))
    except (ValidationError, BadSettings, OSError) as error:
        errors.print(str(error))
        raise typer.Exit(2) from None
