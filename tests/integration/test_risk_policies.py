"""Risk documents on the mesh of real parts: written by people, live in every cell, replayed."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import nats
import pytest
import pytest_asyncio
from cellpay.control.v1 import policies_pb2 as pb
from nats.js.api import StorageType, StreamConfig
from nats.js.errors import NotFoundError

from control.cellctl.session import Session
from router.errors import details_of
from router.risk.facts import Value
from router.risk.features import Observation
from router.risk.record import STREAM, SUBJECT_PREFIX, Record, encode
from tests.integration.test_control import cellctl, document

pytestmark = pytest.mark.mesh
PATIENCE_S = 60.0
RULES = """
kind: risk-rules
rules:
  - name: large-from-new-device
    when: amount > 100000 && in_list("test-devices", device.id)
    action: challenge
    reason: NEW_DEVICE
    cases:
      - facts: {amount: 100001, device.id: phone-1}
        lists: {test-devices: [phone-1]}
        matches: true
  - name: burst
    when: f.test_pays_1h > 20
    action: deny
    reason: TOO_MANY
    mode: shadow
"""
FEATURES = """
features:
  - {name: test_pays_1h, aggregate: count, by: user, window_s: 3600}
"""
WHY = ("--reason", "a test")


def _run(session: Session, *arguments: str | Path, fails: bool = False) -> str:
    """What it prints, on the one stream or on the other."""
    done = cellctl(session, "risk", *map(str, arguments))
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr + done.stdout if fails else done.stdout


@pytest_asyncio.fixture
async def documents(session: Session, tmp_path: Path) -> AsyncIterator[list[Path]]:
    """Rules before what they ask for: in the order in which a mesh would refuse them. Leaves no
    document behind: the mesh is everybody's."""
    texts = {"a-rules": RULES, "test-features": FEATURES, "test-devices": "entries: []"}
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    yield [tmp_path / f"{name}.yaml" for name in texts]
    async with session.policies() as policies:
        for path in (
            "risk-rules/a-rules",
            "risk-features/test-features",
            "risk-lists/test-devices",
        ):
            kind, _, name = path.partition("/")
            await policies.DeletePolicy(pb.DeletePolicyRequest(kind=kind, name=name, reason="over"))


async def _live_everywhere(session: Session, revision: int) -> list[str]:
    """The pages of all cells once each of their processes knows this version."""
    async with aiohttp.ClientSession() as client, asyncio.timeout(PATIENCE_S):
        while True:
            pages = []
            for cell in session.state.cells:
                address = session.state.probes_of(f"cell-{cell}")
                async with client.get(f"http://{address}/metrics") as answer:
                    pages.append(await answer.text())
            known = [
                float(value)
                for page in pages
                for value in re.findall(r"^cellpay_risk_version\{.*\} (\S+)$", page, re.MULTILINE)
            ]
            if len(known) >= len(pages) and all(value >= revision for value in known):
                return pages
            await asyncio.sleep(0.02)


async def test_documents_are_live_in_every_cell_hold_each_other_and_are_remembered(
    session: Session, documents: list[Path]
) -> None:
    assert "good" in _run(session, "check", *documents)
    applied = _run(session, "apply", *documents, *WHY)
    revisions = [int(found) for found in re.findall(r"in force at revision (\d+)", applied)]
    assert len(revisions) == 3
    pages = await _live_everywhere(session, max(revisions))
    assert all(re.search(r"^cellpay_risk_rules\{.*\} 2.0$", page, re.MULTILINE) for page in pages)
    assert "stands there already" in _run(session, "apply", *documents, *WHY)

    async with session.policies() as policies:
        request = pb.DeletePolicyRequest(kind="risk-lists", name="test-devices", reason="r")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await policies.DeletePolicy(request)
    assert details_of(refused.value).reason == "POLICY_IN_USE"
    assert "large-from-new-device" in details_of(refused.value).metadata["asked_by"]
    documents[0].write_text(RULES.replace("amount >", "amuont >"))
    told = _run(session, "apply", documents[0], *WHY, fails=True)
    assert "rules[0].when (large-from-new-device): line 1, column 1: amuont is unknown" in told

    rows = {row["rule"]: row for row in document(session, "risk", "hits")}
    assert rows["burst"]["mode"] == "shadow"
    assert rows["large-from-new-device"]["hits"] == 0
    summary = {row["document"]: row["holds"] for row in document(session, "risk", "show")}
    assert summary["risk-rules/a-rules"] == "2 rules (1 shadow), 1 cases"

    listing = ("list", "add", "test-devices")
    _run(session, *listing, "phone-1", "phone-2", "--until", "1h", "--note", "case 17", *WHY)
    _run(session, *listing, "phone-3", "--until", "2020-01-01T00:00:00Z", *WHY)
    _run(session, "list", "show", "test-devices", "phone-3", fails=True)
    _run(session, "list", "remove", "test-devices", "phone-2", "--expired", *WHY)
    entries = document(session, "risk", "list", "show", "test-devices")
    assert [(item["value"], item["note"]) for item in entries] == [("phone-1", "case 17")]
    pan = _run(session, *listing, "4111111111111111", *WHY, fails=True)
    assert "card token" in pan
    assert "4111111111111111" not in pan

    changes = document(session, "risk", "history", "risk-lists/test-devices")
    assert all(item["reason"] == "a test" for item in changes)
    before = ("--revision", str(changes[1]["revision"]))
    once = document(session, "risk", "show", "risk-lists/test-devices", *before)
    assert [item["value"] for item in once["entries"]] == ["phone-1", "phone-2", "phone-3"]


