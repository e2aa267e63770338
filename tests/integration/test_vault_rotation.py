"""Keys rotate under load in a process that is killed again and again: nothing becomes unreadable.

Real PostgreSQL, a real process, SIGKILL. Two vaults of this process stand for two more processes of
the cell: their caches know nothing of what the other or the rotating process did.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import random
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.hotp import HOTP
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

import cells.schema  # noqa: F401
from cells.channels.model import BankAccount
from cells.database import make_engine
from cells.ledger.model import Idempotency
from cells.ledger.worker import Lanes
from cells.reading import ReadEngine
from cells.risk.cases.factors import Factors
from cells.settings import DatabaseSettings, LaneSettings
from cells.vault import keystore
from cells.vault.keyring import keys_of
from cells.vault.keystore import open_kms
from cells.vault.model import Details, InstrumentKind, KeyPurpose, KeyState
from cells.vault.store import Vault
from cells.vault.tables import instruments, vault_lookups
from cells.vault.worker import Rotation
from control.mesh.state import MeshState
from router.errors import Refusal
from router.guard import SlotsHere
from router.policies.model import Keys
from router.slots import slot_of_user
from tests.integration import behind
from tests.integration.behind import CELL, give_away, going_on
from tests.integration.rotating import SETTINGS

pytestmark = pytest.mark.mesh
USERS = [f"rotating-{number}" for number in range(3)]
SLOTS = sorted({slot_of_user(user) for user in USERS})
KILLS = 4
_keys = itertools.count()


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshState]:
    with behind.servers(tmp_path_factory.mktemp("rotation") / "mesh") as state:
        yield state


@pytest.fixture
async def engine(state: MeshState) -> AsyncIterator[AsyncEngine]:
    async with behind.database(state) as engine:
        yield engine


@pytest.fixture
def master(tmp_path: Path) -> Path:
    path = tmp_path / "master.json"
    keystore.create(path)
    return path


@asynccontextmanager
async def vault_process(engine: AsyncEngine, master: Path, cell: str) -> AsyncIterator[Vault]:
    url = engine.url.render_as_string(hide_password=False)
    lane_engine = make_engine(url, "vault", DatabaseSettings(), pool_size=1, lanes=True)
    lanes = Lanes(lane_engine, cell, LaneSettings())
    try:
        async with going_on(*lanes.runners()):
            yield Vault(lanes, ReadEngine(engine), open_kms(str(master)))
    finally:
        await lane_engine.dispose()


def account(user: str, number: str, holder: str = "安") -> Details:
    return Details(InstrumentKind.BANK_ACCOUNT, user, number, bank="X", holder=holder)


def new_key(user: str) -> Idempotency:
    return Idempotency(user, f"key-{next(_keys)}", "Register", b"x")


async def rotating(engine: AsyncEngine, master: Path) -> Process:
    """The process, once it has retired something."""
    url = engine.url.render_as_string(hide_password=False)
    words = ["-m", "tests.integration.rotating", url, str(master), *map(str, SLOTS)]
    process = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(behind.PATIENCE_S):
        while (line := await process.stdout.readline()) == b"retired 0\n":
            pass
    assert line.startswith(b"retired "), line
    assert process.returncode is None
    return process


class Load:
    """Registers and reveals, and remembers what was answered."""

    def __init__(self, vaults: list[Vault]) -> None:
        self.vaults = vaults
        self.known: dict[tuple[str, str], str] = {}
        self.revealed = 0

    async def register(self) -> None:
        """New ones and known ones, for ever."""
        while True:
            for _ in range(4):
                await self.one(random.choice(USERS), f"{random.randrange(60):04}0000")
            await asyncio.sleep(0.002)

    async def one(self, user: str, number: str) -> None:
        vault = random.choice(self.vaults)
        try:
            row = await vault.register(account(user, number), new_key(user))
        except Refusal as refusal:
            # The keys turned faster than five tries: nothing was executed.
            assert refusal.reason == "INSTRUMENT_CHANGED", refusal
            return
        assert self.known.setdefault((user, number), row.instrument_id) == row.instrument_id

    async def reveal(self) -> None:
        while True:
            await asyncio.sleep(0.001)
            if self.known:
                await self.check(*random.choice(list(self.known.items())))

    async def check(self, said: tuple[str, str], identifier: str) -> None:
        for vault in self.vaults:
            for again in (True, False):
                try:
                    revealed = await vault.reveal(identifier)
                    break
                except Refusal as refusal:
                    # Twice in a row the key turned between the reading of the row and of it.
                    assert again, refusal
            assert revealed == BankAccount(said[1], "X", "安")
            self.revealed += 1


async def test_rotation_goes_on_from_wherever_it_was_killed(
    engine: AsyncEngine, master: Path
) -> None:
    async with AsyncExitStack() as stack:
        vaults = [
            await stack.enter_async_context(vault_process(engine, master, CELL)) for _ in range(2)
        ]
        load = Load(vaults)
        for user in USERS:
            await load.one(user, "12345678")
        async with going_on(load.register, load.register, load.reveal):
            for _ in range(KILLS):
                process = await rotating(engine, master)
                keystore.rotate(master)
                await asyncio.sleep(random.uniform(0, 0.15))
                process.kill()
                await process.wait()
        for said, identifier in load.known.items():
            await load.check(said, identifier)
        assert load.revealed > KILLS
        # What was left half done is finished, and not begun anew.
        rotation = Rotation(
            vaults[0]._lanes, SlotsHere(CELL), vaults[0], SETTINGS, lambda: [Keys()]
        )
        await rotation.look(SLOTS)
        await check_settled(engine, master)
        for said, identifier in load.known.items():
            await load.check(said, identifier)
            known = await vaults[1].register(account(*said), new_key(said[0]))
            assert known.instrument_id == identifier


async def check_settled(engine: AsyncEngine, master: Path) -> None:
    """One key for each purpose of a slot, wrapped by the current master; every row is its own."""
    current = await open_kms(str(master)).current_version()
    primaries: dict[tuple[int, str], int] = {}
    for slot in SLOTS:
        keys = await keys_of(ReadEngine(engine), slot)
        live = [key for key in keys if key.state != KeyState.RETIRED]
        assert sorted(key.purpose for key in live) == sorted(KeyPurpose)
        assert {key.state for key in live} == {KeyState.PRIMARY}
        assert {key.kms_version for key in live} == {current}
        assert not any(key.wrapped for key in keys if key.state == KeyState.RETIRED)
        assert len(keys) > 2 * KILLS
        primaries |= {(slot, key.purpose): key.version for key in live}
    async with engine.connect() as connection:
        rows = (await connection.execute(select(instruments))).all()
        lookups = (await connection.execute(select(vault_lookups))).all()
    for row in rows:
        assert row.field_key == primaries[row.slot, KeyPurpose.FIELD]
        assert row.lookup_key == primaries[row.slot, KeyPurpose.LOOKUP]
    found = {(row.slot, row.lookup_id): row.instrument_id for row in lookups}
    assert found == {(row.slot, row.lookup_id): row.instrument_id for row in rows}


async def test_whoever_owns_the_slot_next_opens_it_and_ends_the_rotation_of_the_dead(
    engine: AsyncEngine, master: Path
) -> None:
    async with AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(vault_process(engine, master, cell))
            for cell in (CELL, "b")
        ]
        user = USERS[0]
        slot = slot_of_user(user)
        row = await first.register(account(user, "12345678"), new_key(user))
        keys = await keys_of(ReadEngine(engine), slot)
        # The cell dies when the new key is there and no row is sealed by it yet.
        await first.keyring.replace(next(key for key in keys if key.purpose == KeyPurpose.FIELD))
        await give_away(engine, "b")
        rotations = [
            Rotation(vault._lanes, SlotsHere(cell), vault, SETTINGS, lambda: [Keys()])
            for vault, cell in ((first, CELL), (second, "b"))
        ]
        # The deposed one gets nothing done, whatever it believes.
        assert await rotations[0].look([slot]) == 0
        with pytest.raises(Refusal, match="NOT_OWNER"):
            await first.register(account(user, "87654321"), new_key(user))
        assert await rotations[1].look([slot]) == 1
        assert await second.reveal(row.instrument_id) == BankAccount("12345678", "X", "安")
        again = await second.register(account(user, "12345678"), new_key(user))
        assert again.instrument_id == row.instrument_id


async def test_second_factors_are_sealed_anew_and_answer_as_before(
    engine: AsyncEngine, master: Path
) -> None:
    """The key that sealed them is retired only when they have another."""
    user, slot = USERS[0], slot_of_user(USERS[0])
    async with vault_process(engine, master, CELL) as vault:
        factors = Factors(vault._lanes, vault.engine, vault.keyring, 300)
        uri = await factors.enrol(user, "", "", None)
        secret = base64.b32decode(parse_qs(urlparse(uri).query)["secret"][0])
        now = int(time.time()) // 30
        codes = [HOTP(secret, 6, SHA1()).generate(step).decode() for step in (now, now + 1)]
        sealed = await factors.confirm(user, codes[0], None)
        keys = await keys_of(vault.engine, slot)
        await vault.keyring.replace(next(key for key in keys if key.purpose == KeyPurpose.FIELD))
        # Whoever enrols with the old key meanwhile is refused, and takes the new one.
        rotation = Rotation(vault._lanes, SlotsHere(CELL), vault, SETTINGS, lambda: [Keys()])
        assert await rotation.look([slot]) == 1
        resealed = await factors.find(user)
        assert resealed is not None
        assert resealed.secret_key == sealed.secret_key + 1
        assert resealed.secret_sealed != sealed.secret_sealed
        # A code of the factor as it was is what it takes to replace it.
        assert await factors.enrol(user, codes[1], "", None) != uri
