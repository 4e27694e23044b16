"""What holds for all tests: the same examples on every run, and the environment as it was after each."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

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
