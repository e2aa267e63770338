"""What a bank's process is told at its start. All but `name` and `kind` has a default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import time
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from banks.behaviour import DOCUMENT, Behaviour
from banks.statement import StatementOrders
from banks.statements import StatementOptions


@DOCUMENT
@dataclass(frozen=True, slots=True)
class BankSettings:
    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]
    # The tongue (banks.kinds).
    kind: str
    # What the tongue needs: a field specification, keys, ports; each reads its own.
    options: Mapping[str, object] = field(default_factory=dict)
    behaviour: Behaviour = field(default_factory=Behaviour)
    statement: StatementOrders = field(default_factory=StatementOrders)
    # Where its statements can be fetched; None: nowhere.
    statements: StatementOptions | None = None
    # Of the control API; 0: a free one.
    control_port: Annotated[int, Field(ge=0, le=65_535)] = 0
    # When the bank's next day begins, in its zone; midnight: with the calendar.
    cut_off: time = time(0, 0)
    zone: str = "UTC"
    # Ends when the process that started it does. Off: until a signal (a sandbox of one's own).
    ends_with_parent: bool = True


_ADAPTER = TypeAdapter(BankSettings)


def read(path: Path) -> BankSettings:
    return _ADAPTER.validate_json(path.read_bytes())
