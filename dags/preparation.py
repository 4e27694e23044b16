"""The first task of a run: commit what is to be run, check it, open its branch and MLflow run.

It makes the facts that all later tasks get: run, commit, profile, airflow_run, data_version, mlflow_run, force,
and the items of each `foreach` stage. They are short strings and lists, as XCom wants.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from dags import continuation, datasets, events, graph, parameters, places, run, snapshot, tracking

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}")
OLD_S = 86400
MODEL = "cslm"
"""Registered model, where the parameters name none."""


def name_of(airflow_run: str, when: datetime.datetime) -> str:
    """A run's name for branches and folders: time, and four letters of Airflow's own id against ties."""
    return f"{when:%Y%m%d-%H%M%S}-{hashlib.sha256(airflow_run.encode()).hexdigest()[:4]}"


def prepare(
    name: str,
    profile: str,
    overrides: dict[str, Any],
    ref: str,
    force: list[str],
    log: run.Log,
    base: str = "",
    why: str = "",
    airflow_run: str = "",
) -> run.Facts:
    """Commit what is to be run, check its parameters, and open its branch and MLflow run.

    `base` is a version of the registered model (number or alias) to continue from; `why` and Airflow's
    own name of the run are noted in MLflow.

    Raises:
        run.RunFailed: a bad name, profile, reference, parameter or corpus path; nothing has been run then.
    """
    _check_name(name)
    with run.reported_run(name):
        project = places.PROJECT
        commit_id, params = checked_commit(name, profile, overrides, ref, base)
        stages = graph.read_graph(project / "dvc.yaml")
        known = graph.addresses(stages, params)
        check_force(force, stages, known)
        try:
            commit_id = snapshot.branch(project, f"runs/{name}", commit_id, run.results_message(name))
        except snapshot.SnapshotFailed as error:
            raise run.RunFailed(f"prepare: {error}") from error
        log(f"run {name}: commit {commit_id} (branch runs/{name}), profile {params.get('profile', profile)}")
        tags = {
            "git_commit": commit_id,
            "profile": str(params.get("profile", profile)),
            "airflow_run": airflow_run,
            "mlflow.note.content": why,
        }
        data = datasets.tracked(params, lambda path: snapshot.text(project, commit_id, path))
        facts: run.Facts = {
            "run": name,
            "commit": commit_id,
            "profile": tags["profile"],
            "model": _model_of(params),
            "airflow_run": airflow_run,
            "data_version": datasets.version(data),
            "force": force,
            "mlflow_run": tracking.start(name, tags, params, data),
        }
        facts |= {s.name: graph.items(s, params) for s in stages.values() if s.foreach is not None}
        events.emit(places.results(name), "", "prepared", stages=known, **facts)
        return facts


def checked_commit(
    name: str, profile: str, overrides: dict[str, Any], ref: str, base: str = ""
) -> tuple[str, dict[str, Any]]:
    """Commit of what is to be run, and its parameters: both are checked, and the commit has no branch yet.

    Raises:
        run.RunFailed: a bad name, profile, reference, parameter or corpus path.
    """
    _check_name(name)
    try:
        files: dict[str, bytes] = {}
        if base:
            continued, files = continuation.of_version(_model(profile, overrides), base)
            overrides = continued | overrides
        commit_id, params = _commit(name, profile, overrides, ref, files)
        graph.addresses(graph.read_graph(places.PROJECT / "dvc.yaml"), params)
        _check_data(commit_id, params)
        if not ref:
            _check_unchanged(commit_id, params)
    except (
        snapshot.SnapshotFailed,
        parameters.BadParameters,
        graph.BadGraph,
        continuation.CannotContinue,
        tracking.TrackingFailed,
    ) as error:
        raise run.failed(f"prepare: {error}", error) from error
    return commit_id, params


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise run.RunFailed(f"name of the run {name!r}: letters, digits, dot, dash and underscore, please")


def _model(profile: str, overrides: dict[str, Any]) -> str:
    """Name under which the run registers its model."""
    return _model_of(parameters.merged(places.PROJECT, profile, overrides) or {})


def _model_of(params: dict[str, Any]) -> str:
    return str(params.get("register", {}).get("model", MODEL))


def _commit(
    name: str, profile: str, overrides: dict[str, Any], ref: str, files: dict[str, bytes]
) -> tuple[str, dict[str, Any]]:
    """Commit of the run and its parameters, both checked by the components' own rules."""
    project = source = places.PROJECT
    _drop_old_files()
    checked = places.workspace(name, "prepare")
    if ref:
        snapshot.clone(project, snapshot.resolve(project, ref) or ref, checked)
        source = checked
    merged = parameters.merged(source, profile, overrides)
    changed = dict(files)
    if merged is not None:
        changed["params.yaml"] = yaml.safe_dump(merged, sort_keys=False, allow_unicode=True).encode()
    if graph_text := graph.without_null_deps(
        source / "dvc.yaml", merged or parameters.read(source / "params.yaml")
    ):
        changed["dvc.yaml"] = graph_text
    commit_id = snapshot.commit(project, ref, changed, f"Run {name}, profile {profile}")
    snapshot.clone(project, commit_id, checked)
    command = [run.python(), "-m", "components.settings", "params.yaml"]
    environment = places.stage_environment({"run": name, "commit": commit_id, "mlflow_run": ""})
    try:
        result = subprocess.run(
            command, cwd=checked, env=environment, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise run.RunFailed(f"prepare: {error.filename} is not there: run `make setup`") from error
    if result.returncode:
        where = f" (params.yaml with profile {profile} and overrides {overrides})" if merged else ""
        raise run.RunFailed(f"prepare: bad parameters{where}\n{result.stderr.strip()}")
    params = parameters.read(checked / "params.yaml")
    shutil.rmtree(checked, ignore_errors=True)
    return commit_id, params


def check_force(force: list[str], stages: dict[str, graph.Stage], known: list[str]) -> None:
    """Only what the run has can be forced.

    Raises:
        run.RunFailed: a stage that the graph does not have.
    """
    unknown = set(force) - {"all", *stages, *known}
    if unknown:
        raise run.RunFailed(
            f"prepare: no stage {', '.join(sorted(unknown))} to force; there are: all, {', '.join(known)}"
        )


def _check_data(commit_id: str, params: dict[str, Any]) -> None:
    """Corpora and checkpoints must be where a workspace finds them: in DVC or git, or at an absolute path."""
    for key, path in data(params).items():
        if not _found(commit_id, Path(path)):
            raise run.RunFailed(
                f"prepare: params.yaml: {key} = {path!r}: nothing of that name in DVC, git or on disk. Put it "
                f"into this folder and under version control (.venv/orchestrator/bin/dvc add {path}), or give "
                "an absolute path"
            )


def _check_unchanged(commit_id: str, params: dict[str, Any]) -> None:
    """What DVC tracks must be as `dvc add` last saw it: a run takes it from there, not from here."""
    paths = {path for path in map(Path, data(params).values()) if not path.is_absolute()}
    pointers = {f"{part}.dvc" for path in paths for part in (path, *path.parents) if part.name}
    tracked = sorted(
        name
        for name in pointers
        if (places.PROJECT / name).exists() and snapshot.tracked(places.PROJECT, commit_id, name)
    )
    if not tracked:
        return
    result = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json", *tracked],
        cwd=places.PROJECT,
        env={**os.environ, **places.dvc_environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise run.RunFailed(f"prepare: dvc status {' '.join(tracked)}: {result.stderr.strip()}")
    for pointer, changes in json.loads(result.stdout or "{}").items():
        outs = {
            out: state
            for change in changes
            if isinstance(change, dict)
            for out, state in change.get("changed outs", {}).items()
        }
        if "modified" in outs.values():
            path = pointer.removesuffix(".dvc")
            raise run.RunFailed(
                f"prepare: {path} has changed since it was given to DVC, and a run would not see that. Keep "
                f"the change (.venv/orchestrator/bin/dvc add {path}) or drop it (.venv/orchestrator/bin/dvc "
                f"checkout {path})"
            )


def data(params: dict[str, Any]) -> dict[str, str]:
    """Keys of params.yaml that name data, and what they name."""
    paths = {f"corpora.{key}.path": corpus["path"] for key, corpus in params.get("corpora", {}).items()}
    return paths | {
        f"{section}.checkpoint": values["checkpoint"]
        for section, values in params.items()
        if isinstance(values, dict) and values.get("checkpoint")
    }


def _found(commit_id: str, path: Path) -> bool:
    if path.is_absolute():
        return path.exists()
    if ".." in path.parts:  # a workspace lies elsewhere
        return False
    names = [str(path), *(f"{part}.dvc" for part in (path, *path.parents) if part.name)]
    return any(snapshot.tracked(places.PROJECT, commit_id, name) for name in names)


def _drop_old_files() -> None:
    """Workspaces of failed stages, kept for a look until the next run, and what killed ones left half done.

    A day protects a run beside this one.
    """
    home = places.home()
    half_done = [*home.glob("scratch-*"), *(home / "checkpoints").glob(".*")]
    for folder in [*(home / "workspaces").glob("*"), *half_done]:
        signs_of_life = [folder, *folder.glob("*"), *(home / "logs" / folder.name).glob("*")]
        with suppress(FileNotFoundError):  # another run has removed it
            if time.time() - max(path.stat().st_mtime for path in signs_of_life) > OLD_S:
                shutil.rmtree(folder, ignore_errors=True)
