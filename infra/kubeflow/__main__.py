"""Compile the graph of dvc.yaml for Kubeflow Pipelines, and run it here if asked to.

Run:  make kubeflow PROFILE=sample              (python -m infra.kubeflow)
      make kubeflow-local PROFILE=test          (python -m infra.kubeflow --local)

SET, FORCE, REF and BASE work as in `make demo`. The run's code and data go to CSLM_DVC_REMOTE, which all tasks
share; without it to the DVC cache in CSLM_HOME, which only containers of this machine can reach.
Exit code: 0 done, 1 it cannot be compiled or a task failed, 2 a bad request.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from dags import graph, parameters, places, preparation, run, snapshot
from infra.kubeflow.plan import SECRET, plan, tracked
from infra.kubeflow.share import share

PYTHON = places.PROJECT / ".venv" / "kubeflow" / "bin" / "python"
REMOTE = "CSLM_DVC_REMOTE"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", action="store_true", help="run it here by kfp.local")
    here = parser.parse_args().local
    profile = os.environ.get("PROFILE") or parameters.DEFAULT_PROFILE
    folder = places.home() / "dvc-cache"
    remote = os.environ.get(REMOTE) or str(folder)
    if here and "://" in remote:
        return _fail(
            f"kfp.local gives its containers no keys, so they cannot share {remote}: unset {REMOTE}, or name a "
            "folder",
            2,
        )
    if "://" not in remote:
        remote = str(Path(remote).absolute())
        Path(remote).mkdir(parents=True, exist_ok=True)
    os.environ[REMOTE] = remote
    if here:
        os.environ.pop("CSLM_CHECKPOINTS", None)  # for which containers here have no keys either
        os.environ["CSLM_GPUS"] = "0"  # which kfp.local does not give them
    try:
        overrides = parameters.given(os.environ.get("SET", ""))
    except parameters.BadParameters as error:
        return _fail(str(error), 2)
    try:
        made, file = _compile(profile, overrides, remote)
    except (run.RunFailed, snapshot.SnapshotFailed, ValueError) as error:
        return _fail(str(error))
    if here:
        return _run_here(file, Path(remote), made)
    print(_told(made, file))
    return 0


def _compile(profile: str, overrides: dict[str, Any], remote: str) -> tuple[dict[str, Any], Path]:
    """Commit and share what is to be run, and compile it; the plan and its YAML.

    The run's name and branch come from the git tree: what has not changed is the same run, and the same YAML.
    """
    wish = os.environ.get("RUN") or f"kubeflow-{profile}"
    force = os.environ.get("FORCE", "").replace(",", " ").split()
    base, ref = os.environ.get("BASE", ""), os.environ.get("REF", "")
    commit_id, params = preparation.checked_commit(wish, profile, overrides, ref, base)
    for key, path in preparation.data(params).items():
        if Path(path).is_absolute():
            raise run.RunFailed(
                f"params.yaml: {key} = {path!r}: tasks see nothing of this machine. Put it into this folder "
                "and under DVC (.venv/orchestrator/bin/dvc add), and name it by its path here"
            )
    tree = snapshot.git(places.PROJECT, "rev-parse", f"{commit_id}^{{tree}}")
    name = f"{wish}-{tree[:8]}"
    commit_id = snapshot.branch(places.PROJECT, f"runs/{name}", commit_id, run.results_message(name))
    workspace = places.workspace(name, "kubeflow")
    snapshot.clone(places.PROJECT, commit_id, workspace)
    stages = graph.read_graph(workspace / "dvc.yaml")
    preparation.check_force(force, stages, graph.addresses(stages, params))
    facts = {"run": name, "commit": commit_id, "profile": str(params.get("profile", profile)), "force": force}
    made = plan(facts, tree, stages, params, remote)
    made["data"] = share(commit_id, tree, workspace)
    shutil.rmtree(workspace.parent, ignore_errors=True)
    file = places.home() / "kubeflow" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".json").write_text(json.dumps(made, indent=1) + "\n", "utf-8")
    _program("compiler.py", str(file.with_suffix(".json")), str(file))
    return made, file


def _run_here(file: Path, remote: Path, made: dict[str, Any]) -> int:
    outputs = file.with_suffix("")
    try:
        _program("local.py", str(file), "--remote", str(remote), "--outputs", str(outputs))
    except run.RunFailed:
        return 1  # which has said why
    print(f"{len(made['tasks'])} tasks are done; their outputs are in {_short(remote)}")
    return 0


def _program(name: str, *arguments: str) -> None:
    """Run one of the programs that have kfp.

    Raises:
        RunFailed: there is no such environment, or the program failed.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(PYTHON), str(Path(__file__).with_name(name)), *arguments]
    try:
        subprocess.run(command, env=environment, check=True)
    except FileNotFoundError as error:
        raise run.RunFailed(f"{error.filename} is not there: `make kubeflow` makes it") from error
    except subprocess.CalledProcessError as error:
        raise run.RunFailed(f"infra/kubeflow/{name} ended with {error.returncode} (see above)") from error


def _told(made: dict[str, Any], file: Path) -> str:
    """What was made, what it needs in the cluster, and how it is submitted."""
    gpus = [task["gpus"] for task in made["tasks"] if task["gpus"]]
    secret = made["secret"]
    lines = [
        f"pipeline:  {_short(file)} ({made['name']}, {len(made['tasks'])} tasks, {len(gpus)} of them with GPUs"
        + (f", up to {max(gpus)}; CSLM_GPUS allows fewer)" if gpus else ")"),
        f"run:       {made['description'].removeprefix('Run ')}",
        f"shared:    code and {', '.join(made['data']) or 'no data'} in {made['remote']}",
        "",
        "The cluster needs",
        f"  images:  {', '.join(sorted({task['image'] for task in made['tasks']}))}",
        "           (make images, then podman push; CSLM_REGISTRY names the registry)",
        f"  keys:    the Secret {secret} in the namespace of the run, with AWS_ACCESS_KEY_ID and so on"
        if secret
        else f"  keys:    none are referred to; {SECRET} names a Secret that has AWS_ACCESS_KEY_ID and so on",
    ]
    if "://" not in made["remote"]:
        lines.append(f"  remote:  {made['remote']} is a folder of this machine: set {REMOTE}=s3://bucket/dvc")
    if not tracked():
        lines.append(
            "  MLflow:  MLFLOW_TRACKING_URI names no server, so figures stay in DVC and nothing is registered; "
            f"`make demo REF=runs/{file.stem}` gathers and registers"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Submit it on the page (Pipelines, Upload), or:\n  {_short(PYTHON.with_name('kfp'))} --endpoint "
            f"http://HOST:PORT run create --experiment-name cslm --package-file {_short(file)}",
        ]
    )


def _short(path: Path) -> str:
    return str(path.relative_to(places.PROJECT)) if path.is_relative_to(places.PROJECT) else str(path)


def _fail(message: str, code: int = 1) -> int:
    print(f"kubeflow: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
