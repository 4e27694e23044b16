"""The parent MLflow run of a pipeline run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dags import datasets, places
from dags.datasets import Dataset

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput
    from mlflow.entities.model_registry import ModelVersion

EXPERIMENT = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "cslm"
"""MLflow's own variable; components/stage.py reads the same."""
DIGEST_LENGTH = 36
"""The longest digest that MLflow takes."""
MOST_PARAMS = 100
"""What MLflow takes at once."""
JUDGED = {"stage", "refused"}
"""Tags that components.promote gives to a version when the gate or a person has looked at it."""
MADE_BY = "mlflow_run_id"
"""Key of a metrics file that names the MLflow run which wrote it."""


class TrackingFailed(Exception):
    """MLflow cannot be reached or refuses; the message says where, why, and what to do."""


class TrackingAway(TrackingFailed):
    """MLflow does not answer, or says itself that it cannot work now: another try may find it at work."""


def start(run: str, tags: Mapping[str, str], params: Mapping[str, Any], data: Sequence[Dataset] = ()) -> str:
    """Id of the parent run of `run`, with all of params.yaml on its page; a repeated call finds it again.

    Tags without a value are left out.
    """
    from mlflow.entities import Param

    local = not places.tracking_uri().startswith("http")
    artifacts = places.artifacts_uri() if local else None
    noted = {"pipeline_run": run, "stage": "pipeline", "data_version": datasets.version(data), **tags}
    noted = {key: value for key, value in noted.items() if value}
    shown = [Param(key, str(value)) for key, value in flat(params)]
    with _client() as client:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else client.create_experiment(EXPERIMENT, artifact_location=artifacts)
        )
        known = client.search_runs([experiment_id], f"tags.pipeline_run = '{run}' and tags.stage = 'pipeline'")
        if known:
            run_id = str(known[0].info.run_id)
            client.update_run(run_id, status="RUNNING")
        else:
            run_id = str(client.create_run(experiment_id, run_name=run, tags=noted).info.run_id)
        if data:
            client.log_inputs(run_id, [_input(dataset) for dataset in data])
        for first in range(0, len(shown), MOST_PARAMS):
            client.log_batch(run_id, params=shown[first : first + MOST_PARAMS])
        return run_id


def _input(dataset: Dataset) -> DatasetInput:
    """A corpus as MLflow shows it, under *Datasets used*."""
    from mlflow import entities

    source = json.dumps({"path": dataset.path, "md5": dataset.digest})
    shown = entities.Dataset(dataset.name, dataset.digest[:DIGEST_LENGTH], "dvc", source)
    return entities.DatasetInput(shown, [entities.InputTag("mlflow.data.context", "training")])


def registered(model: str, version: str) -> ModelVersion | None:
    """A version of a registered model by its number or alias; None if there is none."""
    from mlflow import MlflowException

    with _client() as client:
        try:
            if version.isdigit():
                return client.get_model_version(model, version)
            return client.get_model_version_by_alias(model, version)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def log_stage(mlflow_run: str, metrics_file: Path, state: str) -> None:
    """Copy a stage's numbers to the parent run, with a tag that names the run which made them.

    `metrics/tokenize/en.json` gives `tokenize.en.*`; `state` is `cached` or `ran`.
    """
    from mlflow.entities import Metric, RunTag

    content = json.loads(metrics_file.read_text("utf-8"))
    parts = metrics_file.with_suffix("").parts
    stage = ".".join(parts[parts.index("metrics") + 1 :])
    metrics = [Metric(f"{stage}.{key}", value, 0, 0) for key, value in numbers(content)]
    tags = [RunTag(f"state.{stage}", state), RunTag(f"made_by.{stage}", str(content.get(MADE_BY, "")))]
    with _client() as client:
        for first in range(0, len(metrics), 1000):
            client.log_batch(mlflow_run, metrics=metrics[first : first + 1000])
        client.log_batch(mlflow_run, tags=tags)


def end(mlflow_run: str, status: str) -> None:
    """Close the parent run as FINISHED, FAILED or KILLED."""
    with _client() as client:
        client.set_terminated(mlflow_run, status)


def numbers(tree: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """`{"asr": {"en": 1}}` -> `("asr.en", 1.0)`."""
    for key, value in flat(tree):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield key, float(value)


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`{"asr": {"en": "x"}}` -> `("asr.en", "x")`; names as those of the stages' own runs."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@contextmanager
def _client() -> Iterator[MlflowClient]:
    import logging

    from mlflow import MlflowClient, MlflowException

    logging.getLogger("alembic").setLevel(logging.WARNING)
    places.home().mkdir(parents=True, exist_ok=True)
    uri = places.tracking_uri()
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # 7 are minutes of silence where no server is
    try:
        yield MlflowClient(tracking_uri=uri)
    except MlflowException as error:
        away = error.get_http_status_code() >= HTTPStatus.INTERNAL_SERVER_ERROR
        raise (TrackingAway if away else TrackingFailed)(
            f"MLflow at {uri} does not do its work ({error}); start it (make up) or unset MLFLOW_TRACKING_URI, "
            "then run this again"
        ) from error
