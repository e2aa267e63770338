"""Moderate runs: the folder ends within a minute on one core."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("moderate", max_examples=60, deadline=None)
settings.load_profile("moderate")
