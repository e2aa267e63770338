"""How the launcher starts PostgreSQL."""

from __future__ import annotations

from pathlib import Path

from control.mesh.postgres import Server, command

SERVER = Server(Path("/bin/postgres"), Path("/data"), None)


def settings(options: dict[str, str]) -> dict[str, str]:
    words = command(SERVER, 5432, options)
    return dict(word.split("=", 1) for word in words if "=" in word)


def test_options_replace_a_laptops_parameters_and_add_others() -> None:
    found = settings({"shared_buffers": "4GB", "wal_compression": "lz4"})
    assert found["shared_buffers"] == "4GB"
    assert found["wal_compression"] == "lz4"
    assert settings({})["shared_buffers"] == "256MB"


def test_no_option_takes_durability_away() -> None:
    names = ("fsync", "synchronous_commit", "full_page_writes")
    found = settings(dict.fromkeys(names, "off"))
    assert [found[name] for name in names] == ["on", "on", "on"]
