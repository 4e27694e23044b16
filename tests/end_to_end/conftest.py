"""One clone and one first run for all end-to-end tests, which use them in the order of their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end import checkout


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the checkout as it is."""
    if not checkout.ORCHESTRATOR.exists():
        pytest.skip("no .venv/orchestrator here: run `make setup`")
    return checkout.make(tmp_path_factory.mktemp("end_to_end") / "clone")


@pytest.fixture(scope="session")
def first(clone: Path) -> tuple[str, float]:
    """Output and seconds of the first run: nothing is cached."""
    return checkout.demo(clone, RUN="first")
