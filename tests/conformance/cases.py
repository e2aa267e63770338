"""The adapters that are held to the suite: a line each in CASES.

A case tells how its simulated bank and its channel are configured, and what its codes mean.
What an adapter cannot do at all (`Channel.operations`) is not asked of it, beside that it refuses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cells.channels.interface import StatementSource
from cells.channels.model import AnswerReason, BankAccount, Card, ChannelSettings
from tests.conformance.clearing_house import House
from tests.conformance.process import ROOT

# A day that does not change under a test that begins before midnight.
BEHAVIOUR = {"day": datetime.now(UTC).date().isoformat()}
CARD = Card("6222021234567890123", "3012", "unionpay", "WANG FANG")
ACCOUNT = BankAccount("6217000010001234567", "102100099996", "WANG FANG")


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    # What `python -m banks` is told.
    bank: Callable[[Path], Mapping[str, Any]]
    # The channel to it, by the ports that the bank printed.
    channel: Callable[[Mapping[str, int], Path], ChannelSettings]
    # Where the kind's statements come from, when not from the adapter itself.
    statements: StatementSource | None = None
    # The bank's codes for a refusal for good, and for one that was the channel's own.
    declined: tuple[str, AnswerReason] = ("51", AnswerReason.INSUFFICIENT_FUNDS)
    failed: tuple[str, AnswerReason] = ("91", AnswerReason.ISSUER_UNAVAILABLE)
    # What maintenance is called.
    closed: AnswerReason = AnswerReason.CHANNEL_CLOSED
    # Answers carry a MAC or a signature.
    sealed: bool = True
    # A misreading that the adapter may meet at once, or only by the time running out.
    garbled: frozenset[AnswerReason] = field(
        default_factory=lambda: frozenset({AnswerReason.TIMED_OUT, AnswerReason.MALFORMED})
    )


def _iso8583(dialect_name: str, master_key: str = "") -> Case:
    """A dialect of examples/channels."""
    path = ROOT / "examples/channels" / f"{dialect_name}.json"
    dialect = json.loads(path.read_text(encoding="utf-8"))

    def keys(folder: Path) -> Mapping[str, str]:
        if not master_key:
            return {}
        path = folder / "zone-master-key"
        path.write_text(master_key, encoding="ascii")
        return {"zone_master_key_file": str(path)}

    def bank(folder: Path) -> Mapping[str, Any]:
        options = {"dialect": dialect, **keys(folder)}
        return {
            "name": dialect_name,
            "kind": "iso8583",
            "behaviour": BEHAVIOUR,
            "options": options,
        }

    def channel(ports: Mapping[str, int], folder: Path) -> ChannelSettings:
        options = {
            "host": "127.0.0.1",
            "port": ports["iso8583"],
            "dialect": dialect,
            "backoff_first_s": 0.05,
            "backoff_last_s": 0.2,
            "ready_wait_s": 2.0,
            "repeat_s": 0.2,
            **keys(folder),
        }
        return ChannelSettings(dialect_name, "iso8583", options, ("CNY",), ("unionpay",))

    return Case(dialect_name, bank, channel, sealed=bool(master_key))


def _clearing() -> Case:
    """The folder has the keys; both sides are told in the same one."""

    def bank(folder: Path) -> Mapping[str, Any]:
        return House(folder).bank(**BEHAVIOUR)

    def channel(ports: Mapping[str, int], folder: Path) -> ChannelSettings:
        return House.found(folder).channel(ports, repeat_s=0.2)

    return Case("clearing", bank, channel)


CASES = [
    _clearing(),
    _iso8583("iso8583-ascii"),
    _iso8583("iso8583-bcd-tpdu", "0123456789ABCDEFFEDCBA9876543210"),
    _iso8583("iso8583-aes", "000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F"),
]
