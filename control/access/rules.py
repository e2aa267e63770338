"""Who may call what. Pure tables; whatever they do not name is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from router.identity import parse_spiffe_id, spiffe_id
from router.policies.model import RISK_KINDS, PolicyKind


class Role(StrEnum):
    # Reads.
    VIEWER = "viewer"
    # Moves slots, sets policies.
    OPERATOR = "operator"
    # Says yes or no to what another one asks for.
    APPROVER = "approver"
    # Runs drills.
    DRILL = "drill"
    # Changes rules, lists, features and models of risk, and no other policy.
    RISK = "risk"


Bindings = Mapping[str, frozenset[Role]]
# What decides over every payment. A list is not here: a stolen device is put on it at once.
_TWO_PERSON_KINDS = frozenset({PolicyKind.RISK_RULES, PolicyKind.RISK_MODEL})

# What holds for a kind until somebody binds otherwise; exact bindings go before these.
DEFAULT_BINDINGS: Bindings = {
    spiffe_id("operator", "*"): frozenset(Role),
    spiffe_id("service", "*"): frozenset({Role.VIEWER}),
    spiffe_id("cell", "*"): frozenset({Role.VIEWER}),
    spiffe_id("controller", "*"): frozenset({Role.VIEWER}),
    spiffe_id("edge", "*"): frozenset({Role.VIEWER}),
}

_PACKAGE = "cellpay.control.v1"
_READ = frozenset(Role)
_OPERATE = frozenset({Role.OPERATOR})
_APPROVE = frozenset({Role.APPROVER})
# Drills inject faults and heal them; an operator may heal what a drill left behind.
_DRILL = frozenset({Role.DRILL, Role.OPERATOR})
# Of a kind: `may_change`.
_CHANGE = frozenset({Role.DRILL, Role.OPERATOR, Role.RISK})
_RISK = frozenset({Role.RISK, Role.OPERATOR})

# Service → method → the roles of which one is enough.
METHODS: Mapping[str, Mapping[str, frozenset[Role]]] = {
    f"{_PACKAGE}.ControlService": {
        "GetSlotMap": _READ,
        "ListCells": _READ,
        "StartOperation": _OPERATE,
        "GetOperation": _READ,
        "ListOperations": _READ,
        "GetFailoverPolicy": _READ,
        "SetFailoverPolicy": _OPERATE,
        "ListAuditRecords": _READ,
        "ListSubscribers": _READ,
    },
    f"{_PACKAGE}.OperationsService": {
        "PlanOperation": _READ,
        "PauseOperation": _OPERATE,
        "ResumeOperation": _OPERATE,
        "AbortOperation": _OPERATE,
        "RollBackOperation": _OPERATE,
        "DeclareCell": _OPERATE,
        "ReleaseFailover": _OPERATE,
    },
    f"{_PACKAGE}.PolicyService": {
        "GetPolicy": _READ,
        "ListPolicies": _READ,
        # A drill of a slow or failing cell is a fault policy.
        "SetPolicy": _CHANGE,
        "DeletePolicy": _CHANGE,
        "ListPolicyChanges": _READ,
        "ListPolicyReports": _READ,
    },
    f"{_PACKAGE}.DrillService": {
        "StartDrill": _DRILL,
        "GetDrill": _READ,
        "ListDrills": _READ,
        "EndDrill": _DRILL,
    },
    f"{_PACKAGE}.ReconciliationService": {
        "RequestRun": _OPERATE,
        "ListRuns": _READ,
        "ListBreaks": _READ,
        "ListCases": _READ,
        # The maker and the checker, who must be two (control/reconciliation/rules.py).
        "ProposeResolution": _OPERATE,
        "DecideCase": _APPROVE,
    },
    f"{_PACKAGE}.ReviewsService": {
        # With devices and addresses of people.
        "ListReviews": _RISK,
        "DecideReview": _RISK,
        "ResetFactor": _RISK,
    },
    f"{_PACKAGE}.AccessService": {
        "WhoAmI": _READ,
        "ListRoleBindings": _READ,
        "SetRoleBinding": _OPERATE,
        "GetApprovalPolicy": _READ,
        "SetApprovalPolicy": _OPERATE,
        "GetApproval": _READ,
        "ListApprovals": _READ,
        "DecideApproval": _APPROVE,
        "VerifyAuditLog": _READ,
    },
}


def roles_of(subject: str, bindings: Bindings) -> frozenset[Role]:
    """An identity's roles: by its own binding, else by its kind's, else none."""
    caller = parse_spiffe_id(subject)
    if caller is None:
        return frozenset()
    if subject in bindings:
        return bindings[subject]
    return bindings.get(spiffe_id(caller.kind, "*"), frozenset())


def may_call(service: str, method: str, roles: Iterable[Role]) -> bool:
    return bool(METHODS.get(service, {}).get(method, frozenset()) & frozenset(roles))


def may_change(service: str, method: str, kind: str, roles: Iterable[Role]) -> bool:
    """Whether a call that `may_call` lets pass may be for a policy of this kind."""
    if service != f"{_PACKAGE}.PolicyService" or is_read(service, method):
        return True
    return bool((_RISK if kind in RISK_KINDS else _DRILL) & frozenset(roles))


def is_read(service: str, method: str) -> bool:
    return METHODS.get(service, {}).get(method) == _READ


def goes_on_without_store(service: str, method: str) -> bool:
    """Reads, and what heals: judged by the roles known last. All else asks the store for the
    caller's roles at this moment."""
    return is_read(service, method) or (service, method) == (f"{_PACKAGE}.DrillService", "EndDrill")


def subject_problem(subject: str) -> str:
    """Why no binding can be made for this subject; empty when one can."""
    caller = parse_spiffe_id(subject)
    if caller is None or not caller.kind or not caller.name:
        return f"must be a SPIFFE ID such as {spiffe_id('operator', 'ann')}"
    return ""


def needs_second_person(service: str, method: str, parameters: Mapping[str, Any]) -> bool:
    """Whether this call waits for an approval while approvals are on.

    `parameters`: the request by the names of its fields, defaults left out. One cell may be failed
    over, drained and moved by one person: that is what the night shift is for.
    """
    match service.removeprefix(f"{_PACKAGE}."), method:
        case "ControlService", "StartOperation":
            return _of_several_cells(parameters)
        case "ControlService", "SetFailoverPolicy":
            return True
        case "AccessService", "SetRoleBinding" | "SetApprovalPolicy":
            return True
        case "PolicyService", "SetPolicy":
            dry = bool(parameters.get("validate_only"))
            risky = parameters.get("kind") in _TWO_PERSON_KINDS
            return not dry and (risky or _forces(str(parameters.get("document", ""))))
        case "PolicyService", "DeletePolicy":
            return parameters.get("kind") in _TWO_PERSON_KINDS
        case "ReviewsService", "ResetFactor":
            return True
    return False


def _of_several_cells(parameters: Mapping[str, Any]) -> bool:
    return (
        bool(parameters.get("region"))
        or len(parameters.get("cells", ())) > 1
        or bool(parameters.get("force"))
    )


def _forces(document: str) -> bool:
    """A policy that takes a decision away from the mesh: a breaker held open or closed."""
    try:
        parsed = json.loads(document)
    except ValueError:
        # The service will say what is wrong with it.
        return False
    return isinstance(parsed, dict) and parsed.get("force") is not None
