"""Records under other rules; risk documents as files; the commands that need no mesh."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer

from control.cellctl import main
from control.cellctl.risk.hits import summed
from control.cellctl.risk.lists import duration_of, moment_of
from control.risk.files import BadFile, check_files, place_of, read_files
from control.risk.records import NoRecords, Span, from_lines
from control.risk.replay import Outcome, Replay, document_of, replay, types_with
from router.errors import Violation
from router.risk.facts import Type, Value, schema
from router.risk.features import Observation
from router.risk.lists import Entry, Lists, RiskList
from router.risk.model import Action, Mode, Rule, RuleSet
from router.risk.record import Record, encode

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
HOUR_MS = 3_600_000
LARGE = Rule("large", "amount > 100", Action.DENY, "LARGE")
STOLEN = Rule("stolen", 'in_list("stolen", device.id)', Action.REVIEW, "STOLEN")
TYPES = schema({"pays_1h": Type.INT})


def _record(number: int, amount: int, *, at_ms: int = NOW_MS, **fields: Any) -> Record:
    facts: dict[str, Value] = {"amount": amount, "user.id": f"u{number}", **fields.pop("facts", {})}
    seen = Observation(
        at_ms, "pay", "allow", f"u{number}", "m", "", "", "", amount, "USD"
    )  # fmt: skip
    made = Record(f"d{number}", seen, facts, "allow", (), (), (), 3, "", ())
    return made._replace(**fields)


def _replayed(rules: list[Rule], records: list[Record], lists: Lists | None = None) -> Outcome:
    lists = lists or Lists({}, lambda: 0)
    return replay(records, Replay(RuleSet(tuple(rules)), TYPES, lists, now=NOW, examples_max=2))


def test_what_would_change_is_told_by_action_by_rule_and_by_example() -> None:
    records = [_record(n, 50 * n) for n in range(6)]
    records[5] = records[5]._replace(action="deny", hits=("old", "large"))
    found = _replayed([LARGE], records)
    assert (found.records, found.changed) == (6, 2)
    assert found.actions == {("allow", "allow"): 3, ("allow", "deny"): 2, ("deny", "deny"): 1}
    assert found.amounts["allow", "deny", "USD"] == 150 + 200
    large, old = found.rules["large"], found.rules["old"]
    assert (large.was, large.now, large.gained, large.lost) == (1, 3, 2, 0)
    assert (old.was, old.now, old.gained, old.lost) == (1, 0, 0, 1)
    kept = found.examples["allow", "deny"]
    assert [(item.decision_id, item.user, item.now_rules) for item in kept] == [
        ("d3", "u3", ("large",)), ("d4", "u4", ("large",)),
    ]  # fmt: skip
    assert json.loads(json.dumps(document_of(found)))["changed"] == 2


def test_examples_are_bounded_and_counts_are_not() -> None:
    found = _replayed([LARGE], [_record(n, 1000) for n in range(10)])
    assert len(found.examples["allow", "deny"]) == 2
    assert found.actions["allow", "deny"] == 10


def test_the_same_rules_change_nothing() -> None:
    records = [_record(1, 500, action="deny", hits=("large",)), _record(2, 5)]
    assert _replayed([LARGE], records).changed == 0


def test_lists_are_asked_as_of_the_records_time() -> None:
    lists = Lists({"stolen": RiskList((Entry("phone", NOW),))}, lambda: NOW_MS + HOUR_MS)
    records = [
        _record(n, 1, at_ms=at_ms, facts={"device.id": "phone"})
        for n, at_ms in enumerate((NOW_MS - 1, NOW_MS + 1))
    ]
    found = _replayed([STOLEN], records, lists)
    assert found.actions == {("allow", "review"): 1, ("allow", "allow"): 1}


def test_a_rule_that_begins_later_counts_and_one_that_has_ended_does_not() -> None:
    later = Rule("later", "amount > 1", Action.DENY, "X", effective_from=NOW + timedelta(days=1))
    ended = Rule("ended", "amount > 1", Action.DENY, "X", effective_until=NOW)
    shadow = Rule("shadow", "amount > 1", Action.DENY, "X", mode=Mode.SHADOW)
    assert _replayed([later], [_record(1, 5)]).actions == {("allow", "deny"): 1}
    assert _replayed([ended], [_record(1, 5)]).changed == 0
    found = _replayed([shadow], [_record(1, 5)])
    assert found.changed == 0
    assert found.rules["shadow"].now == 1


def test_facts_that_records_lack_are_told() -> None:
    rule = Rule("burst", "f.pays_1h > 3", Action.DENY, "X")
    found = _replayed([rule], [_record(1, 5), _record(2, 5, facts={"f.pays_1h": 4})])
    assert found.missing == {"f.pays_1h": 1}
    assert found.actions["allow", "deny"] == 1


def test_features_that_only_records_know_have_a_type() -> None:
    types = types_with(schema({}), [_record(1, 5, facts={"f.pays_1h": 4})])
    assert types["f.pays_1h"] == Type.INT


def test_records_are_read_from_lines_of_either_form_and_by_time(tmp_path: Path) -> None:
    first, second = _record(1, 5), _record(2, 6, at_ms=NOW_MS + HOUR_MS)
    one_alone = json.dumps(json.loads(encode([second]))[0])
    path = tmp_path / "records.jsonl"
    path.write_text(f"{encode([first]).decode()}\n\n{one_alone}\n")
    assert list(from_lines(path, Span())) == [first, second]
    assert list(from_lines(path, Span(NOW + timedelta(minutes=1)))) == [second]
    assert list(from_lines(path, Span(None, NOW + timedelta(minutes=1)))) == [first]
    path.write_text('{"secret": 1}\n')
    with pytest.raises(NoRecords, match="line 1") as caught:
        list(from_lines(path, Span()))
    assert "secret" not in str(caught.value)


RULES_YAML = """
rules:
  - name: large
    when: amount > 100 && f.pays_1h > 1
    action: deny
    reason: LARGE
    effective_from: 2026-01-01T00:00:00Z
    cases:
      - {facts: {amount: 101, f.pays_1h: 2}, matches: true}
