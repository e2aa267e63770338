"""What the docs tell people to type exists: `cellctl` commands and options, make targets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from control.cellctl.main import app

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "README.zh.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "deploy").rglob("*.md")),
]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
# Taken by cellctl before the command is parsed (control/cellctl/acting.py).
ANYWHERE = {"--as", "--approval", "--break-glass"}


def _typed(page: Path) -> Iterator[str]:
    """Inline code and lines of shell blocks that begin with a program of ours."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"```(?:sh|console|bash)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.split("#")[0].strip().removeprefix("$ ")
    without = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", without)


COMMANDS = [
    (page, line)
    for page in PAGES
    for line in _typed(page)
    if line.startswith(("cellctl ", ".venv/bin/cellctl ", "make "))
]


def _name(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=_name)
def test_a_command_of_the_docs_exists(page: Path, line: str) -> None:
    try:
        program, *words = shlex.split(re.split(r"\s[|>&]|;", line)[0])
    except ValueError:
        program, *words = line.split()
    if program == "make":
        named = [word for word in words if re.fullmatch(r"[a-z][a-z-]*", word)]
        assert set(named) <= TARGETS, line
        return
    command: Any = get_command(app)
    # Not isinstance: typer brings a click of its own.
    while words and hasattr(command, "commands"):
        following = command.commands.get(words[0])
        if following is None:
            break
        command = following
        words = words[1:]
    options = {name for parameter in command.params for name in parameter.opts}
    options |= {name for parameter in command.params for name in parameter.secondary_opts}
    for word in words:
        if word.startswith("--") and len(word) > 2:
            assert word.split("=")[0] in options | ANYWHERE | {"--help"}, f"{line}: {word}"
    if hasattr(command, "commands") and words and not words[0].startswith(("-", "…", "NAME")):
        # A group that does something by itself takes options only.
        assert words[0].isupper(), f"{line}: there is no {words[0]}"


def test_there_are_commands_to_look_at() -> None:
    assert len(COMMANDS) > 50
