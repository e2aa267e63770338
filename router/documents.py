"""Settings files, with what only the place knows filled in: `${NAME}` from the environment (a pod's
address), `${file:/path}` from a file (a secret). Values are escaped for JSON strings, where they
must stand.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

_REFERENCE = re.compile(r"\$\{(file:)?([^}]*)\}")


class BadSettings(ValueError):
    """A settings file refers to something that is not there."""


def read_document(path: Path, environment: Mapping[str, str] = os.environ) -> str:
    """The JSON of a settings file. Raises BadSettings, OSError when there is no such file."""

    def value_of(match: re.Match[str]) -> str:
        from_file, name = match.groups()
        if from_file:
            try:
                value = Path(name).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise BadSettings(f"{path}: {match[0]}: {error.strerror}") from None
        elif name in environment:
            value = environment[name]
        else:
            raise BadSettings(f"{path}: {match[0]}: no such environment variable")
        return json.dumps(value)[1:-1]

    return _REFERENCE.sub(value_of, path.read_text(encoding="utf-8"))
