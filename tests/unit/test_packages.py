"""What is installed beside each other: pip lets two packages write one file, and keeps the last."""

from __future__ import annotations

import csv
from collections import defaultdict
from importlib.metadata import distributions

# The same protos, generated twice, or no code at all: either may win.
_HARMLESS = ("google/", "envoy/__init__.py", "cel/__init__.py")


def test_no_two_packages_write_a_file_that_matters() -> None:
    owners: dict[str, set[str]] = defaultdict(set)
    for package in distributions():
        name = package.name
        for file, *_ in csv.reader((package.read_text("RECORD") or "").splitlines()):
            if not file.endswith(".pyc"):
                owners[file].add(name)
    assert "pytest" in set().union(*owners.values())
    twice = {file: names for file, names in owners.items() if len(names) > 1}
    assert {file: names for file, names in twice.items() if not file.startswith(_HARMLESS)} == {}
