"""cellctl's commands about who may do what: identities, roles, approvals, the audit log."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from cellpay.control.v1 import access_pb2 as pb
from cellpay.control.v1 import control_pb2

from control.cellctl.options import DATA, DEFAULT_DATA, JSON, REASON
from control.cellctl.session import Session
from control.cellctl.show import console, errors, print_json, table
from control.mesh import rotation
from control.mesh.state import locked
from router.identity import spiffe_id

ROLES = Annotated[
    list[str], typer.Option("--role", help="viewer, operator, approver or drill; may be repeated.")
]
_TIMEOUT_S = 10
_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
# Their certificates are workloads' own.
_RESERVED = re.compile(r"(operator|client|edge|ca|(cell|controller|etcd)(-.*)?)")

identity = typer.Typer(
    help="Identities of people, and the mesh's certificates.", no_args_is_help=True
)
roles = typer.Typer(help="Which identity has which roles.", no_args_is_help=True)
approvals = typer.Typer(help="What waits for a second person.", no_args_is_help=True)
audit = typer.Typer(help="Who did what, when and why.", invoke_without_command=True)


@identity.command()
def issue(
    name: str, role: ROLES, data: DATA = DEFAULT_DATA, reason: REASON = "a new identity"
) -> None:
    """Binds the roles, then makes the certificate: `cellctl --as NAME` then acts with it."""
    if not _NAME.fullmatch(name) or _RESERVED.fullmatch(name):
        raise typer.BadParameter(f"{name!r} is no name for a person: a to z, digits, hyphens")
    session = Session.open(data)
    subject = spiffe_id("operator", name)
    bound = asyncio.run(_bind(session, subject, role, reason))
    with locked(session.data):
        rotation.issue_person(session.state, name)
    console.print(f"{subject}: {_names(bound.roles)}; act with: cellctl --as {name} …")


@identity.command()
def rotate(data: DATA = DEFAULT_DATA) -> None:
    """Makes every certificate of this mesh anew; whatever runs takes them without a restart."""
    session = Session.open(data)
    with locked(session.data):
        made = rotation.rotate(session.state)
    console.print(f"certificates made anew: {', '.join(made)}")


@identity.command()
def whoami(data: DATA = DEFAULT_DATA, as_json: JSON = False) -> None:
    """Who this command is to the control plane."""

    async def ask() -> pb.WhoAmIResponse:
        async with Session.open(data).access() as access:
            return await access.WhoAmI(pb.WhoAmIRequest(), timeout=_TIMEOUT_S)

    found = asyncio.run(ask())
    if as_json:
        print_json({"spiffe_id": found.spiffe_id, "roles": _list(found.roles)})
    else:
        console.print(f"{found.spiffe_id}: {_names(found.roles)}")


@roles.command(name="list")
def list_roles(data: DATA = DEFAULT_DATA, as_json: JSON = False) -> None:
    """All bindings; one of a whole kind ends in *."""

    async def fetch() -> pb.ListRoleBindingsResponse:
        async with Session.open(data).access() as access:
            return await access.ListRoleBindings(pb.ListRoleBindingsRequest(), timeout=_TIMEOUT_S)

    found = asyncio.run(fetch()).bindings
    if as_json:
        print_json([{"subject": item.subject, "roles": _list(item.roles)} for item in found])
    else:
        table("roles", ("subject", "roles"), [(i.subject, _names(i.roles)) for i in found])


@roles.command(name="set")
def set_roles(
    subject: Annotated[str, typer.Argument(help="A SPIFFE ID, or the name of a person.")],
    reason: REASON,
    role: ROLES = [],  # noqa: B006 (typer reads it, and nobody changes it)
    data: DATA = DEFAULT_DATA,
) -> None:
    """Binds roles to an identity; without any, its kind's hold again."""
    full = subject if "://" in subject else spiffe_id("operator", subject)
    bound = asyncio.run(_bind(Session.open(data), full, role, reason))
    console.print(f"{full}: {_names(bound.roles) or 'as its kind'}")


async def _bind(session: Session, subject: str, names: list[str], reason: str) -> pb.RoleBinding:
    numbers = []
    for name in names:
        try:
            numbers.append(pb.Role.Value(f"ROLE_{name.upper()}"))
        except ValueError:
            raise typer.BadParameter(f"there is no role {name!r}", param_hint="--role") from None
    binding = pb.RoleBinding(subject=subject, roles=numbers)
    async with session.access() as access:
        request = pb.SetRoleBindingRequest(binding=binding, reason=reason)
        return await access.SetRoleBinding(request, timeout=_TIMEOUT_S)


