"""Roles: what each may call, and that everything else is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from control.access.rules import (
    DEFAULT_BINDINGS,
    METHODS,
    Role,
    is_read,
    may_call,
    needs_second_person,
    roles_of,
    subject_problem,
)
from control.access.store import Access, binding_put, parse_bindings, seed_access
from router.identity import spiffe_id
from router.store.memory import MemoryStore

PACKAGE = "cellpay.control.v1"
CONTROL = f"{PACKAGE}.ControlService"
ACCESS = f"{PACKAGE}.AccessService"
PROTOS = Path(__file__).resolve().parents[2] / "protos/cellpay/control/v1"
ANN = spiffe_id("operator", "ann")


def _services() -> dict[str, set[str]]:
    """Every control service that there is a proto of, with its methods."""
    from importlib import import_module

    found = {}
    for path in PROTOS.glob("*.proto"):
        module = import_module(f"{PACKAGE}.{path.stem}_pb2")
        for service in module.DESCRIPTOR.services_by_name.values():
            found[service.full_name] = {method.name for method in service.methods}
    return found


def test_every_control_method_has_its_row() -> None:
    for service, methods in _services().items():
        assert set(METHODS[service]) == methods, service


@pytest.mark.parametrize("role", list(Role))
def test_every_role_reads_and_only_operators_operate(role: Role) -> None:
    for service, methods in METHODS.items():
        for method in methods:
            if is_read(service, method):
                assert may_call(service, method, {role})
    assert may_call(CONTROL, "StartOperation", {role}) == (role == Role.OPERATOR)
    assert may_call(ACCESS, "SetRoleBinding", {role}) == (role == Role.OPERATOR)
    assert may_call(ACCESS, "DecideApproval", {role}) == (role == Role.APPROVER)


@pytest.mark.parametrize(
    ("service", "method"),
    [(CONTROL, "DropEverything"), ("cellpay.control.v1.Unknown", "Get"), ("", "")],
)
def test_what_the_table_does_not_name_nobody_may_call(service: str, method: str) -> None:
    assert not may_call(service, method, set(Role))


def test_nobody_without_a_role_may_call_anything() -> None:
    for service, methods in METHODS.items():
        assert not any(may_call(service, method, ()) for method in methods)


def test_a_binding_of_its_own_goes_before_that_of_the_kind() -> None:
    stored = parse_bindings({f"/cellpay/access/bindings/{ANN}": '{"roles": ["viewer", "later"]}'})
    assert roles_of(ANN, stored) == {Role.VIEWER}
    assert Role.OPERATOR in roles_of(spiffe_id("operator", "bob"), stored)
    assert roles_of(spiffe_id("cell", "a"), stored) == {Role.VIEWER}
    assert roles_of(spiffe_id("visitor", "a"), stored) == frozenset()
    assert roles_of("spiffe://elsewhere/operator/ann", stored) == frozenset()


@pytest.mark.parametrize("garbage", ["", "{", "7", "[]", "{}", '{"roles": 3}', '{"roles": [[]]}'])
def test_a_binding_that_nobody_can_read_lets_nobody_in(garbage: str) -> None:
    stored = parse_bindings({f"/cellpay/access/bindings/{ANN}": garbage})
    assert roles_of(ANN, stored) == frozenset()
    assert roles_of(spiffe_id("operator", "bob"), stored), "and takes nothing from others"


@pytest.mark.parametrize("kind", ["service", "cell", "controller", "edge"])
def test_workloads_read_and_no_more(kind: str) -> None:
    assert roles_of(spiffe_id(kind, "x"), DEFAULT_BINDINGS) == {Role.VIEWER}


@pytest.mark.parametrize("subject", ["", "ann", "spiffe://elsewhere/operator/ann", "spiffe:///a/b"])
def test_only_our_own_identities_are_bound(subject: str) -> None:
    assert subject_problem(subject)


def test_identities_and_kinds_can_be_bound() -> None:
    assert not subject_problem(ANN)
    assert not subject_problem(spiffe_id("operator", "*"))


@pytest.mark.parametrize(
    ("service", "method", "parameters", "two"),
    [
        (CONTROL, "StartOperation", {"cell": "a", "kind": "KIND_FAILOVER"}, False),
        (CONTROL, "StartOperation", {"cells": ["a"]}, False),
        (CONTROL, "StartOperation", {"cells": ["a", "b"]}, True),
        (CONTROL, "StartOperation", {"region": "region-a"}, True),
        (CONTROL, "StartOperation", {"cell": "a", "force": True}, True),
        (CONTROL, "SetFailoverPolicy", {}, True),
        (ACCESS, "SetRoleBinding", {}, True),
        (ACCESS, "SetApprovalPolicy", {}, True),
        (ACCESS, "DecideApproval", {}, False),
        (f"{PACKAGE}.PolicyService", "SetPolicy", {"document": '{"force": "open"}'}, True),
        (f"{PACKAGE}.PolicyService", "SetPolicy", {"document": '{"force": null}'}, False),
        (f"{PACKAGE}.PolicyService", "SetPolicy", {"document": "{"}, False),
        (
            f"{PACKAGE}.PolicyService", "SetPolicy",
            {"document": '{"force": "open"}', "validate_only": True}, False,
        ),
        (f"{PACKAGE}.PolicyService", "DeletePolicy", {}, False),
        (f"{PACKAGE}.ReviewsService", "ResetFactor", {"user_id": "u"}, True),
        (f"{PACKAGE}.ReviewsService", "DecideReview", {}, False),
    ],
)  # fmt: skip
def test_which_calls_take_two_persons(
    service: str, method: str, parameters: dict[str, object], two: bool
) -> None:
    assert needs_second_person(service, method, parameters) is two


def test_no_read_takes_two_persons() -> None:
    for service, methods in METHODS.items():
        for method, big in itertools.product(methods, ({}, {"region": "r", "cells": ["a", "b"]})):
            if is_read(service, method):
                assert not needs_second_person(service, method, big)


async def test_the_settings_bindings_are_stored_once_and_then_changed_only_by_people() -> None:
    store = MemoryStore()
    await seed_access(store, {ANN: [Role.VIEWER]}, required=True)
    await store.commit(expect={}, puts=binding_put(ANN, [Role.DRILL]))
    await seed_access(store, {ANN: [Role.VIEWER]}, required=False)
    assert (await Access(store).read())[ANN] == {Role.DRILL}
