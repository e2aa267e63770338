"""The threat model names tests that exist, and every attack stands in it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`(test_\w+)`", PAGE))


def _tests_of(folder: Path) -> set[str]:
    return {
        node.name
        for path in folder.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


def test_every_test_that_the_threat_model_names_exists() -> None:
    assert NAMED - _tests_of(ROOT / "tests") == set()


def test_every_line_of_the_threat_model_names_a_test() -> None:
    threats = PAGE[PAGE.index("## Threats") : PAGE.index("## The edge")]
    rows = [
        line
        for line in threats.splitlines()
        if line.startswith("|") and not line.startswith(("| wants", "|---"))
    ]
    assert len(rows) > 50
    assert [row for row in rows if "`test_" not in row] == []


def test_every_attack_is_an_answer_to_a_threat() -> None:
    attacks = {
        name
        for name in _tests_of(ROOT / "tests" / "attacks")
        # What shows that a test is not empty stands for itself.
        if name.startswith("test_wants_")
    }
    assert attacks - NAMED <= {"test_wants_the_page_tokens_reader_to_take_what_no_method_said"}
    assert len(attacks) >= 40
