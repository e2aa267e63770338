"""Features as Flink's SQL: the text of it, and, where PyFlink is installed, what Flink makes of it.

`make flink-test` installs PyFlink (.venv-flink) and runs this.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from router.risk.features import Aggregate, Entity, Feature, FeatureSet, Observation, value_of
from router.risk.flink import ASKED_TABLE, source, state_ttl_ms, statements
from router.risk.model import Action
from tests.property.test_risk_features import by_definition

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "vectors" / "risk_features.sql"
PYTHON = ROOT / ".venv-flink" / "bin" / "python"
DOCUMENT = FeatureSet(
    (
        Feature("payments", Entity.USER, Aggregate.COUNT, 3600),
        Feature("spent", Entity.USER, Aggregate.SUM, 100, buckets=7, currency="USD"),
        Feature(
            "denied", Entity.DEVICE, Aggregate.COUNT, 600,
            operations=("pay", "it's"), actions=(Action.DENY,),
        ),
        Feature("devices", Entity.USER, Aggregate.DISTINCT, 300, of=Entity.DEVICE),
    )
)  # fmt: skip


def test_a_feature_set_has_this_text() -> None:
    """When it changes on purpose: write the text anew, and run `make flink-test`."""
    assert ";\n\n".join(statements(DOCUMENT)) + ";\n" == GOLDEN.read_text(encoding="utf-8")


def test_what_no_feature_is_of_has_no_view() -> None:
    assert statements(FeatureSet()) == []
    counts = FeatureSet(DOCUMENT.features[:1])
    assert [text.split(" AS\n")[0] for text in statements(counts)] == [
        "CREATE TEMPORARY VIEW feature_buckets", "CREATE TEMPORARY VIEW feature_values",
    ]  # fmt: skip


def test_a_bucket_is_kept_as_long_as_a_value_is_made_of_it() -> None:
    assert state_ttl_ms(DOCUMENT) == 11 * 360_000 + 60_000


def test_a_set_with_faults_is_refused() -> None:
    twice = FeatureSet(DOCUMENT.features[:1] * 2)
    with pytest.raises(ValueError, match=r"features\[1\].name payments stands here twice"):
        statements(twice)


def _observations(chance: random.Random, count: int) -> list[Observation]:
    return [
        Observation(
            chance.randrange(0, 4_000_000), chance.choice(["pay", "transfer", "it's"]),
            chance.choice(["allow", "deny"]), chance.choice(["", "x", "y"]), "p",
            chance.choice(["", "d1", "d2", "d3"]), "i", "c", chance.choice([5, 2**53]),
            chance.choice(["USD", "JPY"]),
        )
        for _ in range(count)
    ]  # fmt: skip


def _missing() -> str:
    if not PYTHON.exists():
        return "PyFlink is not installed: make flink"
    return "" if shutil.which("java") or os.environ.get("JAVA_HOME") else "there is no Java"


@pytest.mark.skipif(bool(_missing()), reason=_missing() or "all is there")
@pytest.mark.parametrize("mode", ["batch", "streaming"])
def test_flink_gives_the_values_of_the_definition(mode: str, tmp_path: Path) -> None:
    chance = random.Random(3)
    seen, asked = _observations(chance, 500), _observations(chance, 50)
    seen_path, asked_path = tmp_path / "seen.jsonl", tmp_path / "asked.jsonl"
    seen_path.write_text("".join(json.dumps(item._asdict()) + "\n" for item in seen))
    numbered = [{"id": number, **item._asdict()} for number, item in enumerate(asked)]
    asked_path.write_text("".join(json.dumps(item) + "\n" for item in numbered))
    tables = [source(str(seen_path)), source(str(asked_path), ASKED_TABLE)]
    job = tmp_path / "job.sql"
    job.write_text(";\n".join([*tables, *statements(DOCUMENT)]) + ";\n")
    command = [str(PYTHON), str(ROOT / "flink" / "job.py"), str(job), mode, "feature_values"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {(row[0], row[1]): row[2] for row in map(json.loads, done.stdout.splitlines())}
    for number, item in enumerate(asked):
        for feature in DOCUMENT.features:
            key = value_of(item, feature.by)
            wanted = by_definition(feature, seen, key, item.at_ms) if key else 0
            if feature.aggregate == Aggregate.SUM:
                wanted = min(wanted, 2**53 - 1)
            assert found[number, feature.name] == wanted, (number, feature)
