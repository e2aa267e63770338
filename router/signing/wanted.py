"""Whether a call must be signed, as the policies say. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.policies.model import SignatureMode, Signatures
from router.signing.model import Window

_WINDOW = Window()
_STRICTNESS = (SignatureMode.OFF, SignatureMode.OPTIONAL, SignatureMode.REQUIRED)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What applies to one method."""

    # Of calls that name no merchant of `merchants`.
    mode: SignatureMode = SignatureMode.OPTIONAL
    window: Window = _WINDOW
    # Merchant → its own mode.
    merchants: tuple[tuple[str, SignatureMode], ...] = ()

    def of(self, names: frozenset[str]) -> SignatureMode:
        """`names`: whom the request names. The strictest, when they differ."""
        own = [mode for merchant, mode in self.merchants if merchant in names]
        return max(own, key=_STRICTNESS.index) if own else self.mode


def wanted_of(method: str, documents: Sequence[Signatures]) -> Wanted:
    """`method`: service and method, without the first slash."""
    mine = [item for item in documents if not item.methods or method in item.methods]
    if not mine:
        return Wanted()
    window = Window(min(item.old_max_s for item in mine), min(item.ahead_max_s for item in mine))
    merchants: dict[str, SignatureMode] = {}
    for name in {name for item in mine for name in item.merchants}:
        merchants[name] = _most_specific([item for item in mine if name in item.merchants])
    general = [item for item in mine if not item.merchants]
    mode = _most_specific(general) if general else SignatureMode.OPTIONAL
    return Wanted(mode, window, tuple(sorted(merchants.items())))


def _most_specific(documents: Sequence[Signatures]) -> SignatureMode:
    by_method = [item for item in documents if item.methods] or documents
    return max((item.mode for item in by_method), key=_STRICTNESS.index)
