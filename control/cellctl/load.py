"""`cellctl load`: replays purchases from a CSV file through the SDK.

Each row becomes an order and its payment; users, merchants and their money are opened and funded
where missing. Every write carries a key made from the row, so a run that was cut short goes on
where it stopped and a second run changes nothing (invariant 2).
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated

import grpc
import typer
from cellpay.accounts.v1 import accounts_pb2
from cellpay.money.v1.money_pb2 import Money
from cellpay.orders.v1 import orders_pb2
from cellpay.payments.v1 import payments_pb2
from iso4217 import Currency
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from control.cellctl.failures import NotLoadable
from control.cellctl.options import DATA, DEFAULT_DATA
from control.cellctl.session import Session
from control.cellctl.show import console, decimal_amount, errors
from router.client import CallPolicy, Mesh
from router.errors import Refusal, details_of

COLUMNS = ("user_id", "ordered_at", "merchant_id", "amount", "currency")
AMOUNT_MAX_MINOR = 2**53
_EXPONENTS = {currency.code: currency.exponent or 0 for currency in Currency}
_NAME_CHARACTERS_MAX = 64
_FUNDING_TRIES_MAX = 5


@dataclass(frozen=True, slots=True)
class Purchase:
    """One good row."""

    line: int
    user_id: str
    ordered_at: str
    merchant_id: str
    amount_minor: int
    currency: str
    # Made from the row's content and its occurrence in the file.
    key: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """One bad row, and why."""

    line: int
    reason: str
    row: tuple[str, ...]


@dataclass(slots=True)
class LoadReport:
    rows: int = 0
    paid: int = 0
    # Rows that an earlier run had paid.
    found_paid: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    # (merchant, currency) → minor units, of the rows that are paid now.
    merchants: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def payments_per_s(self) -> float:
        return self.paid / self.seconds if self.seconds else 0.0


def read_purchases(path: Path) -> tuple[list[Purchase], list[Rejected]]:
    """The file's rows, good and bad. Raises NotLoadable when its header is not ours."""
    good: list[Purchase] = []
    bad: list[Rejected] = []
    occurrences: Counter[tuple[str, ...]] = Counter()
    # Undecodable bytes become surrogates: they spoil their row, not the file.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        header = next(reader, None)
        if header is None or tuple(header) != COLUMNS:
            raise NotLoadable(f"{path}: the first line must be {','.join(COLUMNS)}")
        for row in reader:
            if not row:
                continue
            values = tuple(row)
            occurrences[values] += 1
            try:
                good.append(_purchase(reader.line_num, values, occurrences[values]))
            except ValueError as error:
                bad.append(Rejected(reader.line_num, str(error), values))
    return good, bad


def _purchase(line: int, row: tuple[str, ...], occurrence: int) -> Purchase:
    if len(row) != len(COLUMNS):
        raise ValueError(f"has {len(row)} columns, not {len(COLUMNS)}")
    user_id, ordered_at, merchant_id, amount, currency = row
    for name, value in (("user_id", user_id), ("merchant_id", merchant_id)):
        if not value or len(value) > _NAME_CHARACTERS_MAX or not value.isprintable():
            raise ValueError(f"{name} must be 1 to {_NAME_CHARACTERS_MAX} printable characters")
    if user_id == merchant_id:
        raise ValueError("user_id and merchant_id are the same")
    try:
        datetime.fromisoformat(ordered_at)
    except ValueError:
        raise ValueError(f"ordered_at {ordered_at!r} is no ISO 8601 date") from None
    minor = _minor_units(amount, currency)
    digest = hashlib.sha256("\x1f".join((*row, str(occurrence))).encode()).hexdigest()
    return Purchase(line, user_id, ordered_at, merchant_id, minor, currency, f"load-{digest[:40]}")


def _minor_units(amount: str, currency: str) -> int:
    """A decimal amount in minor units, exactly (ISO 4217 exponents: JPY 0, USD 2, KWD 3)."""
    if currency not in _EXPONENTS:
        raise ValueError(f"currency {currency!r} is no ISO 4217 code")
    try:
        minor = Decimal(amount).scaleb(_EXPONENTS[currency])
    except InvalidOperation:
        raise ValueError(f"amount {amount!r} is no decimal number") from None
    if not minor.is_finite() or minor != minor.to_integral_value():
        raise ValueError(f"amount {amount} has more digits than {currency} has")
    if not 0 < minor <= AMOUNT_MAX_MINOR:
        raise ValueError(f"amount {amount} must be greater than zero and at most 2^53 minor units")
    return int(minor)


def write_rejected(path: Path, rejected: Iterable[Rejected]) -> None:
    """The side file: line number, reason, then the row as it stood."""
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("line", "reason", *COLUMNS))
        for entry in sorted(rejected, key=lambda entry: entry.line):
            writer.writerow((entry.line, entry.reason, *entry.row))


