"""Known vulnerabilities of what is installed: `make audit`.

    audit.py PYTHON                     asks an advisory service, by pip-audit
    audit.py PYTHON --advisories ZIP    offline, against a copy of OSV's

Ends with 0 when all was looked at and nothing found, 1 when something was found, 2 when it could
not be looked at: an audit that found nothing because nobody answered is no audit.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

CLEAN, FOUND, UNKNOWN = 0, 1, 2
DUMP = "https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip"
_SERVICES = ("pypi", "osv")
_WAIT_S = 600


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    version: str
    advisory: str
    fixed_in: str


def installed(purelib: str) -> dict[str, str]:
    """Name → version of what lies there; what is installed as a link to sources is ours."""
    return {
        canonicalize_name(item.metadata["Name"]): item.version
        for item in importlib.metadata.distributions(path=[purelib])
        if "editable" not in (item.read_text("direct_url.json") or "")
    }


def by_copy(found: Mapping[str, str], path: Path) -> tuple[list[Finding], int]:
    """What the copy knows of these versions, and how many advisories it holds."""
    findings, count = [], 0
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            advisory = json.loads(archive.read(name))
            count += 1
            if "withdrawn" in advisory:
                continue
            findings += list(_of_advisory(advisory, found))
    return sorted(set(findings), key=lambda item: (item.name, item.advisory)), count


def _of_advisory(advisory: Mapping[str, Any], found: Mapping[str, str]) -> Iterator[Finding]:
    for affected in advisory.get("affected", ()):
        package = affected.get("package", {})
        name = canonicalize_name(package.get("name", ""))
        if package.get("ecosystem") != "PyPI" or name not in found:
            continue
        version = found[name]
        ranges = [item for item in affected.get("ranges", ()) if item["type"] == "ECOSYSTEM"]
        if version in affected.get("versions", ()) or any(
            is_within(version, item["events"]) for item in ranges
        ):
            fixes = [
                event["fixed"] for item in ranges for event in item["events"] if "fixed" in event
            ]
            yield Finding(name, version, advisory["id"], ", ".join(fixes))


def is_within(version: str, events: list[Mapping[str, str]]) -> bool:
    """Of OSV's schema: introduced, then fixed (exclusive) or last_affected (inclusive)."""
    try:
        at = Version(version)
        moments = sorted((Version(text), kind) for event in events for kind, text in event.items())
    except InvalidVersion:
        # Nobody can say; the list of versions was asked already.
        return False
    within = False
    for moment, kind in moments:
        if kind == "introduced" and moment <= at:
            within = True
        elif (kind == "fixed" and moment <= at) or (kind == "last_affected" and moment < at):
            within = False
    return within


def by_service(purelib: str) -> int:
    """pip-audit, by the first service that answers for everything."""
    why = []
    for service in _SERVICES:
        command = [sys.executable, "-m", "pip_audit", "--strict", "--skip-editable"]
        command += ["--progress-spinner", "off", "--vulnerability-service", service]
        done = subprocess.run(
            [*command, "--path", purelib],
            capture_output=True, text=True, timeout=_WAIT_S, check=False,
        )  # fmt: skip
        said = f"{done.stdout}{done.stderr}".strip()
        if done.returncode == 0 or "known vulnerabilit" in said:
            print(said)
            return CLEAN if done.returncode == 0 else FOUND
        why.append(f"{service}: {said.splitlines()[-1] if said else 'no answer'}")
    print("NOT AUDITED: no advisory service answers for what is installed.", file=sys.stderr)
    print("\n".join(f"  {line}" for line in why), file=sys.stderr)
    print(f"  Without network: fetch {DUMP} elsewhere,", file=sys.stderr)
    print("  then `make audit ADVISORIES=all.zip`.", file=sys.stderr)
    return UNKNOWN


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("python", help="whose packages are looked at")
    parser.add_argument("--advisories", type=Path, help="a copy of OSV's advisories of PyPI (zip)")
    arguments = parser.parse_args()
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = subprocess.run(
        [arguments.python, "-c", asked], capture_output=True, text=True, check=True
    ).stdout.strip()
    if arguments.advisories is None:
        return by_service(purelib)
    found = installed(purelib)
    try:
        findings, count = by_copy(found, arguments.advisories)
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        print(f"NOT AUDITED: {arguments.advisories} is no copy: {error}", file=sys.stderr)
        return UNKNOWN
    if not found or not count:
        print("NOT AUDITED: there is nothing in it", file=sys.stderr)
        return UNKNOWN
    for item in findings:
        print(f"{item.name} {item.version}: {item.advisory}, fixed in {item.fixed_in or '-'}")
    print(f"{len(findings)} known in {len(found)} packages, by {count} advisories")
    return FOUND if findings else CLEAN


if __name__ == "__main__":
    sys.exit(main())
