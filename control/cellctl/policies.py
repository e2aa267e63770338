"""`cellctl policy …` and `cellctl degrade`: policies shown, written, forced, taken back."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from cellpay.control.v1 import control_pb2
from cellpay.control.v1 import policies_pb2 as pb
from google.protobuf.json_format import MessageToDict

from control.cellctl.options import DATA, DEFAULT_DATA, JSON, REASON
from control.cellctl.session import Session
from control.cellctl.show import console, print_json, table
from router.errors import details_of
from router.policies.model import Dependency, checked_dependency

app = typer.Typer(help="Policies: limits, traffic, breakers, degradation.", add_completion=False)

REVISION = Annotated[
    int | None,
    typer.Option("--revision", help="Only if the policy is at this revision; 0: if it is new."),
]
CELL = Annotated[str, typer.Option("--cell", help="Of one cell only.")]

_TIMEOUT_S = 10.0
_PAGE_SIZE = 500
# Edits between our reading and our writing; then somebody fights with us.
_TRIES_MAX = 5


@app.callback(invoke_without_command=True)
def policy(
    context: typer.Context,
    data: DATA = DEFAULT_DATA,
    automatic_failover: Annotated[
        bool | None, typer.Option("--automatic-failover/--no-automatic-failover")
    ] = None,
    reason: REASON = "",
) -> None:
    """Without a command: shows or sets the failover policy."""
    if context.invoked_subcommand is not None:
        return

    async def apply() -> bool:
        async with Session.open(data).control() as control:
            if automatic_failover is None:
                request = control_pb2.GetFailoverPolicyRequest()
                got = await control.GetFailoverPolicy(request, timeout=5)
            else:
                wanted = control_pb2.FailoverPolicy(automatic=automatic_failover)
                got = await control.SetFailoverPolicy(
                    control_pb2.SetFailoverPolicyRequest(policy=wanted, reason=reason), timeout=5
                )
            return got.automatic

    console.print(f"automatic failover: {'on' if asyncio.run(apply()) else 'off'}")


@app.command(name="list")
def list_(
    kind: Annotated[str, typer.Argument(help="Of this kind only.")] = "",
    data: DATA = DEFAULT_DATA,
    as_json: JSON = False,
) -> None:
    """Every policy in etcd, with its revision, and who last changed it and why."""
    found = asyncio.run(list_policies(Session.open(data), kind))
    if as_json:
        print_json([_document(item) for item in found])
    else:
        table(
            "policies",
            ("kind", "name", "revision", "changed", "by", "reason", "alarm"),
            [
                (item.kind, item.name, item.revision, item.update_time.ToJsonString(),
                 item.actor, item.reason, item.alarm)
                for item in found
            ],
        )  # fmt: skip


@app.command()
def get(kind: str, name: str, data: DATA = DEFAULT_DATA, as_json: JSON = False) -> None:
    """A policy's document; with --json also its revision, for --revision of a change."""

    async def fetch() -> pb.Policy:
        async with Session.open(data).policies() as policies:
            request = pb.GetPolicyRequest(kind=kind, name=name)
            return await policies.GetPolicy(request, timeout=_TIMEOUT_S)

    found = asyncio.run(fetch())
    if as_json:
        print_json(_document(found))
    else:
        print(json.dumps(json.loads(found.document), indent=2) if found.document else found.alarm)


@app.command(name="set")
def set_(
    kind: str,
    name: str,
    document: Annotated[str, typer.Argument(help="JSON; @FILE reads a file, - standard input.")],
    reason: REASON,
    data: DATA = DEFAULT_DATA,
    revision: REVISION = None,
    check_only: Annotated[bool, typer.Option("--check", help="Check it only.")] = False,
) -> None:
    """Creates or replaces a policy."""
    text = _text(document)

    async def send() -> pb.Policy:
        async with Session.open(data).policies() as policies:
            return await policies.SetPolicy(
                pb.SetPolicyRequest(
                    kind=kind, name=name, document=text, reason=reason, revision=revision,
                    validate_only=check_only,
                ),
                timeout=_TIMEOUT_S,
            )  # fmt: skip

    done = asyncio.run(send())
    what = "is valid" if check_only else f"is in etcd at revision {done.revision}"
    console.print(f"{kind}/{name} {what}")


@app.command()
def delete(
    kind: str, name: str, reason: REASON, data: DATA = DEFAULT_DATA, revision: REVISION = None
) -> None:
    """Takes a policy away: the defaults hold again."""

    async def send() -> None:
        async with Session.open(data).policies() as policies:
            request = pb.DeletePolicyRequest(kind=kind, name=name, reason=reason, revision=revision)
            await policies.DeletePolicy(request, timeout=_TIMEOUT_S)

    asyncio.run(send())
    console.print(f"{kind}/{name} is gone")


@app.command()
def force(
    dependency: Annotated[str, typer.Argument(help=f"{', '.join(Dependency)} or channel:NAME.")],
    state: Annotated[str, typer.Argument(help="open, closed, or auto: as the calls say.")],
    reason: REASON,
    data: DATA = DEFAULT_DATA,
    cell: CELL = "",
) -> None:
    """Forces the breaker of a dependency open or closed, or lets it go."""
    if state not in {"open", "closed", "auto"}:
        raise typer.BadParameter("must be open, closed or auto", param_hint="STATE")
    try:
        checked_dependency(dependency)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="DEPENDENCY") from None

    done = asyncio.run(force_breaker(Session.open(data), dependency, state, reason, cell))
    console.print(f"breaker of {dependency}: {state}, at revision {done.revision}")


