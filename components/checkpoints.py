"""Where a training keeps its checkpoints: `$CSLM_HOME/checkpoints/STAGE-KEY`.

KEY is a digest of the stage's deps in dvc.yaml (data and code) and of its parameters but for `ranks`, which
learn the same however many they are: a rerun of the same training continues it, in the same MLflow run; another
training never sees it. The folder is kept when the
training ends, as its result may be lost until DVC has it; the pipeline removes it then. With CSLM_CHECKPOINTS
it is in an object store too (components.checkpoint_store), from where another machine goes on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import yaml

from components.checkpoint_store import FINISHED, URI, CheckpointStore
from components.stage import Stage, StageFailed, home


@contextmanager
def checkpoints_of(stage: Stage) -> Iterator[Path]:
    """Folder for the checkpoints of exactly this training; `stage` will continue the MLflow run kept there.

        with checkpoints_of(stage) as checkpoints, stage:
            ...

    A block that ends well marks the training as done.

    Raises:
        SystemExit: no dvc.yaml here, or it has no such stage; the store of checkpoints does not do its work.
    """
    folder = home() / "checkpoints" / _name(stage)
    try:
        store = CheckpointStore(os.environ[URI], folder.name) if os.environ.get(URI) else None
        if store is not None and not _begun(folder):
            store.restore(folder)
    except StageFailed as error:
        sys.exit(f"{stage.name}: {error}")
    folder.mkdir(parents=True, exist_ok=True)
    stage.run_id_file = folder / "mlflow_run_id"
    with store.mirrored(folder) if store is not None else nullcontext():
        yield folder
        (folder / FINISHED).touch()


def _begun(folder: Path) -> bool:
    return folder.exists() and any(folder.iterdir())


def _name(stage: Stage) -> str:
    learned_by = {name: value for name, value in stage.parameters.items() if name != "ranks"}
    parameters = json.dumps([learned_by, stage.settings.seed], sort_keys=True)
    digest = hashlib.sha256(parameters.encode())
    for path in _files_of(stage):
        digest.update(path.as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"{stage.name}-{digest.hexdigest()[:16]}"


def _files_of(stage: Stage) -> Iterator[Path]:
    """All files that the stage depends on, by dvc.yaml."""
    values = stage.settings.model_dump(by_alias=True)
    try:
        deps = yaml.safe_load(Path("dvc.yaml").read_text("utf-8"))["stages"][stage.name]["deps"]
    except (OSError, KeyError) as error:
        sys.exit(f"{stage.name}: dvc.yaml does not tell what it depends on ({error}); run it in a checkout")
    for dep in deps:
        if key := re.fullmatch(r"\$\{(.+)\}", dep):  # a path in params.yaml, null where there is none
            dep = functools.reduce(lambda tree, name: tree[name], key[1].split("."), values)
        if dep is not None:
            path = Path(dep)
            found = sorted(path.rglob("*")) if path.is_dir() else [path]
            yield from (file for file in found if file.is_file() and file.suffix != ".pyc")
