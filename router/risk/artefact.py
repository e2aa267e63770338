"""A trained model as a document: its text, packed, with its hash. Pure.

What the text means is router.risk.trees; here it is whole or it is not.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, with_config

from router.risk import trees
from router.risk.facts import Type

# Unpacked: more is no model but a bomb.
TEXT_BYTES_MAX = 16 * 1024 * 1024
_DOCUMENT = with_config(ConfigDict(extra="forbid", allow_inf_nan=False))


class ModelMode(StrEnum):
    # Its score is the fact `model.score`. One at the most.
    LIVE = "live"
    # It scores beside, into the records.
    SHADOW = "shadow"


class BrokenModel(ValueError):
    """The text of a model cannot be had, or is not the one that was trained."""


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class RiskModel:
    # Of the training, and shown with every decision: `2026-11-24-a`.
    version: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?$")]
    mode: ModelMode
    # Of the text, in hex.
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    # base64 of zlib of the text.
    data: Annotated[str, Field(min_length=1)]
    # The facts that it reads, features (`f.`) included: they must exist as long as it does.
    facts: Annotated[tuple[str, ...], Field(max_length=256)] = ()
    description: Annotated[str, Field(max_length=512)] = ""


def pack(text: bytes, version: str, mode: ModelMode, facts: tuple[str, ...] = ()) -> RiskModel:
    data = base64.b64encode(zlib.compress(text, 9)).decode("ascii")
    return RiskModel(version, mode, hashlib.sha256(text).hexdigest(), data, facts)


def text_of(model: RiskModel) -> bytes:
    """Raises BrokenModel."""
    try:
        packed = base64.b64decode(model.data, validate=True)
        inflating = zlib.decompressobj()
        text = inflating.decompress(packed, TEXT_BYTES_MAX)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise BrokenModel("is no base64 of zlib") from error
    if not inflating.eof:
        raise BrokenModel(f"ends too early, or unpacks to more than {TEXT_BYTES_MAX} bytes")
    if hashlib.sha256(text).hexdigest() != model.sha256:
        raise BrokenModel("is not what sha256 says")
    return text


def faults(document: RiskModel, types: Mapping[str, Type]) -> Iterator[tuple[str, str]]:
    """What is wrong beyond the document's shape: (field, why)."""
    try:
        model = trees.parse(text_of(document), types)
    except (BrokenModel, trees.BadModel) as error:
        yield "data", str(error)
    else:
        if model.version != document.version:
            yield "version", f"the text is that of {model.version}"
        untold = sorted({*trees.facts_of(model)} - {*document.facts})
        if untold:
            yield "facts", f"it reads {', '.join(untold[:5])} too"
    for number, name in enumerate(document.facts):
        if name not in types:
            yield f"facts[{number}]", f"{name} is unknown"