@approvals.command(name="list")
def list_approvals(data: DATA = DEFAULT_DATA, as_json: JSON = False) -> None:
    """Newest first."""

    async def fetch() -> pb.ListApprovalsResponse:
        async with Session.open(data).access() as access:
            return await access.ListApprovals(pb.ListApprovalsRequest(), timeout=_TIMEOUT_S)

    columns = ("approval_id", "state", "action", "parameters", "requester", "approver", "note")
    rows = [_row(item) for item in asyncio.run(fetch()).approvals]
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        table("approvals", columns, rows)


@approvals.command()
def approve(approval_id: str, reason: REASON, data: DATA = DEFAULT_DATA) -> None:
    """Says yes to what another one asked for."""
    _decide(approval_id, True, reason, data)


@approvals.command()
def reject(approval_id: str, reason: REASON, data: DATA = DEFAULT_DATA) -> None:
    """Says no, also after a yes that was not used yet."""
    _decide(approval_id, False, reason, data)


@approvals.command()
def policy(
    data: DATA = DEFAULT_DATA,
    required: Annotated[bool | None, typer.Option("--on/--off")] = None,
    reason: REASON = "",
) -> None:
    """Shows or sets whether what needs a second person waits for one."""

    async def apply() -> pb.ApprovalPolicy:
        async with Session.open(data).access() as access:
            if required is None:
                return await access.GetApprovalPolicy(
                    pb.GetApprovalPolicyRequest(), timeout=_TIMEOUT_S
                )
            wanted = pb.ApprovalPolicy(required=required)
            return await access.SetApprovalPolicy(
                pb.SetApprovalPolicyRequest(policy=wanted, reason=reason), timeout=_TIMEOUT_S
            )

    console.print(f"approvals: {'on' if asyncio.run(apply()).required else 'off'}")


def _decide(approval_id: str, yes: bool, reason: str, data: Path) -> None:
    async def decide() -> pb.Approval:
        async with Session.open(data).access() as access:
            request = pb.DecideApprovalRequest(approval_id=approval_id, approve=yes, reason=reason)
            return await access.DecideApproval(request, timeout=_TIMEOUT_S)

    after = asyncio.run(decide())
    console.print(f"{after.approval_id}: {_state(after)}; {after.action} {after.parameters}")


@audit.callback()
def show_audit(context: typer.Context, data: DATA = DEFAULT_DATA, as_json: JSON = False) -> None:
    """Who did what, when and why; refused attempts too."""
    if context.invoked_subcommand is not None:
        return

    async def fetch() -> list[control_pb2.AuditRecord]:
        async with Session.open(data).control() as control:
            listed = await control.ListAuditRecords(
                control_pb2.ListAuditRecordsRequest(page_size=200), timeout=_TIMEOUT_S
            )
            return list(listed.records)

    columns = ("time", "actor", "action", "detail", "reason", "verdict")
    rows = [
        (item.time.ToJsonString(), item.actor, item.action, item.detail, item.reason, item.verdict)
        for item in asyncio.run(fetch())
    ]
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        table("audit", columns, rows)


@audit.command()
def verify(
    data: DATA = DEFAULT_DATA,
    contains: Annotated[str, typer.Option(help="A hash noted earlier: must be there.")] = "",
    as_json: JSON = False,
) -> None:
    """Walks the log's hash chain; exits 1 and names the first broken record."""

    async def fetch() -> pb.VerifyAuditLogResponse:
        async with Session.open(data).access() as access:
            request = pb.VerifyAuditLogRequest(contains_sha256=contains)
            return await access.VerifyAuditLog(request, timeout=60)

    found = asyncio.run(fetch())
    if as_json:
        print_json(
            {
                "ok": found.ok, "broken": found.broken_audit_id, "problem": found.problem,
                "records": found.records, "unchained": found.unchained, "head": found.head_sha256,
            }
        )  # fmt: skip
    elif found.ok:
        console.print(
            f"{found.records} records, and {found.unchained} from before the chain: unbroken\n"
            f"head {found.head_sha256}"
        )
    if not found.ok:
        errors.print(f"broken: {found.broken_audit_id or 'the log'}: {found.problem}")
        raise typer.Exit(1)


def _row(item: pb.Approval) -> tuple[str, ...]:
    return (
        item.approval_id, _state(item), item.action.rpartition(".")[2], item.parameters,
        item.requester, item.approver, item.note,
    )  # fmt: skip


def _state(item: pb.Approval) -> str:
    return pb.Approval.State.Name(item.state).removeprefix("STATE_").lower()


def _list(numbers: Any) -> list[str]:
    return [pb.Role.Name(number).removeprefix("ROLE_").lower() for number in numbers]


def _names(numbers: Any) -> str:
    return ", ".join(_list(numbers))
