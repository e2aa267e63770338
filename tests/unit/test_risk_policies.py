"""Risk documents through the policies' service: checked against each other, kept, remembered."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest
from cellpay.control.v1 import policies_pb2 as pb
from pydantic import TypeAdapter

from control.access.rules import Role, may_change, needs_second_person
from control.audit import list_audit
from control.chain.store import ChainedStore, verify_audit_log
from control.policies.history import ARCHIVE_PREFIX, ARCHIVED_MAX
from control.policies.service import PolicyService
from router.errors import Refusal
from router.identity import spiffe_id
from router.policies.model import RISK_REVISION_KEY
from router.policies.rules import envelope, policy_key
from router.risk.artefact import ModelMode, RiskModel, pack, text_of
from router.risk.trees import LEAF, Input, Model, Reference, Tree, dump
from router.store.memory import MemoryStore

ANN = spiffe_id("operator", "ann")
LARGE = {"name": "large", "when": "amount > 100", "action": "deny", "reason": "LARGE"}
STOLEN = {
    "name": "stolen", "when": 'in_list("stolen", device.id)\n  || f.pays_1h > 3',
    "action": "review", "reason": "STOLEN",
}  # fmt: skip
PAYS = {"name": "pays_1h", "aggregate": "count", "by": "user", "window_s": 3600}
FEATURES = {"features": [PAYS]}
LIST = {"entries": [{"value": "phone-1"}]}
RULES, LISTS, FEATS, MODEL = "risk-rules", "risk-lists", "risk-features", "risk-model"


class Context:
    """As much of a call as the service looks at."""

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"peer_spiffe_id": [ANN.encode()]}


class World:
    def __init__(self) -> None:
        self.memory = MemoryStore()
        self.store = ChainedStore(self.memory)
        self.service = PolicyService(self.store, lambda: {"a"})

    async def set(self, kind: str, name: str, document: Any, **fields: Any) -> pb.Policy:
        text = document if isinstance(document, str) else json.dumps(document)
        request = pb.SetPolicyRequest(kind=kind, name=name, document=text, reason="r", **fields)
        return await self.service.SetPolicy(request, Context())

    async def delete(self, kind: str, name: str) -> None:
        request = pb.DeletePolicyRequest(kind=kind, name=name, reason="r")
        await self.service.DeletePolicy(request, Context())

    async def get(self, kind: str, name: str, revision: int = 0) -> pb.Policy:
        request = pb.GetPolicyRequest(kind=kind, name=name, revision=revision)
        return await self.service.GetPolicy(request, Context())

    async def changes(self, kind: str, name: str = "") -> list[pb.PolicyChange]:
        request = pb.ListPolicyChangesRequest(kind=kind, name=name)
        return list((await self.service.ListPolicyChanges(request, Context())).changes)

    async def all_of_them(self) -> None:
        await self.set(FEATS, "main", FEATURES)
        await self.set(LISTS, "stolen", LIST)
        await self.set(RULES, "main", {"rules": [LARGE, STOLEN]})


async def _refused(call: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await call
    return caught.value


async def test_a_rule_is_refused_with_its_field_line_and_column() -> None:
    world = World()
    await world.set(FEATS, "main", FEATURES)
    refusal = await _refused(world.set(RULES, "main", {"rules": [LARGE, STOLEN]}))
    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = refusal.violations
    assert violation.field == "document.rules[1].when"
    assert violation.description == "line 1, column 9: there is no list stolen"
    broken = {**STOLEN, "when": "amount > 1\n  || f.pays_1 > 3"}
    refusal = await _refused(world.set(RULES, "main", {"rules": [broken]}))
    assert refusal.violations[0].description.startswith("line 2, column 6: f.pays_1 is unknown")


async def test_a_failing_case_is_refused() -> None:
    case = {"facts": {"amount": 100}, "matches": True}
    refusal = await _refused(World().set(RULES, "main", {"rules": [{**LARGE, "cases": [case]}]}))
    assert [item.field for item in refusal.violations] == ["document.rules[0].cases[0]"]


async def test_names_are_unique_over_all_documents_of_a_kind() -> None:
    world = World()
    await world.all_of_them()
    refusal = await _refused(world.set(RULES, "other", {"rules": [LARGE]}))
    assert "risk-rules/main too" in refusal.violations[0].description
    refusal = await _refused(world.set(FEATS, "other", FEATURES))
    assert "risk-features/main too" in refusal.violations[0].description


@pytest.mark.parametrize(
    ("kind", "name", "document"),
    [
        (LISTS, "stolen", {"entries": [], "holds": "addresses"}),
        (FEATS, "main", {"features": []}),
        (FEATS, "main", {"features": [{**PAYS, "window_s": 7200}]}),
        (LISTS, "stolen", None),
        (FEATS, "main", None),
    ],
)
async def test_what_rules_ask_for_can_neither_go_nor_mean_something_else(
    kind: str, name: str, document: Any
) -> None:
    world = World()
    await world.all_of_them()
    if document is None:
        refusal = await _refused(world.delete(kind, name))
        assert (refusal.code, refusal.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION, "POLICY_IN_USE",
        )  # fmt: skip
        assert "stolen" in refusal.metadata["asked_by"]
    else:
        refusal = await _refused(world.set(kind, name, document))
        assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert (await world.get(RULES, "main")).document
    await world.set(RULES, "main", {"rules": [LARGE]})
    if document is None:
        await world.delete(kind, name)
    else:
        await world.set(kind, name, document)


async def test_what_somebody_broke_past_the_service_holds_up_no_list() -> None:
    world = World()
    await world.set(LISTS, "other", LIST)
    broken = envelope(json.dumps({"rules": [STOLEN]}), reason="", actor="", time_ms=0)
    await world.memory.commit(expect={}, puts={policy_key(RULES, "broken"): broken})
    await world.set(LISTS, "other", {"entries": []})
    await world.delete(LISTS, "other")
    await world.set(RULES, "main", {"rules": [LARGE]})


async def test_entries_come_and_go_under_rules_that_are_live() -> None:
    world = World()
    await world.all_of_them()
    done = await world.set(LISTS, "stolen", {"entries": []})
    assert (await world.get(LISTS, "stolen")).revision == done.revision


async def test_a_check_writes_nothing_and_says_the_same() -> None:
    world = World()
    await world.set(FEATS, "main", FEATURES)
    text = {"rules": [STOLEN]}
    await _refused(world.set(RULES, "main", text, validate_only=True))
    await world.set(LISTS, "stolen", LIST)
    await world.set(RULES, "main", text, validate_only=True)
    assert (await _refused(world.get(RULES, "main"))).reason == "POLICY_NOT_FOUND"


async def test_an_edit_of_another_revision_is_refused() -> None:
    world = World()
    first = await world.set(RULES, "main", {"rules": [LARGE]}, revision=0)
    await world.set(RULES, "main", {"rules": []}, revision=first.revision)
    refusal = await _refused(world.set(RULES, "main", {"rules": []}, revision=first.revision))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "POLICY_CHANGED")


async def test_a_list_that_goes_and_a_rule_that_comes_for_it_are_never_both() -> None:
    """Two controllers, each of which checks before the other has written."""
    for _ in range(20):
        world = World()
        await world.set(FEATS, "main", FEATURES)
        await world.set(LISTS, "stolen", LIST)
        other = World()
        other.store = ChainedStore(world.memory)
        other.service = PolicyService(other.store, lambda: {"a"})
        ended = await asyncio.gather(
            world.delete(LISTS, "stolen"),
            other.set(RULES, "main", {"rules": [STOLEN]}),
            return_exceptions=True,
        )
        assert sum(isinstance(item, Refusal) for item in ended) == 1, ended
        has_list = await world.memory.get(policy_key(LISTS, "stolen")) is not None
        has_rule = await world.memory.get(policy_key(RULES, "main")) is not None
        assert has_list == has_rule


async def test_every_change_moves_the_version_of_all() -> None:
    world = World()
    seen = []
    for step in (world.all_of_them(), world.delete(RULES, "main"), world.delete(LISTS, "stolen")):
        await step
        item = await world.memory.get(RISK_REVISION_KEY)
        assert item is not None
        seen.append(item.revision)
    assert seen == sorted(set(seen))


async def test_old_documents_come_back_by_revision_small_or_large() -> None:
    world = World()
    small = await world.set(LISTS, "it", LIST)
    large = {"entries": [{"value": f"device-{n}", "note": "é"} for n in range(2000)]}
    middle = await world.set(LISTS, "it", large)
    await world.delete(LISTS, "it")
    assert [(item.revision, item.deleted) for item in await world.changes(LISTS, "it")][1:] == [
        (middle.revision, False), (small.revision, False),
    ]  # fmt: skip
    assert (await world.changes(LISTS))[0].deleted
    assert (await world.changes(LISTS))[0].actor == ANN
    for revision, document in ((small.revision, LIST), (middle.revision, large)):
        assert json.loads((await world.get(LISTS, "it", revision)).document) == document
    refusal = await _refused(world.get(LISTS, "it", middle.revision + 1000))
    assert refusal.reason == "POLICY_REVISION_NOT_FOUND"


async def test_the_audit_log_stays_small_and_whole_under_large_documents() -> None:
    world = World()
    revisions = []
    for number in range(ARCHIVED_MAX + 3):
        entries = [{"value": f"device-{number}-{n}"} for n in range(500)]
        revisions.append((await world.set(LISTS, "it", {"entries": entries})).revision)
    records = await list_audit(world.store)
    assert all(len(record.detail) < 200 for record in records)
    assert "sha256:" in records[0].detail
    assert (await verify_audit_log(world.store)).broken is None
    archived = await world.memory.list(ARCHIVE_PREFIX)
    assert len(archived.items) == ARCHIVED_MAX
    await _refused(world.get(LISTS, "it", revisions[0]))
    kept = await world.get(LISTS, "it", revisions[-ARCHIVED_MAX])
    assert json.loads(kept.document)["entries"][0]["value"] == "device-3-0"


async def test_a_document_of_half_a_mebibyte_is_taken_and_no_larger_one() -> None:
    world = World()
    entry = {"value": "x" * 200, "note": "é" * 40}
    entries = [{**entry, "value": f"{n:06}" + entry["value"]} for n in range(1500)]
    text = json.dumps({"entries": entries}, ensure_ascii=False, separators=(",", ":"))
    assert 460_000 < len(text.encode()) < 512 * 1024
    await world.set(LISTS, "it", text)
    assert json.loads((await world.get(LISTS, "it")).document) == {"entries": entries}
    assert not (await world.get(LISTS, "it")).alarm
    refusal = await _refused(world.set(LISTS, "it", text + " " * 80_000))
    assert "longer" in refusal.violations[0].description
    assert (await _refused(world.set("limits", "it", " " * 65_537))).violations


async def test_a_page_of_large_documents_ends_before_grpc_does() -> None:
    world = World()
    for number in range(6):
        entries = [{"value": f"{number}-{n:06}" + "x" * 200} for n in range(2200)]
        text = json.dumps({"entries": entries}, separators=(",", ":"))
        await world.set(LISTS, f"l{number}", text)
    names, token = [], ""
    while True:
        request = pb.ListPoliciesRequest(kind=LISTS, page_token=token)
        page = await world.service.ListPolicies(request, Context())
        assert page.ByteSize() < 3 * 1024 * 1024
        names += [item.name for item in page.policies]
        token = page.next_page_token
        if not token:
            break
    assert names == [f"l{number}" for number in range(6)]


async def test_a_cards_number_on_a_list_is_told_to_nobody() -> None:
    world = World()
    number = "4111111111111111"
    refusal = await _refused(world.set(LISTS, "it", {"entries": [{"value": number}]}))
    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert number not in str(refusal.to_status())
    assert all(number not in record.detail for record in await list_audit(world.store))


def _text(version: str, *facts: str) -> bytes:
    """Of a model that says nothing of these facts."""
    inputs = tuple(Input(name) for name in facts or ("amount",))
    leaf = Tree((LEAF,), (0.0,), (0.5,))
    return dump(Model(version, inputs, 0.0, (leaf,), Reference((), (1.0,)), {})).encode()


def _document(model: Any) -> str:
    return TypeAdapter(RiskModel).dump_json(model).decode()


async def test_a_model_is_whole_and_its_facts_exist() -> None:
    world = World()
    text = _text("2026-11", "amount", "f.pays_1h")
    model = pack(text, "2026-11", ModelMode.LIVE, ("amount", "f.pays_1h"))
    assert text_of(model) == text
    refusal = await _refused(world.set(MODEL, "it", _document(model)))
    assert [item.field for item in refusal.violations] == ["document.data", "document.facts[1]"]
    await world.set(FEATS, "main", FEATURES)
    await world.set(MODEL, "it", _document(model))
    assert (await _refused(world.delete(FEATS, "main"))).reason == "POLICY_IN_USE"
    other = _text("2026-12")
    second = pack(other, "2026-12", ModelMode.LIVE, ("amount",))
    refusal = await _refused(world.set(MODEL, "new", _document(second)))
    assert refusal.violations[0].field == "document.mode"
    await world.set(MODEL, "new", _document(pack(other, "2026-12", ModelMode.SHADOW, ("amount",))))


async def test_a_model_that_reads_more_than_it_says_or_is_another_is_refused() -> None:
    for told, facts, field in (("v", (), "facts"), ("w", ("amount",), "version")):
        document = _document(pack(_text("v"), told, ModelMode.LIVE, facts))
        refusal = await _refused(World().set(MODEL, "it", document))
        assert [item.field for item in refusal.violations] == [f"document.{field}"]


@pytest.mark.parametrize(
    "field",
    [{"sha256": "0" * 64}, {"data": "????"}, {"data": "eJw="}, {"data": "YWJj"}],
)
async def test_a_model_that_is_not_what_was_trained_is_refused(field: dict[str, str]) -> None:
    raw = json.loads(_document(pack(_text("v"), "v", ModelMode.LIVE, ("amount",)))) | field
    refusal = await _refused(World().set(MODEL, "it", raw))
    assert refusal.violations[0].field == "document.data"


def test_people_of_risk_change_risk_alone_and_drills_do_not() -> None:
    service = "cellpay.control.v1.PolicyService"
    for kind, who in ((RULES, {Role.RISK, Role.OPERATOR}), ("limits", {Role.DRILL, Role.OPERATOR})):
        found = {role for role in Role if may_change(service, "SetPolicy", kind, {role})}
        assert found == who
    assert may_change(service, "GetPolicy", RULES, {Role.VIEWER})


def test_rules_and_models_need_a_second_person_and_a_stolen_device_does_not() -> None:
    service = "cellpay.control.v1.PolicyService"

    def needed(method: str, **parameters: Any) -> bool:
        return needs_second_person(service, method, parameters)

    assert needed("SetPolicy", kind=RULES, document="{}")
    assert needed("SetPolicy", kind=MODEL, document="{}")
    assert needed("DeletePolicy", kind=RULES)
    assert not needed("SetPolicy", kind=RULES, document="{}", validate_only=True)
    assert not needed("SetPolicy", kind=LISTS, document="{}")
    assert not needed("DeletePolicy", kind=LISTS)
