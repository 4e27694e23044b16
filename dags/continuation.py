"""Continue from a registered version: its weights, by their digests, become inputs of the new run's commit.

A version names the run that made it, and that run's branch has its dvc.lock: so the weights need no copy and no
path. Three pointers (models/registered/*.dvc) in the commit are enough, and the run can be made again from it.
They say which version it was, for the model card of the new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from dags import places, snapshot, tracking

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

FOLDER = "models/registered"
OUTPUTS = {"backbone": "work/model", "train_tokenizer": "work/tokenizer", "train_decoder": "work/decoder"}
"""Section of params.yaml whose `checkpoint` it becomes -> output of the version's run."""


class CannotContinue(Exception):
    """The version cannot be continued from; the message says why and what to do."""


def parameters_of(version: ModelVersion) -> dict[str, Any]:
    """The parameters that a version was made with.

    Raises:
        CannotContinue: its run is not known in this repository.
    """
    return dict(yaml.safe_load(file_of_run(version, "params.yaml")))


def file_of_run(version: ModelVersion, file: str) -> str:
    """What a file in git has on the branch of the run that made a version.

    Raises:
        CannotContinue: the run is not known in this repository, or has no such file.
    """
    run = version.tags.get("pipeline_run", "")
    try:
        return snapshot.git(places.PROJECT, "show", f"refs/heads/runs/{run}:{file}")
    except snapshot.SnapshotFailed as error:
        raise CannotContinue(
            f"{version.name} version {version.version} was made by run {run or '?'}, whose branch runs/{run} is"
            " not in this repository: fetch it from where the run was made (git fetch URL runs/NAME:runs/NAME)"
        ) from error


def of_version(model: str, version: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Overrides (dotted keys) and files of a commit that continues from a version (number or alias).

    Raises:
        CannotContinue: no such version, or its run is not known in this repository.
    """
    found = tracking.registered(model, version)
    if found is None:
        raise CannotContinue(f"{model} has no version {version!r} at {places.tracking_uri()}")
    lock = yaml.safe_load(file_of_run(found, "dvc.lock"))
    outs = {
        out["path"]: {key: out[key] for key in ("md5", "size", "nfiles", "hash") if key in out}
        for stage in lock["stages"].values()
        for out in stage.get("outs", [])
    }
    source = f"{model} version {found.version}"
    told = {"desc": f"that of {source}", "meta": {"license": f"those in the model card of {source}"}}
    overrides, files = {}, {}
    for section, output in OUTPUTS.items():
        if output not in outs:
            raise CannotContinue(
                f"dvc.lock of runs/{found.tags['pipeline_run']} has no {output}: version {found.version} "
                "is not whole"
            )
        name = output.rpartition("/")[2]
        pointer = {"outs": [outs[output] | {"path": name} | told]}
        files[f"{FOLDER}/{name}.dvc"] = yaml.safe_dump(pointer, sort_keys=False).encode()
        overrides[f"{section}.checkpoint"] = f"{FOLDER}/{name}"
    return overrides, files