def degrade(
    level: Annotated[int, typer.Argument(min=0, max=3, help="0: everything is on.")],
    reason: REASON,
    data: DATA = DEFAULT_DATA,
    cell: CELL = "",
) -> None:
    """Switches features off by level, the least important first; payments stay."""

    done = asyncio.run(set_level(Session.open(data), level, reason, cell))
    where = f"cell {cell}" if cell else "the mesh"
    console.print(f"degradation of {where}: level {level}, at revision {done.revision}")


async def force_breaker(
    session: Session, dependency: str, state: str, reason: str, cell: str, name: str = "operator"
) -> pb.Policy:
    """`state`: open, closed, or auto. `name`: the identity that does it."""

    def change(document: dict[str, Any]) -> dict[str, Any]:
        document |= {"dependency": dependency, "force": None if state == "auto" else state}
        return document | ({"cells": [cell]} if cell else {})

    policy = dependency.replace(":", "-") + (f"-{cell}" if cell else "")
    return await change_policy(session, "breakers", policy, change, reason, name)


async def set_level(
    session: Session, level: int, reason: str, cell: str, name: str = "operator"
) -> pb.Policy:
    def change(document: dict[str, Any]) -> dict[str, Any]:
        return document | {"level": level} | ({"cells": [cell]} if cell else {})

    policy = f"cell-{cell}" if cell else "mesh"
    return await change_policy(session, "degradation", policy, change, reason, name)


async def change_policy(
    session: Session,
    kind: str,
    name: str,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    reason: str,
    identity: str = "operator",
) -> pb.Policy:
    """Reads, changes and writes back what is there, again when somebody was faster."""
    async with session.policies(identity) as policies:
        tries = 0
        while True:
            tries += 1
            try:
                request = pb.GetPolicyRequest(kind=kind, name=name)
                now = await policies.GetPolicy(request, timeout=_TIMEOUT_S)
                document, revision = json.loads(now.document or "{}"), now.revision
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.NOT_FOUND:
                    raise
                document, revision = {}, 0
            text = json.dumps(change(document))
            try:
                return await policies.SetPolicy(
                    pb.SetPolicyRequest(
                        kind=kind, name=name, document=text, reason=reason, revision=revision
                    ),
                    timeout=_TIMEOUT_S,
                )
            except grpc.aio.AioRpcError as error:
                if details_of(error).reason != "POLICY_CHANGED" or tries == _TRIES_MAX:
                    raise


async def list_policies(session: Session, kind: str, identity: str = "operator") -> list[pb.Policy]:
    found: list[pb.Policy] = []
    token = ""
    async with session.policies(identity) as policies:
        while True:
            request = pb.ListPoliciesRequest(kind=kind, page_size=_PAGE_SIZE, page_token=token)
            page = await policies.ListPolicies(request, timeout=_TIMEOUT_S)
            found += page.policies
            token = page.next_page_token
            if not token:
                return found


def _text(document: str) -> str:
    if document == "-":
        return sys.stdin.read()
    if document.startswith("@"):
        return Path(document[1:]).read_text(encoding="utf-8")
    return document


def _document(item: pb.Policy) -> dict[str, Any]:
    return {
        "kind": item.kind,
        "name": item.name,
        "document": json.loads(item.document) if item.document else None,
        "revision": item.revision,
        "reason": item.reason,
        "actor": item.actor,
        "update_time": item.update_time.ToJsonString(),
        "alarm": item.alarm,
    }


async def policies_status(session: Session, timeout_s: float) -> dict[str, Any]:
    """For `cellctl status`: what is in etcd, and what each process says that it applied."""
    found = await list_policies(session, "")
    async with session.policies() as policies:
        request = pb.ListPolicyReportsRequest()
        reports = (await policies.ListPolicyReports(request, timeout=timeout_s)).reports
    return {
        "policies": [
            {"kind": item.kind, "name": item.name, "revision": item.revision, "alarm": item.alarm}
            for item in found
        ],
        "policy_reports": [
            MessageToDict(
                item,
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
            for item in reports
        ],
    }


def show_policies_status(document: dict[str, Any]) -> None:
    reports = document["policy_reports"]
    if document["policies"]:
        console.print()
        table(
            "policies",
            ("policy", "revision", "applied by", "not yet by", "alarm"),
            [_row(item, reports) for item in document["policies"]],
        )
    for report in reports:
        said = unusual(report)
        if said:
            console.print(f"{report['process']}: {'; '.join(said)}")


def _row(item: dict[str, Any], reports: list[dict[str, Any]]) -> tuple[object, ...]:
    """Where this revision is in force, and where another one still is."""
    done: list[str] = []
    late: list[str] = []
    for report in reports:
        applied = {
            (entry["kind"], entry["name"]): (int(entry["revision"]), entry["alarm"])
            for entry in report["applied"]
        }
        same = applied.get((item["kind"], item["name"])) == (item["revision"], "")
        (done if same else late).append(report["process"])
    name = f"{item['kind']}/{item['name']}"
    return name, item["revision"], ", ".join(done) or "-", ", ".join(late) or "-", item["alarm"]


def unusual(report: dict[str, Any]) -> list[str]:
    """What of a process's report an operator should know of: it is not as on any day."""
    said = []
    if report["degradation_level"]:
        features = ", ".join(f"{name} {mode}" for name, mode in sorted(report["features"].items()))
        said.append(f"degradation level {report['degradation_level']} ({features})")
    for breaker in report["breakers"]:
        state = breaker["state"].removeprefix("STATE_").lower()
        if state != "closed" or breaker["forced"]:
            how = ", forced" if breaker["forced"] else ""
            said.append(f"breaker of {breaker['dependency']} {state}{how}")
    if report["concurrency_limit"]:
        said.append(f"at most {report['concurrency_limit']} calls at once")
    if report["refused"]:
        refused = ", ".join(f"{count} {why}" for why, count in sorted(report["refused"].items()))
        said.append(f"refused so far: {refused}")
    return said
