"""What cellctl prints: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from cellpay.control.v1 import control_pb2 as pb
from cellpay.control.v1 import operations_pb2
from iso4217 import Currency
from rich.console import Console
from rich.table import Table

# Where nobody looks at a screen, lines are as long as they are: folded, they are no use to `grep`.
_FILE_COLUMNS = 250
console = Console(highlight=False, width=None if sys.stdout.isatty() else _FILE_COLUMNS)
errors = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _FILE_COLUMNS)

_EXPONENTS = {currency.code: currency.exponent or 0 for currency in Currency}


def decimal_amount(minor_units: int, currency: str) -> str:
    """12345 USD → "123.45"."""
    exponent = _EXPONENTS.get(currency, 0)
    sign, digits = ("-" if minor_units < 0 else ""), str(abs(minor_units)).rjust(exponent + 1, "0")
    whole, fraction = digits[: len(digits) - exponent], digits[len(digits) - exponent :]
    return f"{sign}{int(whole):,}" + (f".{fraction}" if exponent else "")


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    view = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        # The first names the row, for the next command: it must survive being copied.
        view.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        view.add_row(*(str(value) for value in row))
    console.print(view)


def range_text(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def operation_document(operation: pb.Operation) -> dict[str, Any]:
    return {
        "operation_id": operation.operation_id,
        "kind": pb.Operation.Kind.Name(operation.kind).removeprefix("KIND_").lower(),
        "step": step_name(operation.step),
        "cell": operation.cell or " ".join(operation.cells),
        "wave": operation.wave,
        "waiting": sum(piece.last - piece.first + 1 for piece in operation.rest),
        "undoes": operation.undoes,
        "undone_by": operation.undone_by,
        "actor": operation.actor,
        "reason": operation.reason,
        "moves": [
            {
                "slots": range_text(move.first, move.last),
                "source": move.source,
                "target": move.target,
                "epoch": move.epoch,
            }
            for move in operation.moves
        ],
        "history": [
            {
                "step": step_name(record.step),
                "time": record.time.ToJsonString(),
                "note": record.note,
            }
            for record in operation.history
        ],
    }


def step_name(step: pb.Operation.Step.ValueType) -> str:
    return pb.Operation.Step.Name(step).removeprefix("STEP_").lower()


def show_operation(operation: pb.Operation) -> None:
    document = operation_document(operation)
    console.print(
        f"{document['operation_id']}  {document['kind']} {document['cell']}  {document['step']}"
    )
    console.print(f"  by {document['actor']}: {document['reason']}")
    for move in document["moves"]:
        console.print(
            f"  slots {move['slots']}: {move['source']} → {move['target']}, epoch {move['epoch']}"
        )
    if document["waiting"]:
        console.print(f"  {document['waiting']} slots are not moved yet")
    for record in document["history"]:
        console.print(f"  {record['time']}  {record['step']:<10} {record['note']}")


def show_plan(plan: operations_pb2.OperationPlan) -> None:
    for piece in plan.pieces:
        console.print(
            f"  slots {range_text(piece.first, piece.last)}: {piece.source} → "
            f"{piece.target or 'whoever has head-room'}"
        )
    first = sum(move.last - move.first + 1 for move in plan.first_wave)
    total = sum(piece.last - piece.first + 1 for piece in plan.pieces)
    console.print(f"{total} slots; {first} in the first wave; {plan.waiting} would wait")
    table(
        "after the first wave",
        ("cell", "slots now", "slots then", "capacity"),
        [
            (load.cell, load.slots_now, load.slots_then, load.capacity or "unlimited")
            for load in plan.loads
        ],
    )
    console.print("nothing was changed")
