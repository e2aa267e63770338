"""Snapshots: consistent or refused, and of a version that changes with the content only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from control.xds.snapshot import (
    CLUSTER,
    ENDPOINT,
    LISTENER,
    ROUTE,
    SENDING_ORDER,
    InconsistentSnapshot,
    check,
    take_snapshot,
)
from control.xds.translate import NodeKind, Topology, translate
from router.slotmap import Move, SlotMap

CELLS = ("a", "b", "c")
ENDPOINTS = {cell: (f"127.0.0.1:{7000 + number}",) for number, cell in enumerate(CELLS)}
TOPOLOGY = Topology(SlotMap.even(CELLS), ENDPOINTS, "127.0.0.1:8443", "-- Lua")
BOTH = pytest.mark.parametrize("kind", list(NodeKind))


def _versions(topology: Topology, kind: NodeKind) -> dict[str, str]:
    return {name: typed.version for name, typed in take_snapshot(topology, kind).types.items()}


def _changed(topology: Topology, kind: NodeKind) -> set[str]:
    before, after = _versions(TOPOLOGY, kind), _versions(topology, kind)
    return {name for name in before if before[name] != after[name]}


@BOTH
def test_the_same_content_has_the_same_version_whoever_computes_it(kind: NodeKind) -> None:
    again = Topology(
        SlotMap.from_json(TOPOLOGY.slot_map.to_json()),
        dict(reversed(ENDPOINTS.items())),
        "127.0.0.1:8443",
        "-- Lua",
    )
    assert _changed(again, kind) == set()


@BOTH
def test_a_move_of_slots_changes_the_routes_only(kind: NodeKind) -> None:
    moved = TOPOLOGY.slot_map.apply([Move(5, 9, "a", "b", 2)])
    assert _changed(replace(TOPOLOGY, slot_map=moved), kind) == {ROUTE}


@BOTH
def test_a_cell_that_comes_back_elsewhere_changes_the_endpoints_only(kind: NodeKind) -> None:
    endpoints = {**ENDPOINTS, "a": ("127.0.0.1:9999",)}
    assert _changed(replace(TOPOLOGY, endpoints=endpoints), kind) == {ENDPOINT}


def test_new_lua_changes_the_listener_of_the_edge_only() -> None:
    changed = replace(TOPOLOGY, edge_lua="-- other")
    assert _changed(changed, NodeKind.EDGE) == {LISTENER}
    assert _changed(changed, NodeKind.CLIENT) == set()


@BOTH
def test_a_new_cell_changes_clusters_and_endpoints_and_no_route(kind: NodeKind) -> None:
    endpoints = {**ENDPOINTS, "d": ("127.0.0.1:7009",)}
    assert _changed(replace(TOPOLOGY, endpoints=endpoints), kind) == {CLUSTER, ENDPOINT}


@BOTH
def test_a_route_to_an_unknown_cluster_is_refused(kind: NodeKind) -> None:
    resources = translate(TOPOLOGY, kind)
    clusters = {name: item for name, item in resources.clusters.items() if name != "cell-b"}
    with pytest.raises(InconsistentSnapshot, match="unknown cell-b"):
        check(replace(resources, clusters=clusters))


@BOTH
def test_a_cluster_without_its_assignment_is_refused(kind: NodeKind) -> None:
    resources = translate(TOPOLOGY, kind)
    endpoints = {name: item for name, item in resources.endpoints.items() if name != "cell-b"}
    with pytest.raises(InconsistentSnapshot, match="cell-b has no assignment"):
        check(replace(resources, endpoints=endpoints))


@BOTH
def test_a_listener_whose_routes_are_not_there_is_refused(kind: NodeKind) -> None:
    with pytest.raises(InconsistentSnapshot, match="asks for unknown routes"):
        check(replace(translate(TOPOLOGY, kind), routes={}))


@BOTH
def test_a_snapshot_cannot_be_changed(kind: NodeKind) -> None:
    snapshot: Any = take_snapshot(TOPOLOGY, kind)
    with pytest.raises(TypeError):
        snapshot.types[ROUTE].resources["other"] = None
    with pytest.raises(TypeError):
        snapshot.types[ROUTE] = None


@BOTH
def test_a_topology_that_no_cell_serves_is_still_a_consistent_snapshot(kind: NodeKind) -> None:
    assert take_snapshot(replace(TOPOLOGY, endpoints={}), kind).types[CLUSTER].resources


def test_what_is_referred_to_is_sent_before_what_refers_to_it() -> None:
    assert SENDING_ORDER == (CLUSTER, ENDPOINT, LISTENER, ROUTE)
