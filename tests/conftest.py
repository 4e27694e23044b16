"""What holds for all tests: the same examples on every run, the environment as it was after each, one clone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.end_to_end import checkout

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def environment_put_back() -> Iterator[None]:
    """Libraries write to the environment (`mlflow.set_tracking_uri` does); no later test may inherit that."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the checkout as it is."""
    if not checkout.ORCHESTRATOR.exists():
        pytest.skip("no .venv/orchestrator here: run `make setup`")
    return checkout.make(tmp_path_factory.mktemp("checkout") / "clone")
