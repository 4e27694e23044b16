"""The lanes of the slow tests, and one first run for them, with everything in an object store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from xdist.scheduler import LoadFileScheduling

from tests.end_to_end import checkout
from tests.object_store import BUCKET, WRITER, ObjectStore
from tests.slow import podman

ONE_RUN = (
    "test_images",
    "test_kubeflow",
    "test_kubernetes",
    "test_object_store",
    "test_pages",
    "test_registered_base",
)
"""Files that go on from the run `first`, in this order: the last one registers another version."""


class Lanes(LoadFileScheduling):
    """For `make test-slow`: a process has all tests of a file, and one has those of `ONE_RUN`."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "one run" if Path(file).stem in ONE_RUN else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Lanes:
    """Not by marks for `--dist loadgroup`, which pytest-xdist 3.8 does not see in pytest 9.2."""
    return Lanes(config, log)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables that put outputs, artifacts and checkpoints into an object store."""
    with ObjectStore(tmp_path_factory.mktemp("store")) as server, pytest.MonkeyPatch.context() as patch:
        variables = server.environment(WRITER)
        for name, value in variables.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield variables | {
            "CSLM_DVC_REMOTE": f"s3://{BUCKET}/dvc",
            "CSLM_ARTIFACTS": f"s3://{BUCKET}/mlflow",
            "CSLM_CHECKPOINTS": f"s3://{BUCKET}/checkpoints",
        }


@pytest.fixture(scope="session")
def first(clone: Path, store: dict[str, str]) -> str:
    """Output of the first run: nothing is cached anywhere."""
    return checkout.demo(clone, RUN="first", **store)[0]


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables that name a running container engine."""
    with podman.service(tmp_path_factory.mktemp("podman")) as variables:
        yield variables


@pytest.fixture(scope="session")
def images(clone: Path, engine: dict[str, str]) -> dict[str, str]:
    """Component -> its image, for all stages."""
    return podman.build(clone, engine)
