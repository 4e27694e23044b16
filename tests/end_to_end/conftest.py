"""One first run for all end-to-end tests, which use it in the order of their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end import checkout


@pytest.fixture(scope="session")
def first(clone: Path) -> tuple[str, float]:
    """Output and seconds of the first run: nothing is cached."""
    return checkout.demo(clone, RUN="first")
