"""`cellctl risk check`, `apply`, `show` and `history`: documents from files, and as they stand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
import yaml
from cellpay.control.v1 import policies_pb2 as pb

from control.cellctl.options import DATA, DEFAULT_DATA, JSON, REASON
from control.cellctl.policies import list_policies
from control.cellctl.session import Session
from control.cellctl.show import console, errors, print_json, table
from control.risk.files import (
    BadFile,
    Checked,
    RiskFile,
    check_files,
    content_of,
    place_of,
    read_files,
)
from router.errors import Violation, details_of
from router.policies.model import RISK_KINDS

FILES = Annotated[
    list[Path], typer.Argument(exists=True, help="YAML or JSON files, or folders of them.")
]
# The first time, a controller compiles all rules.
TIMEOUT_S = 60.0
_PAGE_SIZE = 200


def register(app: typer.Typer) -> None:
    app.command()(check)
    app.command()(apply)
    app.command()(show)
    app.command()(history)


def files_of(paths: Sequence[Path]) -> list[RiskFile]:
    """What a command was given; ends it when there is something that is no risk document."""
    try:
        return read_files(paths)
    except BadFile as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(1) from None


def check(files: FILES, as_json: JSON = False) -> None:
    """Checks documents against each other and runs the cases beside rules; needs no mesh."""
    found = check_files(files_of(files))
    if as_json:
        print_json([_checked(item) for item in found])
    else:
        for item in found:
            if item.violations:
                show_violations(item.file, item.violations)
            else:
                console.print(f"{item.file.path}: {item.file}, {item.content}: good", markup=False)
    if any(item.violations for item in found):
        raise typer.Exit(1)


def apply(
    files: FILES,
    reason: REASON,
    data: DATA = DEFAULT_DATA,
    check_only: Annotated[
        bool, typer.Option("--check", help="Ask the mesh whether it would take them.")
    ] = False,
    revision: Annotated[
        int | None,
        typer.Option("--revision", help="Of a single file: only if the document is at this one."),
    ] = None,
) -> None:
    """Writes documents; they are in force in every cell within a second. What others ask for goes
    first; what stands there already is left alone."""
    wanted = files_of(files)
    if revision is not None and len(wanted) != 1:
        raise typer.BadParameter("is for a single file", param_hint="--revision")
    refused = asyncio.run(_apply(Session.open(data), wanted, reason, check_only, revision))
    for file, error in refused:
        show_violations(file, _violations_of(error))
    if refused:
        raise typer.Exit(1)


async def _apply(
    session: Session,
    wanted: Sequence[RiskFile],
    reason: str,
    check_only: bool,
    revision: int | None,
) -> list[tuple[RiskFile, grpc.aio.AioRpcError]]:
    """Again and again as long as something gets through: a new rule waits for its list, and a
    feature goes after the last rule that asked for it."""
    waiting = list(wanted)
    async with session.policies() as policies:
        while True:
            refused = []
            for file in waiting:
                try:
                    console.print(
                        await _written(policies, file, reason, check_only, revision), markup=False
                    )
                except grpc.aio.AioRpcError as error:
                    if error.code() != grpc.StatusCode.INVALID_ARGUMENT:
                        # An approval that is needed, too: asking for it twice would make two.
                        raise
                    refused.append((file, error))
            if len(refused) in {0, len(waiting)}:
                return refused
            waiting = [file for file, _ in refused]


async def _written(
    policies: Any, file: RiskFile, reason: str, check_only: bool, revision: int | None
) -> str:
    """What is to be said of it."""
    try:
        request = pb.GetPolicyRequest(kind=file.kind, name=file.name)
        there = await policies.GetPolicy(request, timeout=TIMEOUT_S)
        if there.document and json.loads(there.document) == json.loads(file.document):
            return f"{file} stands there already, at revision {there.revision}"
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.NOT_FOUND:
            raise
    wanted = pb.SetPolicyRequest(
        kind=file.kind, name=file.name, document=file.document, reason=reason,
        validate_only=check_only, revision=revision,
    )  # fmt: skip
    done = await policies.SetPolicy(wanted, timeout=TIMEOUT_S)
    return f"{file} {'is valid' if check_only else f'is in force at revision {done.revision}'}"


def show(
    document: Annotated[str, typer.Argument(help="KIND/NAME; none: all of them.")] = "",
    data: DATA = DEFAULT_DATA,
    as_json: JSON = False,
    revision: Annotated[
        int, typer.Option("--revision", help="As it was then; see history. 0: as it is.")
    ] = 0,
) -> None:
    """Documents of risk, or one of them as YAML: what apply takes."""
    session = Session.open(data)
    if not document:
        _show_all(asyncio.run(risk_policies(session)), as_json)
        return
    kind, name = split(document)

    async def fetch() -> pb.Policy:
        async with session.policies() as policies:
            request = pb.GetPolicyRequest(kind=kind, name=name, revision=revision)
            return await policies.GetPolicy(request, timeout=TIMEOUT_S)

    found = asyncio.run(fetch())
    body = {"kind": kind, "name": name, **json.loads(found.document or "{}")}
    if as_json:
        print_json(body)
    else:
        print(yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=100), end="")


def history(
    document: Annotated[str, typer.Argument(help="KIND/NAME, or KIND for all of a kind.")],
    data: DATA = DEFAULT_DATA,
    as_json: JSON = False,
) -> None:
    """Who changed a document, when and why, newest first; show --revision has what they wrote."""
    kind, name = split(document, name_needed=False)

    async def fetch() -> list[pb.PolicyChange]:
        async with Session.open(data).policies() as policies:
            found: list[pb.PolicyChange] = []
            token = ""
            while True:
                request = pb.ListPolicyChangesRequest(
                    kind=kind, name=name, page_size=_PAGE_SIZE, page_token=token
                )
                page = await policies.ListPolicyChanges(request, timeout=TIMEOUT_S)
                found += page.changes
                token = page.next_page_token
                if not token:
                    return found

    columns = ("document", "revision", "what", "time", "by", "reason", "cleared by")
    rows = [
        (f"{item.kind}/{item.name}", item.revision, "deleted" if item.deleted else "written",
         item.time.ToJsonString(), item.actor, item.reason, item.cleared_by)
        for item in asyncio.run(fetch())
    ]  # fmt: skip
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        table("history", columns, rows)


def split(document: str, *, name_needed: bool = True) -> tuple[str, str]:
    kind, _, name = document.partition("/")
    if kind not in RISK_KINDS or (name_needed and not name):
        kinds = ", ".join(sorted(RISK_KINDS))
        raise typer.BadParameter(f"must be KIND/NAME; kinds are {kinds}", param_hint="DOCUMENT")
    return kind, name


async def risk_policies(session: Session) -> list[pb.Policy]:
    return [item for item in await list_policies(session, "") if item.kind in RISK_KINDS]


def _show_all(found: Sequence[pb.Policy], as_json: bool) -> None:
    columns = ("document", "holds", "revision", "changed", "by", "reason", "alarm")
    rows = [
        (f"{item.kind}/{item.name}", content_of(item.kind, item.document), item.revision,
         item.update_time.ToJsonString(), item.actor, item.reason, item.alarm)
        for item in found
    ]  # fmt: skip
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        table("risk", columns, rows)


def show_violations(file: RiskFile, violations: Sequence[Violation]) -> None:
    for item in violations:
        place = place_of(item, file.document)
        errors.print(f"{file.path}: {place}: {item.description}", markup=False)


def _violations_of(error: grpc.aio.AioRpcError) -> Sequence[Violation]:
    details = details_of(error)
    said = Violation("document", f"{details.reason}: {error.details()}")
    return details.violations or [said]


def _checked(item: Checked) -> dict[str, Any]:
    return {
        "file": str(item.file.path),
        "document": str(item.file),
        "content": item.content,
        "ok": not item.violations,
        "violations": [
            {"field": violation.field, "description": violation.description}
            for violation in item.violations
        ],
    }