"""
FEATURES_YAML = """
features:
  - {name: pays_1h, aggregate: count, by: user, window_s: 3600}
"""


def _files(folder: Path, **texts: str) -> list[Path]:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return [folder]


def test_files_say_their_kind_by_what_is_in_them_and_their_name_by_theirs(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text('{"data": "x"}')
    paths = _files(
        tmp_path, cards=RULES_YAML, main=FEATURES_YAML, stolen="entries: []",
        other="kind: risk-lists\nname: named\nholds: values",
    )  # fmt: skip
    assert [(str(file.kind), file.name) for file in read_files(paths)] == [
        ("risk-rules", "cards"), ("risk-features", "main"), ("risk-model", "model"),
        ("risk-lists", "named"), ("risk-lists", "stolen"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rules: [", "while parsing"),
        ("- a", "holds no fields"),
        ("limits: []", "has none of"),
        ("rules: []\nrules: []", "stands here twice"),
        ("name: A B\nrules: []", "lower case"),
        ("rules: []\nkind: limits", "has none of"),
        ("entries: [{value: !!binary aGVsbG8=}]", "no JSON"),
    ],
)
def test_a_file_that_is_no_risk_document_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadFile, match=says):
        read_files(_files(tmp_path, x=text))


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="both"):
        read_files(_files(tmp_path, one="rules: []\nname: x", two="rules: []\nname: x"))


def test_files_are_checked_among_each_other(tmp_path: Path) -> None:
    files = read_files(_files(tmp_path, cards=RULES_YAML, main=FEATURES_YAML))
    assert not any(item.violations for item in check_files(files))
    (alone,) = check_files(files[:1])
    assert [item.field for item in alone.violations] == ["document.rules[0].when"]
    assert "f.pays_1h is unknown" in alone.violations[0].description
    bad = files[0]._replace(document='{"rules": [{"name": "x"}]}')
    assert len(check_files([bad])[0].violations) == 3


def test_a_place_has_the_rules_name() -> None:
    document = json.dumps({"rules": [{"name": "a"}, {"name": "b"}]})
    assert place_of(Violation("document.rules[1].when", ""), document) == "rules[1].when (b)"
    assert place_of(Violation("document.rules[7].when", ""), document) == "rules[7].when"
    assert place_of(Violation("document", ""), document) == "document"


def _cellctl(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["cellctl", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main.main()
    return int(caught.value.code or 0)


def test_check_ends_with_1_for_what_a_mesh_would_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _files(tmp_path, cards=RULES_YAML, main=FEATURES_YAML)
    assert _cellctl(monkeypatch, "risk", "check", tmp_path) == 0
    assert "1 rules, 1 cases: good" in capsys.readouterr().out
    _files(tmp_path, cards=RULES_YAML.replace("matches: true", "matches: false"))
    assert _cellctl(monkeypatch, "risk", "check", tmp_path) == 1
    assert "rules[0].cases[0] (large): should not match" in capsys.readouterr().err


def test_replay_of_a_file_needs_no_mesh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CELLPAY_DATA", str(tmp_path / "nothing"))
    records = tmp_path / "records.jsonl"
    both = [_record(1, 500, facts={"f.pays_1h": 3}), _record(2, 5, facts={"f.pays_1h": 3})]
    records.write_bytes(encode(both))
    (tmp_path / "cards.yaml").write_text(RULES_YAML)
    command = ("risk", "replay", "--rules", tmp_path / "cards.yaml", "--records", records)
    assert _cellctl(monkeypatch, *command) == 0
    shown = capsys.readouterr().out
    assert "2 records" in shown
    assert "1 would end otherwise" in shown
    assert "allow → deny" in shown
    assert _cellctl(monkeypatch, *command, "--json") == 0
    assert json.loads(capsys.readouterr().out)["changed"] == 1
    (tmp_path / "cards.yaml").write_text(RULES_YAML.replace("amount >", "amuont >"))
    assert _cellctl(monkeypatch, *command) == 1
    assert "amuont is unknown" in capsys.readouterr().err


def test_times_are_moments_or_durations() -> None:
    assert duration_of("90m") == timedelta(minutes=90)
    assert moment_of("2026-01-01T00:00:00Z") == datetime(2026, 1, 1, tzinfo=UTC)
    assert moment_of("1d") > datetime.now(UTC) + timedelta(hours=23)
    for wrong in ("2026-01-01T00:00:00", "soon", "1w"):
        with pytest.raises(typer.BadParameter):
            moment_of(wrong)


def test_hits_are_summed_over_processes_and_cells() -> None:
    page = (
        "# TYPE cellpay_risk_rule_hits counter\n"
        'cellpay_risk_rule_hits_total{rule="large",mode="live",process="0"} 3.0\n'
        'cellpay_risk_rule_hits_total{rule="large",mode="live",process="1"} 4.0\n'
        'cellpay_risk_rule_hits_total{rule="large",mode="shadow",process="1"} 1.0\n'
    )
    assert summed([page, page, ""]) == {("large", "live"): 14, ("large", "shadow"): 2}
