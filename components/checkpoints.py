"""Where a training keeps its checkpoints: `$CSLM_HOME/checkpoints/STAGE-KEY`.

KEY is a digest of the stage's deps in dvc.yaml (data and code) and of its parameters: a rerun of the same
training continues it, in the same MLflow run; another training never sees it. The folder is kept when the
training ends, as its result may be lost until DVC has it; the pipeline removes it then.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from components.stage import Stage, home

FINISHED = "finished"


def checkpoint_folder(stage: Stage) -> Path:
    """Folder for the checkpoints of exactly this training; `stage` will continue the MLflow run kept there.

    Raises:
        SystemExit: no dvc.yaml here, or it has no such stage.
    """
    parameters = json.dumps([stage.parameters, stage.settings.seed], sort_keys=True)
    digest = hashlib.sha256(parameters.encode())
    for path in _files_of(stage):
        digest.update(path.as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    folder = home() / "checkpoints" / f"{stage.name}-{digest.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    stage.run_id_file = folder / "mlflow_run_id"
    return folder


def finish(folder: Path) -> None:
    """Mark the training as done."""
    (folder / FINISHED).touch()


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
