"""The HTTP/JSON edge's rules: paths that name the home, and the document that tells of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.api import annotations_pb2
from openapi_spec_validator import validate

import router.standard  # noqa: F401  (its services are in the pool then)
from router.access import SERVICES, STANDARD, STREAMS, internal_services
from router.edge import openapi
from router.edge.http import described, transcoded_services
from router.home import find_service, home_field, is_bulk, slot_finder

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"
# For cells among themselves: a merchant has no use for them. And no card number goes through the
# HTTP edge (docs/decisions).
INTERNAL = {"EnqueueDelivery", "EnqueueDeliveries", "PayStream", "RegisterCard"}


def _methods() -> Iterator[Any]:
    for name in transcoded_services():
        yield from find_service(name).methods


def _path_of(method: Any) -> str:
    rule: Any = method.GetOptions().Extensions[annotations_pb2.http]
    return str(getattr(rule, rule.WhichOneof("pattern") or "get"))


@pytest.mark.parametrize("method", list(_methods()), ids=lambda method: method.name)
def test_each_method_has_a_path_that_begins_with_the_home(method: Any) -> None:
    if is_bulk(method.input_type) or method.name in INTERNAL:
        assert not _path_of(method)
        return
    path = _path_of(method)
    first = re.match(r"^/v1/([a-z-]+)/\{(\w+)\}", path)
    assert first is not None
    assert first[2] == home_field(method.input_type)
    finder = slot_finder(method.input_type)
    assert finder is not None
    # http.lua takes what follows /v1/users/ for a user ID, and anything else for one of ours.
    by_user = method.input_type._concrete_class(**{first[2]: "no ID of ours"})
    if first[1] == "users":
        assert finder(by_user) >= 0
    else:
        with pytest.raises(ValueError, match="not a Cellpay ID"):
            finder(by_user)


def test_no_two_methods_share_a_path() -> None:
    taken = []
    for method in _methods():
        rule: Any = method.GetOptions().Extensions[annotations_pb2.http]
        if path := _path_of(method):
            taken.append((rule.WhichOneof("pattern"), re.sub(r"\{\w+\}", "{}", path)))
    assert len(taken) == len(set(taken)) > 20


def test_the_document_is_valid_and_the_committed_one_is_of_these_protos() -> None:
    document = openapi.document()
    validate(document)
    assert json.loads(COMMITTED.read_text(encoding="utf-8")) == document, "run: make openapi"


def test_every_stream_of_a_public_service_is_kept_from_the_edge() -> None:
    """The edge waits for the end of what it sends on; a stream has none."""
    # xDS is the control plane's, to which no edge has a route.
    elsewhere = {*internal_services(), "envoy.service.discovery.v3.AggregatedDiscoveryService"}
    ours = {
        f"{file.package}.{service.name}/{method.name}"
        for file in described().file
        for service in file.service
        for method in service.method
        if method.client_streaming
    }
    standard = {
        f"{name}/{method.name}"
        for name in STANDARD.keys() - elsewhere
        for method in find_service(name).methods
        if method.client_streaming
    }
    public = {name for name in ours if name.partition("/")[0] in {*SERVICES} - elsewhere}
    assert set(STREAMS) == public | standard
