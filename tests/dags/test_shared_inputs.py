"""Inputs of a run on machines that share a DVC remote, here a folder: a corpus of one's own, weights."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.dags import toy

OWN = {"corpora.one.path": "data/mine"}
CONFIGURE = "from dags import places, run; run.write_dvc_config(places.PROJECT)"


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    return tmp_path / "remote"


@pytest.fixture
def project(tmp_path: Path, remote: Path) -> Path:
    """A toy project with a corpus of its own, which is in no store yet."""
    project = toy.make(tmp_path / "project")
    (project / "data" / "mine").mkdir()
    (project / "data" / "mine" / "number").write_text("33")
    (project / "data" / "mine" / "licence").write_text("mine")  # which no stage has in its outputs
    _with_remote(project, remote, "-c", CONFIGURE)
    toy.run(project, toy.PYTHON, "-m", "dvc", "add", "--quiet", "data/mine")
    toy.run(project, "git", "add", "data")
    toy.run(project, "git", "commit", "--quiet", "--message", "a corpus")
    return project


def test_an_input_that_the_shared_store_alone_has_is_taken_from_there(project: Path, remote: Path) -> None:
    """As the weights of a version are, which another machine has made (BASE=production)."""
    _with_remote(project, remote, "-m", "dvc", "push", "--quiet", "data/mine.dvc")
    _be_another_machine(project)
    states = toy.states(toy.pipeline(project, "there", remote, overrides=OWN))
    assert {states[name] for name in ("ingest@one", "double", "final")} == {"ran"}
    assert _result(project, "there") == 0.067, "two times 33, and 1"


def test_data_that_no_stage_of_a_run_reads_need_not_be_there(project: Path, remote: Path) -> None:
    toy.states(toy.pipeline(project, "here", remote))
    _be_another_machine(project)
    states = toy.states(toy.pipeline(project, "there", remote))
    assert {states[name] for name in ("ingest@one", "double", "final")} == {"cached"}


def test_a_run_brings_its_inputs_to_the_shared_store(project: Path, remote: Path) -> None:
    """So DVC's cache need not be in a backup, and another machine can run the same commit."""
    toy.states(toy.pipeline(project, "here", remote, overrides=OWN))
    _be_another_machine(project)
    assert toy.states(toy.pipeline(project, "restored", remote, overrides=OWN))["final"] == "cached"
    forced = toy.pipeline(project, "forced", remote, overrides=OWN, force=["all"])
    assert toy.states(forced)["ingest@one"] == "ran"
    assert _result(project, "forced") == 0.067


def test_an_input_that_is_nowhere_is_named_with_where_it_was_looked_for(project: Path, remote: Path) -> None:
    _be_another_machine(project)
    process = toy.pipeline(project, "nowhere", remote, overrides=OWN)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1
    stores = f"the embedded store nor in {remote} (CSLM_DVC_REMOTE)"
    assert f"data/mine.dvc: its data is neither in the cache nor in {stores}" in told
    assert "`dvc add` it again in the checkout; with CSLM_DVC_REMOTE, a run there brings it to other" in told


def _with_remote(project: Path, remote: Path, *arguments: str) -> None:
    environment = toy.environment(project) | {"CSLM_DVC_REMOTE": str(remote)}
    subprocess.run([toy.PYTHON, *arguments], cwd=project, env=environment, check=True)


def _be_another_machine(project: Path) -> None:
    """The same commit, and neither the data nor the cache."""
    shutil.rmtree(project / "data" / "mine")
    shutil.rmtree(project / "var")


def _result(project: Path, name: str) -> float:
    metrics = json.loads((project / "var" / "runs" / name / "metrics" / "evaluation.json").read_text())
    return float(metrics["asr"]["en"]["wer"])
