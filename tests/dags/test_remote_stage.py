"""Stages that share nothing but a DVC remote, as tasks of Kubeflow Pipelines do: each in a home of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dags import toy

SHARE = """
import sys
from dags import places, preparation, snapshot
from infra.kubeflow.share import share
commit_id, _ = preparation.checked_commit("shared", sys.argv[1], {}, "")
tree = snapshot.git(places.PROJECT, "rev-parse", commit_id + "^{tree}")
workspace = places.workspace("shared", "kubeflow")
snapshot.clone(places.PROJECT, commit_id, workspace)
print(tree, *share(commit_id, tree, workspace))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make(tmp_path_factory.mktemp("toy") / "project")


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("remote")


@pytest.fixture(scope="module")
def code(project: Path, remote: Path) -> str:
    """Tree of the code that the remote has, with its data."""
    command = [sys.executable, "-c", SHARE, "sample"]
    environment = toy.environment(project) | {"CSLM_DVC_REMOTE": str(remote)}
    shared = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert shared.returncode == 0, shared.stderr
    tree, *data = shared.stdout.split()
    assert data == ["data/in.dvc"]
    return tree


def _task(project: Path, home: Path, remote: Path, code: str, *what: str) -> subprocess.CompletedProcess[str]:
    """The program as an image has it: no git repository, and only its own folder of the project."""
    home.mkdir()
    image = home / "image"
    (image / "dags").mkdir(parents=True)
    for name in ("dvc_stage.py", "remote_stage.py"):
        (image / "dags" / name).write_text((project / "dags" / name).read_text())
    command = [sys.executable, image / "dags" / "remote_stage.py", "--remote", remote, "--code", code, *what]
    python = project / ".venv" / "components" / "bin"
    return subprocess.run(
        [*command, "--outputs", home / "told" / "outputs.json"],
        cwd=image,
        env={"PATH": f"{python}:/usr/bin:/bin", "HOME": str(home), "CSLM_HOME": str(home / "home")}
        | {"PYTHONPATH": str(image), "GIT_PYTHON_REFRESH": "quiet"},
        capture_output=True,
        text=True,
        check=False,
    )


def _outputs(home: Path) -> dict[str, str]:
    return dict(json.loads((home / "told" / "outputs.json").read_text()))


def _calls(home: Path) -> list[str]:
    file = home / "home" / "calls.txt"
    return file.read_text().split() if file.exists() else []


def test_a_stage_finds_what_others_have_made_and_nobody_does_it_twice(
    project: Path, remote: Path, code: str, tmp_path: Path
) -> None:
    early = _task(project, tmp_path / "early", remote, code, "--stage", "double")
    assert early.returncode == 3
    assert "double needs the outputs of ingest@one" in early.stderr
    assert not (tmp_path / "early" / "told").exists()

    for stage in ("ingest@one", "double"):
        ended = _task(project, tmp_path / stage, remote, code, "--stage", stage)
        assert ended.returncode == 0, ended.stderr
        assert f"{stage}: ran" in ended.stdout
    assert _calls(tmp_path / "double") == ["double"]
    assert set(_outputs(tmp_path / "double")) == {"work/doubled"}, "nobody reads the report"

    again = _task(project, tmp_path / "again", remote, code, "--stage", "double")
    assert "double: cached" in again.stdout, again.stderr
    assert _calls(tmp_path / "again") == []
    assert _outputs(tmp_path / "again") == _outputs(tmp_path / "double")

    last = _task(project, tmp_path / "last", remote, code, "--stage", "final")
    assert "final: ran" in last.stdout, last.stderr
    registered = _task(project, tmp_path / "register", remote, code, "--register")
    assert registered.returncode == 0, registered.stderr
    assert "registered toy with 0.043" in registered.stdout  # (21 * 2 + 1) / 1000

    gathered = toy.states(toy.pipeline(project, "gathered", remote, ref="main"))
    states = [state for stage, state in gathered.items() if stage != "commit"]
    assert states == ["cached"] * 3, "make demo REF= does again what tasks have done"


def test_code_that_nobody_shared_is_an_error_that_says_so(project: Path, remote: Path, tmp_path: Path) -> None:
    ended = _task(project, tmp_path / "home", remote, "f" * 40, "--stage", "double")
    assert ended.returncode == 3
    assert f"{remote} has no code/{'f' * 40}.tar.gz: `make kubeflow` with that CSLM_DVC_REMOTE" in ended.stderr