async def test_etcd_takes_the_largest_document_that_nothing_packs(session: Session) -> None:
    entries = [{"value": secrets.token_urlsafe(180)} for _ in range(1950)]
    text = json.dumps({"entries": entries}, separators=(",", ":"))
    assert 490_000 < len(text) < 512 * 1024
    name: dict[str, Any] = {"kind": "risk-lists", "name": "test-large"}
    async with session.policies() as policies:
        done = await policies.SetPolicy(pb.SetPolicyRequest(**name, document=text, reason="r"))
        try:
            again = json.dumps({"entries": entries[:-1]}, separators=(",", ":"))
            await policies.SetPolicy(pb.SetPolicyRequest(**name, document=again, reason="r"))
            request = pb.GetPolicyRequest(**name, revision=done.revision)
            assert (await policies.GetPolicy(request)).document == text
        finally:
            await policies.DeletePolicy(pb.DeletePolicyRequest(**name, reason="over"))


def _record(number: int, amount: int) -> Record:
    at_ms = int(time.time() * 1000)
    user = f"replay-{number}"
    seen = Observation(at_ms, "pay", "allow", user, "m", "", "", "", amount, "USD")
    facts: dict[str, Value] = {"amount": amount, "user.id": user, "f.test_pays_1h": number}
    return Record(f"d{number}", seen, facts, "allow", (), (), (), 1, "", ())


async def _publish(session: Session, *messages: list[Record]) -> None:
    client = await nats.connect(session.state.nats_url)
    try:
        stream = client.jetstream()
        try:
            await stream.stream_info(STREAM)
        except NotFoundError:
            subjects = [f"{SUBJECT_PREFIX}>"]
            await stream.add_stream(
                StreamConfig(name=STREAM, subjects=subjects, storage=StorageType.FILE)
            )
        for message in messages:
            await stream.publish(f"{SUBJECT_PREFIX}test", encode(message))
    finally:
        await client.close()


async def test_the_stream_of_records_is_replayed_under_other_rules(
    session: Session, documents: list[Path]
) -> None:
    _run(session, "apply", *documents, *WHY)
    await _publish(session, [_record(1, 500), _record(21, 5)], [_record(22, 700)])
    documents[0].write_text(
        RULES.replace("f.test_pays_1h > 20", 'f.test_pays_1h > 20 && user.id.startsWith("replay-")')
        .replace("mode: shadow", "mode: live")
    )  # fmt: skip
    command = ("risk", "replay", "--rules", str(documents[0]), "--from", "1h")
    found = document(session, *command)
    (change,) = (
        item for item in found["actions"] if (item["was"], item["now"]) == ("allow", "deny")
    )
    assert (change["count"], change["amounts"]) == (2, {"USD": 705})
    # The stream has other tests' records too, which may end otherwise for other reasons.
    shown = [item for item in found["examples"] if (item["was"], item["now"]) == ("allow", "deny")]
    assert {item["user"] for item in shown} == {"replay-21", "replay-22"}
    lines = [json.loads(line)[0] for line in _run(session, "records", "--from", "1h").splitlines()]
    assert "d22" in {line[0] for line in lines}
