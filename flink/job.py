"""Runs features on Flink, in a cluster of this process: for tests and for figures of the past.

    .venv-flink/bin/python flink/job.py SQL batch|streaming TABLE

SQL: statements with `;` at the ends of lines, of `python -m router.risk.flink` and tables before
them. Writes the rows of TABLE, JSON lines on standard output: the last state of each, whatever
changes led there. Imports nothing of Cellpay, whose packages are newer.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from pyflink.common import RowKind
from pyflink.table import EnvironmentSettings, TableEnvironment


def rows(sql: str, mode: str, table: str) -> Counter[tuple[Any, ...]]:
    settings = EnvironmentSettings.new_instance()
    settings = settings.in_batch_mode() if mode == "batch" else settings.in_streaming_mode()
    environment = TableEnvironment.create(settings.build())
    # A small machine: one task of everything.
    environment.get_config().set("parallelism.default", "1")
    for statement in sql.split(";\n"):
        if statement.strip():
            environment.execute_sql(statement)
    found: Counter[tuple[Any, ...]] = Counter()
    with environment.execute_sql(f"SELECT * FROM {table}").collect() as results:
        for row in results:
            is_there = row.get_row_kind() in {RowKind.INSERT, RowKind.UPDATE_AFTER}
            found[tuple(row)] += 1 if is_there else -1
    return found


def main() -> None:
    path, mode, table = sys.argv[1:]
    for row in rows(Path(path).read_text(encoding="utf-8"), mode, table).elements():
        print(json.dumps(row))


if __name__ == "__main__":
    main()
