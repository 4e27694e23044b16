"""A toy project that several tests share, or take a fresh one of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dags import toy


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy project with no run yet; tests of one module use it in the order they are written."""
    return toy.make(tmp_path_factory.mktemp("toy") / "project")
