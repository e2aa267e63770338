"""python -m cells.migrations upgrade|sql|current DATABASE_URL"""

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
    match sys.argv[1:]:
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
