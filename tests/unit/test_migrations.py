"""Expand and contract: a migration breaks no version that still runs beside it (docs/upgrades.md).

Cells of two versions work on one schema while a mesh is rolled. So a migration only adds, unless it
says, by `contract = "VERSION"`, which version was the first that does not need what it takes away.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERSIONS = sorted((ROOT / "cells" / "migrations" / "versions").glob("0*.py"))
# What the version before may still read or write, or may still violate.
TAKES_AWAY = {
    "drop_table",
    "drop_column",
    "drop_constraint",
    "rename_table",
    "create_check_constraint",
    "create_exclude_constraint",
    "create_foreign_key",
    "create_unique_constraint",
}
SQL = re.compile(
    r"\b(DROP\s+(TABLE|COLUMN|CONSTRAINT|TYPE|SCHEMA)|RENAME\b|SET\s+NOT\s+NULL|TRUNCATE\b"
    r"|DELETE\s+FROM|ALTER\s+COLUMN\s+\w+\s+(SET\s+DATA\s+)?TYPE|ADD\s+CONSTRAINT)",
    re.IGNORECASE,
)


def findings(source: str) -> list[str]:
    """What an upgrade does that is not expanding, with its line."""
    return sorted(set(_findings(ast.parse(source))), key=lambda text: int(text.split(":")[0]))


def _findings(tree: ast.Module) -> Iterator[str]:
    texts = {
        target.id: _text(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    going_up = [function for function in functions if function.name != "downgrade"]
    calls = [
        node
        for function in going_up
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "op"
    ]
    fresh = {_first(call) for call in calls if _name(call) == "create_table"} - {""}
    for call in calls:
        name, keywords = _name(call), {item.arg: item.value for item in call.keywords}
        what = ""
        if name in TAKES_AWAY:
            what = name
        elif name == "execute":
            argument = call.args[0]
            sql = texts.get(argument.id, "") if isinstance(argument, ast.Name) else _text(argument)
            found = SQL.search(sql)
            what = found[0] if found else ""
        elif name == "add_column" and _first(call) not in fresh:
            column = call.args[1]
            assert isinstance(column, ast.Call)
            given = {item.arg: item.value for item in column.keywords}
            demands = _is(given.get("nullable"), False) and "server_default" not in given
            what = "NOT NULL without a default" if demands else ""
        elif name == "alter_column" and _first(call) not in fresh:
            changes = {"type_", "new_column_name"} & keywords.keys()
            demands = _is(keywords.get("nullable"), False)
            what = "alter_column" if changes or demands else ""
            # Whoever writes the column as it was gives no value.
            if (
                not what
                and _is(keywords.get("server_default"), None)
                and "server_default" in keywords
            ):
                what = "a default taken away"
        elif name == "create_index" and _is(keywords.get("unique"), True):
            table = _text(call.args[1])
            what = "" if table in fresh else "a unique index"
        if what:
            yield f"{call.lineno}: {' '.join(what.split())}"


def _name(call: ast.Call) -> str:
    assert isinstance(call.func, ast.Attribute)
    return call.func.attr


def _first(call: ast.Call) -> str:
    return _text(call.args[0]) if call.args else ""


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _text(node: ast.expr) -> str:
    """What is known of a string before it runs."""
    return "".join(
        part.value
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    )


def contract_of(source: str) -> str:
    found = re.search(r'^contract = "([^"]*)"$', source, re.MULTILINE)
    return found[1] if found else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


@pytest.mark.parametrize("path", VERSIONS, ids=lambda path: path.stem)
def test_a_migration_expands_or_says_which_version_needs_no_more(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    found, contract = findings(source), contract_of(source)
    if not contract:
        assert not found, f"expand only, or say since when nobody needs it: {found}"
        return
    assert found, "it takes nothing away: it needs no `contract`"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert _numbers(contract) <= _numbers(project), "no such version has been released"


def test_migrations_are_one_line() -> None:
    sources = [path.read_text(encoding="utf-8") for path in VERSIONS]
    revisions = [re.search(r'^revision = "(\d+)"', text, re.MULTILINE) for text in sources]
    before = [re.search(r'^down_revision = "?(\w+)"?', text, re.MULTILINE) for text in sources]
    numbers = [found[1] for found in revisions if found]
    assert numbers == sorted(set(numbers))
    assert [found[1] for found in before if found] == ["None", *numbers[:-1]]


@pytest.mark.parametrize(
    "line",
    [
        'op.drop_table("orders")',
        'op.drop_column("orders", "note")',
        'op.rename_table("orders", "old_orders")',
        'op.add_column("orders", sa.Column("x", sa.Text(), nullable=False))',
        'op.alter_column("orders", "note", nullable=False)',
        'op.alter_column("orders", "note", new_column_name="remark")',
        'op.alter_column("orders", "note", type_=sa.BigInteger())',
        'op.alter_column("orders", "note", server_default=None)',
        'op.create_index("i", "orders", ["note"], unique=True)',
        'op.create_check_constraint("c", "orders", "amount > 0")',
        'op.execute("ALTER TABLE orders DROP COLUMN note")',
        'op.execute("ALTER TABLE orders RENAME note TO remark")',
        'op.execute(f"ALTER TABLE {name} ALTER COLUMN note SET NOT NULL")',
        'op.execute("ALTER TABLE orders ALTER COLUMN note TYPE bigint")',
        'op.execute("DELETE FROM orders")',
        "op.execute(_SQL)",
    ],
)
def test_what_takes_away_is_found(line: str) -> None:
    source = f'_SQL = """\n  DROP TABLE x\n"""\n\ndef upgrade():\n    {line}\n'
    assert len(findings(source)) == 1
    helper = source.replace("def upgrade", "def _part")
    assert len(findings(helper)) == 1
    assert not findings(source.replace("def upgrade", "def downgrade"))


@pytest.mark.parametrize(
    "line",
    [
        'op.add_column("orders", sa.Column("x", sa.Text(), nullable=False, server_default=""))',
        'op.add_column("orders", sa.Column("x", sa.Text(), nullable=True))',
        'op.create_table("new", sa.Column("x", sa.Text(), nullable=False))',
        'op.create_index("i", "orders", ["note"])',
        'op.drop_index("i", table_name="orders")',
        'op.alter_column("orders", "note", nullable=True)',
        "op.execute(\"UPDATE orders SET note = '' WHERE note IS NULL\")",
        'op.execute(f"ALTER TABLE {name} SET LOCALITY REGIONAL BY ROW")',
    ],
)
def test_what_expands_is_let_through(line: str) -> None:
    assert not findings(f"def upgrade():\n    {line}\n")


def test_a_table_of_the_same_migration_has_no_older_reader() -> None:
    source = (
        'def upgrade():\n    op.create_table("new")\n'
        '    op.add_column("new", sa.Column("x", sa.Text(), nullable=False))\n'
        '    op.create_index("i", "new", ["x"], unique=True)\n'
    )
    assert not findings(source)
