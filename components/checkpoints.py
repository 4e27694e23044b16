"""Where a long stage keeps what it has done so far: `$CSLM_HOME/checkpoints/STAGE-KEY`.

A training has its checkpoints there, tokenize the shards that are finished. KEY is a digest of the stage's
deps (data and code) and params in dvc.yaml, but for `ranks`, which learn the same however many they are: a
rerun of the same work continues it, in the same MLflow run; other work never sees it. The folder is kept when
the stage ends, as its result may be lost until DVC has it; the pipeline removes it then. With CSLM_CHECKPOINTS
it is in an object store too (components.checkpoint_store), from where another machine goes on, and this one if
another has come further.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml

from components.checkpoint_store import FINISHED, URI, CheckpointStore
from components.stage import Stage, StageFailed, give_up, home

FORCED = "CSLM_FORCED"
"""Set by the pipeline (dags/dvc_stage.py) if what is finished is to be done once more."""


@contextmanager
def checkpoints_of(stage: Stage) -> Iterator[Path]:
    """Folder for the checkpoints of exactly this work; `stage` will continue the MLflow run kept there.

        with checkpoints_of(stage) as checkpoints, stage:
            ...

    A block that ends well marks the work as done.

    Raises:
        SystemExit: no dvc.yaml here, or it has no such stage; the store of checkpoints does not do its work.
    """
    folder = home() / "checkpoints" / _name(stage)
    try:
        store = CheckpointStore(os.environ[URI], folder.name) if os.environ.get(URI) else None
        anew = bool(os.environ.get(FORCED))
        if anew and (folder / FINISHED).exists():
            shutil.rmtree(folder)
        if store is not None:
            store.restore(folder, anew)
    except StageFailed as error:
        give_up(f"{stage.name}: {error}", error)
    folder.mkdir(parents=True, exist_ok=True)
    stage.run_id_file = folder / "mlflow_run_id"
    with store.mirrored(folder) if store is not None else nullcontext():
        yield folder
        (folder / FINISHED).touch()


def _name(stage: Stage) -> str:
    """Name of the folder: `pretrain-KEY`, or `tokenize-en-KEY` where a stage has items."""
    try:
        row = yaml.safe_load(Path("dvc.yaml").read_text("utf-8"))["stages"][stage.name.partition("/")[0]]
        deps, params = row.get("do", row)["deps"], row.get("do", row)["params"]
    except (OSError, KeyError) as error:
        sys.exit(f"{stage.name}: dvc.yaml does not tell what it depends on ({error}); run it in a checkout")
    values = stage.settings.model_dump(by_alias=True)
    parameters = json.dumps([_without_ranks(_value(values, key)) for key in params], sort_keys=True)
    digest = hashlib.sha256(parameters.encode())
    for path in _files(deps, values):
        digest.update(path.as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"{stage.name.replace('/', '-')}-{digest.hexdigest()[:16]}"


def _value(values: Mapping[str, Any], key: str) -> Any:
    """`train_decoder.checkpoint` -> what params.yaml says there."""
    return functools.reduce(lambda tree, name: tree[name], key.split("."), values)


def _without_ranks(value: Any) -> Any:
    """A section of params.yaml but for its number of ranks; any other value as it is."""
    return {k: v for k, v in value.items() if k != "ranks"} if isinstance(value, Mapping) else value


def _files(deps: Sequence[str], values: Mapping[str, Any]) -> Iterator[Path]:
    """All files that are, or lie in, the deps of a stage."""
    for dep in deps:
        if key := re.fullmatch(r"\$\{(.+)\}", dep):  # a path in params.yaml, null where there is none
            dep = _value(values, key[1])
        if dep is not None:
            path = Path(dep)
            found = sorted(path.rglob("*")) if path.is_dir() else [path]
            yield from (file for file in found if file.is_file() and file.suffix != ".pyc")
