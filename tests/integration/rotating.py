"""A process that rotates keys for ever, as a cell's worker does and far more often; to be killed.

python -m tests.integration.rotating DATABASE_URL KEYSTORE SLOT…
"""

from __future__ import annotations

import asyncio
import sys

from cells.database import make_engine
from cells.ledger.worker import Lanes
from cells.reading import ReadEngine
from cells.settings import DatabaseSettings, LaneSettings, VaultSettings
from cells.vault.keystore import open_kms
from cells.vault.store import Vault
from cells.vault.worker import Rotation
from router.guard import SlotsHere
from router.logs import configure_logs
from router.policies.model import Keys
from tests.integration.behind import CELL, going_on

# Each key is due as soon as it is there.
ALWAYS = [Keys(period_days=1e-9)]
# So that a kill finds a rotation half done.
SETTINGS = VaultSettings(batch_size_max=3, pause_s=0.001)


async def rotate(url: str, keystore: str, slots: list[int]) -> None:
    lane_engine = make_engine(url, "rotating", DatabaseSettings(), pool_size=1, lanes=True)
    engine = make_engine(url, "rotating-reads", DatabaseSettings(), pool_size=2)
    lanes = Lanes(lane_engine, CELL, LaneSettings())
    vault = Vault(lanes, ReadEngine(engine), open_kms(keystore))
    rotation = Rotation(lanes, SlotsHere(CELL), vault, SETTINGS, lambda: ALWAYS)
    async with going_on(*lanes.runners()):
        while True:
            print("retired", await rotation.look(slots), flush=True)


if __name__ == "__main__":
    # To standard error: whoever started it reads what was retired.
    configure_logs(process="rotating")
    asyncio.run(rotate(sys.argv[1], sys.argv[2], [int(slot) for slot in sys.argv[3:]]))
