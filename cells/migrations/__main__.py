"""python -m cells.migrations upgrade|sql|current DATABASE_URL

`@FILE` instead of a URL reads it from a file, where secrets belong.
"""

from __future__ import annotations

import sys
from pathlib import Path

from alembic import command
from alembic.config import Config


def config_for(database_url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("sqlalchemy.url", database_url.replace("%", "%%"))
    return config


def main() -> None:
    arguments = sys.argv[1:]
    if len(arguments) == 2 and arguments[1].startswith("@"):
        try:
            arguments[1] = Path(arguments[1][1:]).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise SystemExit(f"{arguments[1]}: {error.strerror}") from None
    match arguments:
        case ["upgrade", database_url]:
            command.upgrade(config_for(database_url), "head")
        case ["sql", database_url]:
            command.upgrade(config_for(database_url), "head", sql=True)
        case ["current", database_url]:
            command.current(config_for(database_url))
        case _:
            raise SystemExit(f"usage: {__doc__}")


if __name__ == "__main__":
    main()
