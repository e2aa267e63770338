"""cellctl route-decision: the explanation, the replay, and what other policies would have done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cells.choice.beliefs import believing
from cells.choice.document import encode
from cells.choice.model import Facts, Level, Snapshot, Usage
from cells.choice.rules import decide
from cells.choice.terms import terms_of
from control.audit import AuditRecord
from control.cellctl.main import app
from control.policies.history import changes_of, laid_over, states
from router.errors import Refusal
from router.policies.rules import InvalidPolicy, PolicySet
from router.store.model import Item

FACTS = Facts("chg_1", 5_000, "USD", 1_784_073_600_000, "shop", scheme="visa", bank="icbc")


def _channel(name: str, rate_ppm: int, **more: object) -> dict[str, object]:
    tiers = [{"fixed": 10, "rate_ppm": rate_ppm}]
    fees = [{"currency": "USD", "tiers": tiers}]
    return {"channel": name, "amounts": {"USD": {}}, "fees": fees, **more}


POLICIES: dict[str, object] = {
    "channels/a": _channel("a", 15_000),
    "channels/b": _channel("b", 25_000),
    "channels/c": _channel("c", 1_000, blocked=True),
}


@pytest.fixture
def decision(tmp_path: Path) -> Path:
    known = {name: believing(95, 5, 300, 80, Level.BAND) for name in ("a", "b")}
    snapshot = Snapshot(known, {"a": Usage(3, 4, 5, 6)})
    made = decide(FACTS, terms_of(laid_over(PolicySet(), POLICIES), ""), snapshot)
    path = tmp_path / "decision.json"
    path.write_text(encode(made), encoding="utf-8")
    return path


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["route-decision", *map(str, arguments)])


def test_it_says_in_which_order_what_each_is_worth_and_why_the_others_are_left_out(
    decision: Path,
) -> None:
    result = _run("chg_1", "--from-file", decision)
    assert result.exit_code == 0
    for said in (
        "charge of 50.00 USD, visa card icbc",
        "80 band",
        "BLOCKED: blocked by its policy",
    ):
        assert said in result.stdout
    read = json.loads(_run("chg_1", "--from-file", decision, "--json").stdout)
    assert read["decision"] == json.loads(decision.read_text(encoding="utf-8"))


def test_it_is_of_the_charge_that_was_asked_for(decision: Path) -> None:
    result = _run("chg_2", "--from-file", decision)
    assert isinstance(result.exception, Refusal)


def test_a_file_that_holds_no_decision_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"version": 2}', encoding="utf-8")
    result = _run("chg_1", "--from-file", path)
    assert isinstance(result.exception, Refusal)
    assert "version" in result.exception.message


def test_other_policies_are_laid_over_and_the_channels_draw_what_they_drew(
    decision: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(POLICIES | {"channels/c": _channel("c", 1_000)}), encoding="utf-8")
    arguments = ("chg_1", "--from-file", decision, "--data", tmp_path, "--with-policy", other)
    read = json.loads(_run(*arguments, "--json").stdout)
    before, after = read["decision"]["ranked"], read["with_policy"]["decision"]["ranked"]
    assert {item["channel"] for item in after} == {"a", "b", "c"}
    assert [item for item in after if item["channel"] != "c"] == before
    assert "c: BLOCKED became not excluded" in read["with_policy"]["differences"]
    assert "under the other policies" in _run(*arguments).stdout
    other.write_text(json.dumps({"channels/a": {"channel": "a"}}), encoding="utf-8")
    assert isinstance(_run(*arguments).exception, Refusal)


def _record(revision: int, action: str, detail: str, verdict: str = "allowed") -> Item:
    record = AuditRecord(f"audit-{revision}", 0, "me", action, detail, "why", verdict)
    return Item(f"/cellpay/audit/{revision}", json.dumps(record._asdict()), revision)


def test_what_was_in_force_is_read_from_the_audit_log() -> None:
    document = json.dumps(_channel("a", 1))
    records = [
        _record(9, "policy.channels.delete", "a"),
        _record(3, "policy.channels.set", f"a: {document}"),
        _record(5, "policy.channels.set", f"b: {document}", verdict="denied"),
        _record(6, "cell.drain", "a: b"),
        _record(7, "policy.choice.set", 'mesh: {"approval_ppm": 5}'),
        Item("/cellpay/audit/x", "nonsense", 8),
    ]
    found = list(states(changes_of(records)))
    names = [[(policy.name, policy.revision) for policy in of.policies.values()] for of in found]
    assert names == [[("a", 3)], [("a", 3), ("mesh", 7)], [("mesh", 7)]]


def test_policies_that_are_laid_over_are_checked() -> None:
    with pytest.raises(InvalidPolicy, match="must be one of"):
        laid_over(PolicySet(), {"weather/x": {}})
    one = laid_over(PolicySet(), POLICIES)
    assert len(laid_over(one, {"channels/a": None}).policies) == 2
