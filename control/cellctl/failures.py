"""What ends a command with one plain sentence."""

from __future__ import annotations


class MissingValue(Exception):
    """An option at the end of the line, without what should follow it."""


class NoMesh(Exception):
    """There is no mesh in this directory; says how to start one."""


class NotLoadable(ValueError):
    """A file that as a whole cannot be read as purchases."""
