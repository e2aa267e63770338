"""The same features as SQL of Apache Flink, for a mesh that outgrows one consumer a cell. Pure.

    python -m router.risk.flink FEATURES.json > features.sql

Three views: what each bucket holds (counts and sums, exact), the members of distinct counts (exact
too, where Redis estimates), and the values at the times of a table `asked`. No watermark drops what
comes late: a row belongs to the bucket of its own time, as docs/risk-features.md defines it, in
streaming mode and in batch mode. flink/job.py runs it; any other SQL client of Flink does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_type_hints

from pydantic import TypeAdapter

from router.risk.features import Aggregate, Feature, FeatureSet, Observation, faults

# Sums end here, as in Redis (cells/risk/windows.py).
SUM_MAX = 2**53 - 1
OBSERVATIONS_TABLE = "observations"
ASKED_TABLE = "asked"
_TYPES = {int: "BIGINT", str: "STRING"}
_COLUMNS = ",\n".join(
    f"  `{name}` {_TYPES[kind]}" for name, kind in get_type_hints(Observation).items()
)


def source(path: str, table: str = OBSERVATIONS_TABLE) -> str:
    """A table of JSON lines, an object of Observation's fields each (and `id`, of what is asked).
    Operators have others, by the same columns: of Kafka, of NATS."""
    number = "  `id` BIGINT,\n" if table == ASKED_TABLE else ""
    return (
        f"CREATE TEMPORARY TABLE {table} (\n{number}{_COLUMNS}\n) WITH (\n"
        f"  'connector' = 'filesystem',\n  'path' = {_text(path)},\n  'format' = 'json'\n)"
    )


def statements(document: FeatureSet) -> Sequence[str]:
    """The views, over tables `observations` and `asked`. Raises ValueError for what is no feature
    set."""
    wrong = list(faults(document))
    if wrong:
        raise ValueError("; ".join(f"{field} {why}" for field, why in wrong))
    counted = [item for item in document.features if item.aggregate != Aggregate.DISTINCT]
    distinct = [item for item in document.features if item.aggregate == Aggregate.DISTINCT]
    found = []
    if counted:
        found.append(_view("feature_buckets", [_buckets(item) for item in counted]))
    if distinct:
        found.append(_view("feature_members", [_members(item) for item in distinct]))
    if document.features:
        found.append(_view("feature_values", [_values(item) for item in document.features]))
    return found


def state_ttl_ms(document: FeatureSet) -> int:
    """How long Flink keeps a bucket that nothing is added to: the setting table.exec.state.ttl."""
    return max((item.buckets + 1) * item.bucket_ms for item in document.features) + 60_000


def _view(name: str, parts: Sequence[str]) -> str:
    return f"CREATE TEMPORARY VIEW {name} AS\n" + "\nUNION ALL\n".join(parts)


def _buckets(feature: Feature) -> str:
    value = "COUNT(*)"
    if feature.aggregate == Aggregate.SUM:
        amount = f"CAST(LEAST(GREATEST(`amount`, 0), {SUM_MAX}) AS DECIMAL(38, 0))"
        value = f"CAST(LEAST(SUM({amount}), {SUM_MAX}) AS BIGINT)"
    return (
        f"SELECT {_text(feature.name)} AS `feature`, `{feature.by}` AS `entity`,"
        f" `at_ms` / {feature.bucket_ms} AS `bucket`, {value} AS `total`\n"
        f"FROM {OBSERVATIONS_TABLE} WHERE {_condition(feature)}\n"
        f"GROUP BY `{feature.by}`, `at_ms` / {feature.bucket_ms}"
    )


def _members(feature: Feature) -> str:
    return (
        f"SELECT DISTINCT {_text(feature.name)} AS `feature`, `{feature.by}` AS `entity`,"
        f" `at_ms` / {feature.bucket_ms} AS `bucket`, `{feature.of}` AS `member`\n"
        f"FROM {OBSERVATIONS_TABLE} WHERE {_condition(feature)} AND `{feature.of}` <> ''"
    )


def _values(feature: Feature) -> str:
    """`asked` has a number of each row, `id`, beside an observation's columns."""
    last = f"a.`at_ms` / {feature.bucket_ms}"
    view = "feature_members" if feature.aggregate == Aggregate.DISTINCT else "feature_buckets"
    total = "COALESCE(SUM(CAST(b.`total` AS DECIMAL(38, 0))), 0)"
    value = f"CAST(LEAST({total}, {SUM_MAX}) AS BIGINT)"
    if feature.aggregate == Aggregate.DISTINCT:
        value = "COUNT(DISTINCT b.`member`)"
    return (
        f"SELECT a.`id`, {_text(feature.name)} AS `feature`, {value} AS `value`\n"
        f"FROM {ASKED_TABLE} AS a LEFT JOIN {view} AS b ON b.`feature` = {_text(feature.name)}"
        f" AND b.`entity` = a.`{feature.by}`\n"
        f"  AND b.`bucket` BETWEEN {last} - {feature.buckets - 1} AND {last}\n"
        "GROUP BY a.`id`"
    )


def _condition(feature: Feature) -> str:
    parts = [f"`{feature.by}` <> ''"]
    for column, allowed in (("operation", feature.operations), ("action", feature.actions)):
        if allowed:
            parts.append(f"`{column}` IN ({', '.join(_text(item) for item in sorted(allowed))})")
    if feature.currency:
        parts.append(f"`currency` = {_text(feature.currency)}")
    return " AND ".join(parts)


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m router.risk.flink FEATURES.json")
    document = TypeAdapter(FeatureSet).validate_json(Path(sys.argv[1]).read_bytes())
    print(";\n\n".join(statements(document)) + ";")


if __name__ == "__main__":
    main()
