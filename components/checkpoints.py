"""Where a training keeps its checkpoints: `$CSLM_HOME/checkpoints/STAGE-KEY`.

KEY is a digest of the stage's inputs and parameters: a rerun of the same training continues it, in the same
MLflow run; another training never sees it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from components.stage import Stage, home


def checkpoint_folder(stage: Stage, inputs: Iterable[Path]) -> Path:
    """Folder for the checkpoints of exactly this training; `stage` will continue the MLflow run kept there."""
    parameters = json.dumps([stage.parameters, stage.settings.seed], sort_keys=True)
    digest = hashlib.sha256(parameters.encode())
    for folder in inputs:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                digest.update(path.relative_to(folder).as_posix().encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    folder = home() / "checkpoints" / f"{stage.name}-{digest.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    stage.run_id_file = folder / "mlflow_run_id"
    return folder
