"""One decision as it is kept in the stream: features are computed from it, replays run over it.

A message holds many: a JSON array, newest last, of arrays in the order of the classes' fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

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


class _Seen(msgspec.Struct, array_like=True):
    """A record as far as features need it; what stands behind is not even made."""

    decision_id: str
    observation: Observation


_ENCODER = msgspec.json.Encoder()
_RECORDS = msgspec.json.Decoder(list[Record])
_SEEN = msgspec.json.Decoder(list[_Seen])


def encode(records: Sequence[Record]) -> bytes:
    """Raises ValueError for text that is no Unicode."""
    return _ENCODER.encode(records)


def decode(data: bytes) -> list[Record]:
    """Raises ValueError for what is no array of records."""
    try:
        return _RECORDS.decode(data)
    except msgspec.DecodeError as error:
        raise ValueError(f"no array of records: {error}") from error


def observations(data: bytes) -> list[Observation]:
    """Of an array of records, for who counts. Raises ValueError as `decode` does, though facts are
    not looked at."""
    try:
        return [item.observation for item in _SEEN.decode(data)]
    except msgspec.DecodeError as error:
        raise ValueError(f"no array of records: {error}") from error
