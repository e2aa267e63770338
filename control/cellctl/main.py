"""cellctl: start a local mesh, watch it, move its slots, load it, audit its books.

Every command takes --as NAME (another identity), --approval ID and --break-glass.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Any, cast

import grpc
import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from control.cellctl.acting import take_acting
from control.cellctl.failures import MissingValue, NoMesh, NotLoadable
from control.cellctl.show import errors
from control.mesh.errors import MeshError
from router.errors import Refusal, details_of
from router.store.model import StoreUnavailable

# A command's module is imported when it is called: together they take a second and a half.
_COMMANDS = {
    "up": "local:up",
    "down": "local:down",
    "demo": "local:demo",
    "status": "status:status",
    "watch": "watch:watch",
    "console": "console.command:app",
    "failover": "operate:failover",
    "drain": "operate:drain",
    "restore": "operate:restore",
    "move": "operate:move",
    "rebalance": "operate:rebalance",
    "failover-policy": "operate:failover_policy",
    "cell": "operate:cell_app",
    "operation": "operate:operation_app",
    "operations": "look:operations",
    "route": "look:route",
    "policy": "policies:app",
    "degrade": "policies:degrade",
    "risk": "risk.command:app",
    "route-decision": "route_decision:route_decision",
    "identity": "access:identity",
    "roles": "access:roles",
    "approvals": "access:approvals",
    "audit": "access:audit",
    "key": "key:app",
    "vault": "vault:app",
    "load": "load:load",
    "verify": "verify:verify",
    "reconcile": "reconcile:app",
    "drill": "drill:app",
    "scrape-config": "scrape:scrape_config",
}


class _Commands(Mapping[str, Any]):
    """By name, each made when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        module, _, attribute = _COMMANDS[name].partition(":")
        found = getattr(import_module(f"control.cellctl.{module}"), attribute)
        around = typer.Typer(add_completion=False)
        if isinstance(found, typer.Typer):
            around.add_typer(found, name=name)
            return get_group(around).commands[name]
        around.command(name=name)(found)
        return get_command(around)

    def __iter__(self) -> Iterator[str]:
        return iter(_COMMANDS)

    def __len__(self) -> int:
        return len(_COMMANDS)


class _Root(TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        # Nobody adds one.
        self.commands = cast("MutableMapping[str, Any]", _Commands())


app = typer.Typer(cls=_Root, help=__doc__, no_args_is_help=True, add_completion=False)


@app.callback()
def _root() -> None:
    """Says only that there are commands."""


def main() -> None:
    """Runs a command; every failure ends in one plain sentence and exit code 1."""
    try:
        arguments, variables = take_acting(sys.argv[1:])
        os.environ.update(variables)
        app(arguments)
    except grpc.aio.AioRpcError as error:
        details = details_of(error)
        errors.print(f"{details.reason or error.code().name}: {error.details()}", markup=False)
        for violation in details.violations:
            errors.print(f"  {violation.field}: {violation.description}", markup=False)
        raise SystemExit(1) from None
    except StoreUnavailable as error:
        errors.print(f"etcd does not answer: {error}", markup=False)
        raise SystemExit(1) from None
    except (NoMesh, NotLoadable, MissingValue, MeshError, Refusal, OSError) as error:
        errors.print(str(error), markup=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
