"""Register the evaluated model: one version for each distinct result, alias `candidate`.

Run:  python -m components.register

Needs work/model, work/tokenizer, work/decoder, metrics/evaluation.json, report/evaluation, params.yaml and
requirements/components.in in the current folder. The same result again makes no second version; it gets the
alias back. The version's pyfunc model (components/register/model.py) and metrics hang on the pipeline's MLflow
run if `MLFLOW_PARENT_RUN_ID` names it, else on a run of their own.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import typer
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

import cslm
from components.fetch.catalog import load_catalog
from components.register import model as served
from components.register.card import model_card
from components.register.result import FIGURES, RESULT, data_version, file_digest, git_commit, result_digest
from components.settings import Settings
from components.stage import Stage, StageFailed, flatten

ALIAS = "candidate"
MODEL, TOKENIZER, DECODER = Path("work/model"), Path("work/tokenizer"), Path("work/decoder")
EVALUATION, REPORT = Path("metrics/evaluation.json"), Path("report/evaluation")
VALIDATION = Path("metrics/validate.json")
CARD = "model_card.md"
NOTE = "mlflow.note.content"
REQUIREMENTS = Path("requirements/components.in")
MADE_BY = {
    MODEL / "config.json": "make demo",
    TOKENIZER: "make demo",  # trained here, or CosyVoice's
    DECODER / "config.json": "make demo",
    EVALUATION: "make demo",
    REPORT: "make demo",
    REQUIREMENTS: "git checkout",
}
# Bytes or, through REST, base64: MLflow's own `binary` takes only the first from Python.
ANYTHING = AnyType()  # type: ignore[no-untyped-call]  # MLflow's constructor is untyped
SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(ANYTHING, "audio", required=False),
            ColSpec(ANYTHING, "text", required=False),
            ColSpec(ANYTHING, "answer_language", required=False),
            ColSpec(ANYTHING, "voice", required=False),
        ]
    ),
    outputs=Schema(
        [
            ColSpec(DataType.string, "question"),
            ColSpec(DataType.string, "answer"),
            ColSpec(Array(DataType.long), "units"),
            ColSpec(DataType.string, "wav"),
            ColSpec(DataType.boolean, "well_formed"),
        ]
    ),
    params=ParamSchema([ParamSpec(name, DataType.integer, value) for name, value in served.DEFAULTS.items()]),
)


def main() -> None:
    """Register the model in work/model, unless its very result is registered already.

    Reads work/model, work/tokenizer, work/decoder, metrics/evaluation.json, report/evaluation, params.yaml and
    requirements/components.in of the current folder.
    """
    with Stage("register") as stage:
        for path, command in MADE_BY.items():
            if not path.exists():
                raise StageFailed(f"{path} is missing; make it first ({command})")
        evaluation = json.loads(EVALUATION.read_text("utf-8"))
        digest = result_digest([MODEL, TOKENIZER, DECODER], evaluation)
        name = stage.settings.register_.model
        client = MlflowClient()
        try:
            version = find_version(client, name, digest)
            known = version is not None
            tags = version_tags(stage.settings, digest) if version is None else version.tags
            card = model_card(stage.settings, tags, evaluation, hours(), load_catalog())
            if version is None:
                run_id = os.environ.get("MLFLOW_PARENT_RUN_ID") or stage.run_id
                version = create_version(run_id, stage.settings, evaluation, tags, card)
            if not version.description:
                client.update_model_version(name, version.version, card)
            client.set_registered_model_alias(name, ALIAS, version.version)
            if parent := os.environ.get("MLFLOW_PARENT_RUN_ID"):
                lead_to_report(client, parent, evaluation["mlflow_run_id"])
        except mlflow.MlflowException as error:
            raise StageFailed(
                f"the registry at {mlflow.get_tracking_uri()} refused {name}: {error}; run this again"
            ) from error
        stage.log_metrics({"version": int(version.version), "new": int(not known)})
        print(f"version {version.version} ({'unchanged' if known else f'new, {ALIAS}'})")


def lead_to_report(client: MlflowClient, run_id: str, measured_by: str) -> None:
    """Write into a pipeline run's description where its report is: the evaluation may be an earlier run's."""
    try:
        measured = client.get_run(measured_by)
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return  # measured under another MLflow
    page = f"#/experiments/{measured.info.experiment_id}/runs/{measured_by}/artifacts/{REPORT.name}/index.html"
    link = f"[Evaluation report]({page})"
    said = client.get_run(run_id).data.tags.get(NOTE, "")
    if link not in said:
        client.set_tag(run_id, NOTE, f"{said}\n\n{link}".strip())


def find_version(client: MlflowClient, name: str, digest: str) -> ModelVersion | None:
    """The ready version of `name` with this result, the latest if several; None if there is none."""
    versions = client.search_model_versions(f"name = '{name}' and tag.{RESULT} = '{digest}'")
    ready = [version for version in versions if version.status == "READY"]
    return max(ready, key=lambda version: int(version.version), default=None)


def hours() -> dict[str, float]:
    """Hours of accepted speech by language, if validation has left its figures here."""
    return dict(json.loads(VALIDATION.read_text("utf-8"))["hours"]) if VALIDATION.exists() else {}


def create_version(
    run_id: str, settings: Settings, evaluation: Mapping[str, Any], tags: Mapping[str, str], card: str
) -> ModelVersion:
    """Log the pyfunc model and its metrics to the run, then register it with its tags."""
    name = settings.register_.model
    # MLflow wants an example input; it would make the model answer it here and now.
    warnings.filterwarnings("ignore", message=".*input example was not provided")
    # `mlflow.pyfunc.log_model` knows only the active run, and that one is this stage's own.
    with TemporaryDirectory() as folder:
        card_file = Path(folder) / CARD
        card_file.write_text(card, "utf-8")
        info = Model.log(
            None,
            mlflow.pyfunc,
            name=name.replace(".", "-"),
            run_id=run_id,
            python_model=served.__file__,
            artifacts={
                "model": str(MODEL),
                "tokenizer": str(TOKENIZER),
                "decoder": str(DECODER),
                "report": str(REPORT),
                "evaluation": str(EVALUATION),
                "card": str(card_file),
            },
            code_paths=[str(Path(cslm.__file__).parent)],
            model_config={"languages": settings.languages},
            signature=SIGNATURE,
            pip_requirements=str(REQUIREMENTS),
        )
    numbers = {key: float(v) for key, v in flatten(evaluation).items() if isinstance(v, int | float)}
    mlflow.log_metrics(numbers, run_id=run_id, model_id=info.model_id)
    return mlflow.register_model(info.model_uri, name, tags=dict(tags))


def version_tags(settings: Settings, digest: str) -> dict[str, str]:
    """Where the version came from; facts that are not known here are left out."""
    facts = {
        "git_commit": git_commit(),
        "pipeline_run": os.environ.get("CSLM_RUN_ID"),
        "airflow_run": os.environ.get("CSLM_AIRFLOW_RUN"),
        "profile": settings.profile,
        "data_version": data_version(settings.corpora),
        RESULT: digest,
        FIGURES: file_digest(EVALUATION),
        "languages": ",".join(settings.languages),
    }
    return {key: fact for key, fact in facts.items() if fact}


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
