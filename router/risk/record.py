"""One decision as it is kept in the stream: features are computed from it, replays run over it.

A message holds many: a JSON array, newest last, of arrays in the order of the classes' fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import TypeAdapter

from router.risk.facts import Value
from router.risk.features import Observation

# Each cell its own subject of the stream RISK: `cellpay.risk.records.<cell>`.
STREAM = "RISK"
SUBJECT_PREFIX = "cellpay.risk.records."


class Record(NamedTuple):
    """What was asked, what was known, what was decided."""

    # Carries the slot of the user's home, as every ID.
    decision_id: str
    observation: Observation
    # All that the rules could see, features and score included.
    facts: Mapping[str, Value]
    action: str
    reasons: tuple[str, ...]
    # Names of the rules that matched; those in shadow apart.
    hits: tuple[str, ...]
    shadow_hits: tuple[str, ...]
    rules_version: int
    model_version: str
    # What could not be asked: features, model.
    without: tuple[str, ...]
    # The facts that moved the model's score most.
    factors: tuple[tuple[str, float], ...] = ()
    # Scores of models in shadow: (version, score).
    shadow_scores: tuple[tuple[str, float], ...] = ()


_RECORDS = TypeAdapter(list[Record])


def encode(records: Sequence[Record]) -> bytes:
    return _RECORDS.dump_json(list(records))


def decode(data: bytes) -> list[Record]:
    """Raises ValueError for what is no array of records."""
    return _RECORDS.validate_json(data)
