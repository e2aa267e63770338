"""The key management service: holds the master keys, wraps and unwraps the data keys of slots.

A master key never leaves it. Every region must reach it, or a copy of it, for whoever owns a slot
next unwraps the same rows; the wrapped keys themselves lie in the database, beside what they seal.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class KmsFault(Exception):
    """The KMS cannot be asked, or does not know the key."""


class KmsRefused(KmsFault):
    """What was to be unwrapped is not what was wrapped, or not for this."""


class Wrapped(NamedTuple):
    # Of the master key.
    version: str
    data: bytes


class Kms(Protocol):
    """One master key in versions, of which one is current and older ones still unwrap.

    `context` is authenticated with the key: what was wrapped for one slot unwraps for no other.
    Calls change nothing and may be repeated; several processes call at once. An implementation
    takes its own time-outs, raises KmsFault, and never logs or quotes a key.
    """

    async def current_version(self) -> str: ...

    async def wrap(self, key: bytes, context: bytes) -> Wrapped:
        """By the current version."""
        ...

    async def unwrap(self, wrapped: Wrapped, context: bytes) -> bytes:
        """Raises KmsRefused when it is not authentic."""
        ...


class NoKms:
    """Of a cell that has no keystore: its vault stays shut."""

    async def current_version(self) -> str:
        raise KmsFault("this cell has no keystore")

    async def wrap(self, key: bytes, context: bytes) -> Wrapped:
        raise KmsFault("this cell has no keystore")

    async def unwrap(self, wrapped: Wrapped, context: bytes) -> bytes:
        raise KmsFault("this cell has no keystore")