class Loader:
    """Replays purchases: users in parallel, each user's rows in the order of the file."""

    def __init__(
        self, mesh: Mesh, *, concurrency_max: int, on_paid: Callable[[LoadReport], None]
    ) -> None:
        self._mesh = mesh
        self._limit = asyncio.Semaphore(concurrency_max)
        self._on_paid = on_paid
        self.report = LoadReport()

    async def run(self, purchases: list[Purchase], rejected: list[Rejected]) -> LoadReport:
        start = time.monotonic()
        self.report.rows = len(purchases) + len(rejected)
        self.report.rejected = list(rejected)
        merchants = {(item.merchant_id, item.currency) for item in purchases}
        for merchant_id, currency in sorted(merchants):
            await self._open(merchant_id, currency, accounts_pb2.Account.KIND_MERCHANT)
        users: dict[tuple[str, str], list[Purchase]] = defaultdict(list)
        for item in purchases:
            users[(item.user_id, item.currency)].append(item)
        async with asyncio.TaskGroup() as group:
            for (user_id, currency), items in users.items():
                group.create_task(self._user(user_id, currency, items))
        self.report.seconds = time.monotonic() - start
        return self.report

    async def _user(self, user_id: str, currency: str, items: list[Purchase]) -> None:
        async with self._limit:
            try:
                await self._open(user_id, currency, accounts_pb2.Account.KIND_PERSON)
            except (grpc.aio.AioRpcError, Refusal) as error:
                for item in items:
                    self._reject(item, error)
                return
            unpaid: list[tuple[Purchase, str]] = []
            for item in items:
                order = await self._order(item)
                if order is None:
                    continue
                if order.state == orders_pb2.Order.STATE_PAID:
                    self.report.found_paid += 1
                    self._count(item)
                else:
                    unpaid.append((item, order.order_id))
            await self._fund(user_id, currency, unpaid)
            while unpaid:
                item, order_id = unpaid[0]
                if await self._pay(item, order_id, unpaid):
                    self.report.paid += 1
                    self._count(item)
                unpaid.pop(0)

    def _count(self, item: Purchase) -> None:
        self.report.merchants[(item.merchant_id, item.currency)] += item.amount_minor
        self._on_paid(self.report)

    def _reject(self, item: Purchase, error: Exception) -> None:
        reason = str(error)
        if isinstance(error, grpc.aio.AioRpcError):
            reason = details_of(error).reason or error.code().name
            reason = f"{reason}: {error.details()}"
        row = (
            item.user_id,
            item.ordered_at,
            item.merchant_id,
            str(item.amount_minor),
            item.currency,
        )
        self.report.rejected.append(Rejected(item.line, reason, row))

    async def _open(
        self, user_id: str, currency: str, kind: accounts_pb2.Account.Kind.ValueType
    ) -> None:
        await self._mesh.accounts.OpenAccount(
            accounts_pb2.OpenAccountRequest(
                user_id=user_id, currency=currency, kind=kind,
                idempotency_key=f"load-open-{currency}-{kind}",
            )
        )  # fmt: skip

    async def _order(self, item: Purchase) -> orders_pb2.Order | None:
        try:
            return await self._mesh.orders.CreateOrder(
                orders_pb2.CreateOrderRequest(
                    payer_id=item.user_id,
                    merchant_id=item.merchant_id,
                    amount=Money(currency=item.currency, minor_units=item.amount_minor),
                    description=f"ordered {item.ordered_at}",
                    idempotency_key=item.key,
                )
            )
        except (grpc.aio.AioRpcError, Refusal) as error:
            self._reject(item, error)
            return None

    async def _fund(self, user_id: str, currency: str, unpaid: list[tuple[Purchase, str]]) -> None:
        """Deposits what the balance lacks for the unpaid rows; nothing when it suffices."""
        if not unpaid:
            return
        balance = await self._mesh.accounts.GetBalance(
            accounts_pb2.GetBalanceRequest(user_id=user_id, currency=currency)
        )
        available = balance.available.minor_units
        missing = sum(item.amount_minor for item, _ in unpaid) - available
        if missing <= 0:
            return
        # The key names what it is for and what it starts from: a repeat of the same need is one.
        need = hashlib.sha256(
            "\x1f".join([str(available), *(order_id for _, order_id in unpaid)]).encode()
        ).hexdigest()
        await self._mesh.accounts.Deposit(
            accounts_pb2.DepositRequest(
                user_id=user_id,
                amount=Money(currency=currency, minor_units=missing),
                idempotency_key=f"load-fund-{need[:40]}",
            )
        )

    async def _pay(self, item: Purchase, order_id: str, unpaid: list[tuple[Purchase, str]]) -> bool:
        for _ in range(_FUNDING_TRIES_MAX):
            try:
                await self._mesh.payments.Pay(
                    payments_pb2.PayRequest(order_id=order_id, idempotency_key=item.key)
                )
                return True
            except grpc.aio.AioRpcError as error:
                failure = error
                if details_of(error).reason != "INSUFFICIENT_FUNDS":
                    break
                # Somebody else spent from this account meanwhile.
                await self._fund(item.user_id, item.currency, unpaid)
        self._reject(item, failure)
        return False


def load(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)],
    data: DATA = DEFAULT_DATA,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Users at once.")] = 32,
) -> None:
    """Replays purchases from a CSV file; a second run of the same file adds nothing."""
    side_file = file.with_name(f"{file.stem}.rejected.csv")
    report = asyncio.run(_load(file, data, concurrency))
    if report.rejected:
        write_rejected(side_file, report.rejected)
    _show(report, str(side_file))


async def _load(file: Path, data: Path, concurrency: int) -> LoadReport:
    purchases, rejected = read_purchases(file)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    async with Session.open(data).mesh(CallPolicy(timeout_s=60)) as mesh:
        with Progress(*columns, console=errors, transient=True) as bar:
            task = bar.add_task(file.name, total=len(purchases))
            loader = Loader(mesh, concurrency_max=concurrency, on_paid=lambda _: bar.advance(task))
            return await loader.run(purchases, rejected)


def _show(report: LoadReport, side_file: str) -> None:
    for (merchant_id, currency), minor in sorted(report.merchants.items()):
        console.print(f"  {merchant_id}: {decimal_amount(minor, currency)} {currency}")
    console.print(
        f"{report.rows} rows: {report.paid} paid now, {report.found_paid} were paid before, "
        f"{len(report.rejected)} rejected; {report.seconds:.1f} s, "
        f"{report.payments_per_s:.0f} payments/s"
    )
    if report.rejected:
        console.print(f"rejected rows, with line numbers and reasons: {side_file}")
