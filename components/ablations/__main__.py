"""Compare the runs of `make ablations`: a table, a plot, and which of the paper's claims they show.

Run:  python -m components.ablations 20261127-0210      (what the names of the runs begin with)

Reads `$CSLM_HOME/runs/GROUP-VARIANT/metrics/evaluation.json` of every variant in variants.yaml. Writes
`comparison.md` and `comparison.png` to `$CSLM_HOME/runs/GROUP-ablations`, and logs both as a run of the MLflow
experiment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlflow
import typer

from components.ablations.comparison import Figure, claims, figures_of, table
from components.ablations.plot import draw
from components.ablations.variants import Study, load_study
from components.stage import home, open_experiment


def main(group: str) -> None:
    """Compare the runs whose names begin with GROUP."""
    study = load_study()
    measured: dict[str, dict[str, Figure]] = {}
    for name, variant in study.variants.items():
        path = home() / "runs" / f"{group}-{name}" / "metrics" / "evaluation.json"
        if not path.exists():
            sys.exit(f"{path} is missing: run `make ablations` to its end first")
        measured[name] = figures_of(json.loads(path.read_text("utf-8")), variant.chain)
    titles = {name: variant.title for name, variant in study.variants.items()}
    lines = [*table(measured, titles), "", *claims(measured, titles, study.claims)]
    folder = home() / "runs" / f"{group}-ablations"
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "comparison.md", ("# Ablations\n\n" + "\n".join(lines) + "\n").encode())
    _write(folder / "comparison.png", draw(measured, titles))
    _log(study, group, folder, measured)
    print("\n".join(lines))
    print(
        f"\nplot: {folder / 'comparison.png'}; in MLflow: experiment {study.experiment}, run {group}-ablations"
    )


def _write(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.rename(path)


def _log(study: Study, group: str, folder: Path, measured: dict[str, dict[str, Figure]]) -> None:
    open_experiment(study.experiment)
    tags: dict[str, Any] = {"stage": "ablations", "ablations": group}
    with mlflow.start_run(run_name=f"{group}-ablations", tags=tags):
        mlflow.log_artifacts(str(folder))
        for name, figures in measured.items():
            mlflow.log_metrics({f"{name}.{key}": figure.value for key, figure in figures.items()})


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
