"""Hypothesis draws the same examples on every run, and is patient on busy machines."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
