"""What the console shows: documents of the control plane, gathered with the signed-in identity."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cellpay.control.v1 import access_pb2, control_pb2, drills_pb2, policies_pb2, reviews_pb2
from cellpay.control.v1 import reconciliation_pb2 as recon_pb2

from control.cellctl.console.channels import breakers_document, channels_document
from control.cellctl.console.life import life_of
from control.cellctl.console.meter import Meter
from control.cellctl.console.plain import plain
from control.cellctl.console.risk import decisions_of
from control.cellctl.policies import list_policies
from control.cellctl.session import Session
from control.cellctl.show import decimal_amount, operation_document
from control.cellctl.status import status_document

_TIMEOUT_S = 10.0
# Of runs and cases the control plane asks the database.
_DATABASE_TIMEOUT_S = 15.0
_PAGE = 100
# Longer documents (lists, models) are not for a page to show.
_DOCUMENT_CHARACTERS_MAX = 20_000
_NOT_FOR_YOU = frozenset({grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED})
TRACE_PLACE = "{trace_id}"


@dataclass(frozen=True, slots=True)
class Sources:
    """The control plane as one identity sees it. Failed calls raise grpc.aio.AioRpcError."""

    data: Path
    # The name of a certificate of the mesh.
    identity: str
    # Of all who look.
    meter: Meter
    # Where a trace is shown, with TRACE_PLACE for its ID; empty: nowhere.
    trace_url: str = ""

    def _session(self) -> Session:
        return Session.open(self.data)

    async def who(self) -> dict[str, Any]:
        async with self._session().access(self.identity) as access:
            said = await access.WhoAmI(access_pb2.WhoAmIRequest(), timeout=_TIMEOUT_S)
        return plain(said)

    async def overview(self) -> dict[str, Any]:
        """All that the first page shows; parts that cannot be had say why."""
        parts: dict[str, Callable[[], Awaitable[Any]]] = {
            "operations": self.operations,
            "approvals": self.approvals,
            "failover": self.failover_policy,
            "drills": self.drills,
        }
        seen, *found = await asyncio.gather(
            self._part(self._mesh_and_flow), *(self._part(fetch) for fetch in parts.values())
        )
        both = {"mesh": seen, "flow": seen} if "error" in seen else seen
        return {**both, **dict(zip(parts, found, strict=True))}

    async def _part(self, fetch: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await fetch()
        except grpc.aio.AioRpcError as error:
            return {"error": f"{error.code().name}: {error.details()}"}
        except OSError as error:
            return {"error": str(error)}

    async def _mesh_and_flow(self) -> dict[str, Any]:
        """Both come by other ways than the control API, so who may not read is refused here.
        Processes are shown while every controller is away too: that is when they are needed."""
        try:
            await self.who()
            flow = await self.meter.flow()
        except grpc.aio.AioRpcError as error:
            if error.code() in _NOT_FOR_YOU:
                raise
            flow = {"error": f"{error.code().name}: {error.details()}"}
        return {"mesh": await self._part(lambda: status_document(self.data)), "flow": flow}

    async def operations(self) -> list[dict[str, Any]]:
        async with self._session().control(self.identity) as control:
            found = await control.ListOperations(
                control_pb2.ListOperationsRequest(page_size=20), timeout=_TIMEOUT_S
            )
        return [operation_document(operation) for operation in found.operations]

    async def approvals(self) -> list[dict[str, Any]]:
        async with self._session().access(self.identity) as access:
            found = await access.ListApprovals(
                access_pb2.ListApprovalsRequest(page_size=20), timeout=_TIMEOUT_S
            )
        return [plain(approval) for approval in found.approvals]

    async def failover_policy(self) -> dict[str, Any]:
        async with self._session().control(self.identity) as control:
            found = await control.GetFailoverPolicy(
                control_pb2.GetFailoverPolicyRequest(), timeout=_TIMEOUT_S
            )
        return plain(found)

    async def drills(self) -> list[dict[str, Any]]:
        async with self._session().drills(self.identity) as drills:
            found = await drills.ListDrills(
                drills_pb2.ListDrillsRequest(page_size=20), timeout=_TIMEOUT_S
            )
        return [plain(drill) for drill in found.drills]

    async def drill_report(self, name: str) -> dict[str, Any]:
        """The report of a drill's last run; `report` is null when there is none here."""
        async with self._session().drills(self.identity) as drills:
            drill = await drills.GetDrill(drills_pb2.GetDrillRequest(name=name), timeout=_TIMEOUT_S)
        report = None
        if drill.report:
            path = Path(drill.report) / "report.json"
            with contextlib.suppress(OSError, ValueError):
                report = json.loads(await asyncio.to_thread(path.read_text, encoding="utf-8"))
        return {"name": name, "run": drill.run, "report": report}

    async def policies(self) -> dict[str, Any]:
        """What is in force, what processes do by it, and the breakers."""
        policies, reports = await asyncio.gather(self._policies(), self._reports())
        for policy in policies:
            policy["applied_by"], policy["not_yet_by"] = _applied(policy, reports)
        return {
            "policies": policies,
            "reports": reports,
            "breakers": breakers_document(policies, reports),
            "cells": await self._session().cells(self.identity),
        }

    async def channels(self) -> dict[str, Any]:
        policies, reports, answers, runs = await asyncio.gather(
            self._policies(), self._reports(), self.meter.answers(), self._part(self.runs)
        )
        breakers = breakers_document(policies, reports)
        return {
            # Without the database they are still of use.
            "channels": channels_document(
                policies, breakers, answers, runs if isinstance(runs, list) else []
            ),
            "cells": await self._session().cells(self.identity),
            "error": "" if isinstance(runs, list) else runs["error"],
        }

    async def _policies(self) -> list[dict[str, Any]]:
        found = await list_policies(self._session(), "", self.identity)
        return [
            {
                "kind": item.kind,
                "name": item.name,
                "document": _document(item.document),
                "revision": item.revision,
                "reason": item.reason,
                "actor": item.actor,
                "update_time": item.update_time.ToJsonString(),
                "alarm": item.alarm,
            }
            for item in found
        ]

    async def _reports(self) -> list[dict[str, Any]]:
        async with self._session().policies(self.identity) as policies:
            found = await policies.ListPolicyReports(
                policies_pb2.ListPolicyReportsRequest(), timeout=_TIMEOUT_S
            )
        return [plain(report) for report in found.reports]

    async def runs(self) -> list[dict[str, Any]]:
        """Newest day first."""
        async with self._session().reconciliation(self.identity) as service:
            found = await service.ListRuns(
                recon_pb2.ListRunsRequest(page_size=_PAGE), timeout=_DATABASE_TIMEOUT_S
            )
        return [plain(run) for run in found.runs]

    async def reconciliation(self, state: str) -> dict[str, Any]:
        """Runs, the cases that wait for people, and breaks: those of a state, or all."""
        async with self._session().reconciliation(self.identity) as service:
            runs, cases, breaks = await asyncio.gather(
                self.runs(),
                service.ListCases(
                    recon_pb2.ListCasesRequest(page_size=_PAGE), timeout=_DATABASE_TIMEOUT_S
                ),
                service.ListBreaks(
                    recon_pb2.ListBreaksRequest(state=state, page_size=_PAGE),
                    timeout=_DATABASE_TIMEOUT_S,
                ),
            )
        return {
            "runs": runs,
            "cases": [
                {**plain(case), "of_break": _break(case.of_break)} for case in cases.cases
            ],
            "breaks": [_break(item) for item in breaks.breaks],
            "more": {"cases": bool(cases.next_page_token), "breaks": bool(breaks.next_page_token)},
        }  # fmt: skip

    async def reviews(self, user_id: str, *, every: bool) -> dict[str, Any]:
        """What waits for a person, oldest first; `every`: what waits no more too."""
        async with self._session().reviews(self.identity) as service:
            found = await service.ListReviews(
                reviews_pb2.ListReviewsRequest(all=every, user_id=user_id, page_size=_PAGE),
                timeout=_DATABASE_TIMEOUT_S,
            )
        return {
            "reviews": [_review(item) for item in found.reviews],
            "more": bool(found.next_page_token),
        }

    async def decisions(self, user_id: str) -> dict[str, Any]:
        """Of one user; for who may see reviews."""
        async with self._session().reviews(self.identity) as service:
            request = reviews_pb2.ListReviewsRequest(user_id=user_id, page_size=1)
            await service.ListReviews(request, timeout=_DATABASE_TIMEOUT_S)
        async with self._session().database() as engine:
            found = await decisions_of(engine, user_id)
        for item in found:
            item["shown"] = _shown(item["amount"], item["currency"])
        return {"decisions": found}

    async def audit(self, page_token: str) -> dict[str, Any]:
        async with self._session().control(self.identity) as control:
            found = await control.ListAuditRecords(
                control_pb2.ListAuditRecordsRequest(page_size=_PAGE, page_token=page_token),
                timeout=_TIMEOUT_S,
            )
        return {
            "records": [plain(record) for record in found.records],
            "next_page_token": found.next_page_token,
        }

    async def verify_audit(self) -> dict[str, Any]:
        async with self._session().access(self.identity) as access:
            found = await access.VerifyAuditLog(
                access_pb2.VerifyAuditLogRequest(), timeout=10 * _TIMEOUT_S
            )
        return plain(found)

    async def life(self, identifier: str) -> dict[str, Any]:
        """Whoever may read the control plane may look a payment up."""
        await self.who()
        async with self._session().database() as engine:
            found = await life_of(engine, identifier)
        found["traces"] = [
            {"trace_id": one, "url": self.trace_url.replace(TRACE_PLACE, one)}
            for one in found["traces"]
        ]
        return found


def _document(text: str) -> Any:
    """Null: there is none that is valid, or it is longer than a page shows."""
    return json.loads(text) if text and len(text) <= _DOCUMENT_CHARACTERS_MAX else None


def _applied(
    policy: Mapping[str, Any], reports: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[str]]:
    """The processes in which this revision is in force, and those in which it is not yet."""
    done: list[str] = []
    late: list[str] = []
    for report in reports:
        revisions = {
            (item["kind"], item["name"]): (int(item["revision"]), item["alarm"])
            for item in report["applied"]
        }
        same = revisions.get((policy["kind"], policy["name"])) == (policy["revision"], "")
        (done if same else late).append(report["process"])
    return done, late


def _break(item: recon_pb2.ReconciliationBreak) -> dict[str, Any]:
    """With its amount as people read it."""
    return {**plain(item), "shown": _shown(item.amount.minor_units, item.amount.currency)}


def _review(item: reviews_pb2.Review) -> dict[str, Any]:
    return {**plain(item), "shown": _shown(item.amount, item.currency)}


def _shown(minor_units: int, currency: str) -> str:
    return f"{decimal_amount(minor_units, currency)} {currency}"
