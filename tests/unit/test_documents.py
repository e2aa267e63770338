"""Settings files whose values come from the environment and from secrets' files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from router.documents import BadSettings, read_document


def test_what_the_place_knows_is_filled_in_and_escaped(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text('p"w\\é\n', encoding="utf-8")
    path = tmp_path / "settings.json"
    document = {"listen": "${POD_IP}:7400", "key": f"${{file:{secret}}}", "n": 1}
    path.write_text(json.dumps(document))
    found = json.loads(read_document(path, {"POD_IP": "10.0.0.7"}))
    assert found == {"listen": "10.0.0.7:7400", "key": 'p"w\\é', "n": 1}


@pytest.mark.parametrize("reference", ["${POD_IP}", "${file:/nowhere/at/all}", "${}"])
def test_what_is_missing_is_named(tmp_path: Path, reference: str) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"a": reference}))
    with pytest.raises(BadSettings, match=r"settings\.json: \$\{"):
        read_document(path, {})
