"""Our tidy.zig: what the style guide says, checked."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("banks", "cells", "router", "control", "tests")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
# The design's words, and what not to say instead.
BANNED_WORDS = {
    r"\bshards?\b": "slot",
    r"\bpartition_id\b": "slot",
    r"\bfailing over region\b": "cell",
}
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_has_a_telling_name_a_docstring_and_an_end(path: Path) -> None:
    assert path.stem not in BANNED_NAMES
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= FILE_LINES_MAX
    tree = ast.parse(text)
    if text.strip() and "versions" not in path.parts:
        assert ast.get_docstring(tree), "no module docstring says why this exists"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            migrates = "versions" in path.parts
            assert migrates or length <= FUNCTION_LINES_MAX, f"{node.name} has {length} lines"
    if path.name != "test_tidy.py":
        for word, instead in BANNED_WORDS.items():
            assert not re.search(word, text, re.IGNORECASE), f"say {instead}"


PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", ["README.md", "README.zh.md", *PAGES])
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    for link in links:
        assert link.startswith("http") or (path.parent / link).exists(), link


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name == "rules.py"], ids=name_of)
def test_rules_are_plain_functions(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await)


def test_no_incident_of_a_hang_comes_back() -> None:
    """A cancelled transfer answered UNAVAILABLE once; clients retried its key for ever."""
    text = (ROOT / "cells/transfers/service.py").read_text(encoding="utf-8")
    body = text[text.index("def raise_when_cancelled") :].split("\nclass ")[0]
    assert "UNAVAILABLE" not in body
