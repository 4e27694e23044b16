"""What every component does alike: settings in, whole outputs or none, one MLflow run.

    with Stage("align") as stage:
        with stage.output("work/aligned") as folder:
            ...write into folder...
        stage.log_metrics({"utterances": 12})

Outputs are written beside their place and renamed at the end, so that a killed run leaves nothing half
made. The metrics become `metrics/NAME.json` and, with the section's parameters, an MLflow run that is
nested in the pipeline's run if `MLFLOW_PARENT_RUN_ID` names one.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, TypeGuard

import mlflow
from pydantic import BaseModel

from components.settings import BadSettings, Settings, load_settings

EXPERIMENT = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "cslm"
GRANTED = "CSLM_GRANTED_GPUS"
"""Variable: how many GPUs the container of a stage has, if any (dags.runners.container)."""
SAMPLE_S = "2"
"""How often the use of the machine is noted, where nobody has said it. Long trainings keep MLflow's 10 s."""
TAGS = {
    "CSLM_GIT_COMMIT": "git_commit",
    "CSLM_RUN_ID": "pipeline_run",
    "CSLM_AIRFLOW_RUN": "airflow_run",
    "CSLM_DATA_VERSION": "data_version",
}
"""Variable that a run sets -> tag of the stages' MLflow runs, as of the run's own."""

log = logging.getLogger("cslm")


class StageFailed(Exception):
    """The stage cannot do its work; the message says what was wrong, where, and what to do."""


class ToldToEnd(SystemExit):
    """SIGTERM has come: what is half done is taken back, and MLflow is told, before the program ends."""


def _told_to_end(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise ToldToEnd(128 + signal.SIGTERM)


def home() -> Path:
    """Where run-time state lives: `CSLM_HOME`, or `var/` in the current folder."""
    return Path(os.environ.get("CSLM_HOME") or "var").absolute()


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or the SQLite store of this checkout."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home()}/mlflow.db"


def open_experiment(name: str) -> str:
    """Let runs belong to an MLflow experiment, which is made if it is new; its id.

    Files of a local store lie in `CSLM_ARTIFACTS` or in `home`; a server knows where to put them.
    """
    mlflow.set_tracking_uri(tracking_uri())
    artifacts = None
    if not tracking_uri().startswith("http"):
        artifacts = os.environ.get("CSLM_ARTIFACTS") or (home() / "mlartifacts").as_uri()
    if mlflow.get_experiment_by_name(name) is None:
        mlflow.create_experiment(name, artifact_location=artifacts)
    return str(mlflow.set_experiment(name).experiment_id)


class Stage:
    """One run of one component.

    Args:
        name: may carry an item: `tokenize/en` is the `tokenize` stage of `en`.
        metrics: name of the file in metrics/, where it is not that of the stage.

    Raises:
        SystemExit: params.yaml is not usable, GPUs that it was given are not seen, or the MLflow server does
            not answer (75).
    """

    settings: Settings
    run_id_file: Path | None = None
    """Remembers the MLflow run of a training, for the one that continues it; set before entering."""

    def __init__(self, name: str, metrics: str | None = None) -> None:
        self.name = name
        self._metrics_file = Path("metrics") / f"{metrics or name}.json"
        try:
            self.settings = load_settings()
        except BadSettings as error:
            sys.exit(str(error))
        _check_gpus(name)
        self._metrics: dict[str, Any] = {}

    def __enter__(self) -> Stage:
        logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
        for chatty in ("alembic", "mlflow.system_metrics"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        home().mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(tracking_uri())
        try:
            self._start_run()
        except mlflow.MlflowException as error:
            give_up(
                f"{self.name}: the MLflow server at {tracking_uri()} does not answer ({_first_line(error)}); "
                "start it (make up) or unset MLFLOW_TRACKING_URI, then run this again",
                error,
            )
        self._before = signal.signal(signal.SIGTERM, _told_to_end)
        return self

    def _start_run(self) -> None:
        open_experiment(EXPERIMENT)
        parent = os.environ.get("MLFLOW_PARENT_RUN_ID") or None
        tags = {tag: os.environ[name] for name, tag in TAGS.items() if os.environ.get(name)}
        tags |= {"stage": self.name, "profile": self.settings.profile}
        if self.run_id_file is None:
            os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", SAMPLE_S)
        if self.run_id_file is not None and self.run_id_file.exists():
            known = self.run_id_file.read_text("utf-8")
            if _exists(known):  # else the training began with another MLflow
                mlflow.start_run(known, tags=tags)
                return
        mlflow.start_run(run_name=self.name, parent_run_id=parent, tags=tags)
        mlflow.log_params(flatten(self.parameters))
        if self.run_id_file is not None:
            self.run_id_file.write_text(self.run_id, "utf-8")

    @property
    def parameters(self) -> dict[str, Any]:
        """This stage's section of params.yaml; empty if it has none."""
        name = self.name.split("/")[0]
        section = getattr(self.settings, f"{name}_", None) or getattr(self.settings, name, None)
        return section.model_dump() if isinstance(section, BaseModel) else {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> Literal[False]:
        signal.signal(signal.SIGTERM, self._before)
        if kind is None:
            try:
                write_json(self._metrics_file, {**self._metrics, "mlflow_run_id": self.run_id})
                mlflow.end_run()
            except (mlflow.MlflowException, OSError) as late:
                self._fail(late)
                raise
        else:
            self._fail(error)
        return False

    def _fail(self, error: BaseException | None) -> None:
        """Close the MLflow run, and end the program with one line if there is one for this error."""
        run = mlflow.active_run()
        files = run.info.artifact_uri if run else ""
        # What has gone wrong may keep MLflow from noting it too.
        with suppress(mlflow.MlflowException, OSError):
            mlflow.end_run("KILLED" if isinstance(error, KeyboardInterrupt | ToldToEnd) else "FAILED")
        if isinstance(error, StageFailed):
            give_up(f"{self.name}: {error}", error)
        if _disk_full(error):
            sys.exit(f"{self.name}: the disk is full ({error}); free some space and run this again")
        if _store_refused(error):
            give_up(
                f"{self.name}: the store of MLflow's files, {files} (CSLM_ARTIFACTS), does not do its work: "
                f"{_first_line(error)}. Check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
                "the rights on the bucket, then run this again",
                error,
            )
        if isinstance(error, mlflow.MlflowException):
            give_up(
                f"{self.name}: the MLflow server at {tracking_uri()} no longer answers ({_first_line(error)}); "
                "when it does, run this again",
                error,
            )

    @property
    def run_id(self) -> str:
        """Id of this stage's MLflow run."""
        run = mlflow.active_run()
        assert run is not None, "inside `with Stage(...)` a run is active"
        return str(run.info.run_id)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Numbers for MLflow (nested ones by dotted names); without `step` also for the metrics file."""
        numbers = {key: float(v) for key, v in flatten(metrics).items() if isinstance(v, int | float)}
        mlflow.log_metrics(numbers, step=step)
        if step is None:
            self._metrics |= metrics

    @contextmanager
    def output(self, path: str | Path) -> Iterator[Path]:
        """A new folder that becomes `path` when the block ends well, and vanishes otherwise."""
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)


def _check_gpus(stage: str) -> None:
    """End the program if torch sees fewer GPUs than its container has: on processors it would take for ever."""
    given = int(os.environ.get(GRANTED) or 0)
    if not given:
        return
    import torch  # slow to import, and not in the image of every stage

    if (seen := torch.cuda.device_count()) >= given:
        return
    remedy = (
        "look with nvidia-smi in the container which ones its driver finds"
        if torch.version.cuda
        else "this torch is built for processors: make the images anew where pip brings the build for CUDA "
        "(docs/operators.md, Containers)"
    )
    sys.exit(
        f"{stage}: its container was given {given} GPUs, and torch {torch.__version__} sees {seen}: {remedy}; "
        "or work without (CSLM_GPUS=0)"
    )


def _exists(run_id: str) -> bool:
    try:
        mlflow.get_run(run_id)
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def give_up(text: str, error: BaseException) -> NoReturn:
    """End the program with an explanation of an error.

    Raises:
        SystemExit: with 75 (EX_TEMPFAIL) if MLflow or a store is away, which Airflow tries again, else with 1.
    """
    if _away(error):
        print(text, file=sys.stderr, flush=True)
        sys.exit(os.EX_TEMPFAIL)
    sys.exit(text)


def _away(error: BaseException | None) -> bool:
    """Whether it comes from a server that does not answer, or says that it cannot work now (5xx)."""
    from botocore import exceptions as store  # slow to import, and seldom needed

    silence = (store.EndpointConnectionError, store.ConnectTimeoutError, store.HTTPClientError)
    while error is not None:
        status = 0
        if isinstance(error, mlflow.MlflowException):
            status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
        elif isinstance(error, store.ClientError):
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return True
        if isinstance(error, (*silence, ConnectionError, TimeoutError)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _store_refused(error: BaseException | None) -> TypeGuard[Exception]:
    """Whether it is an object store's: MLflow passes on what boto3 raises."""
    from boto3.exceptions import Boto3Error  # slow to import, and seldom needed
    from botocore.exceptions import BotoCoreError, ClientError

    return isinstance(error, Boto3Error | BotoCoreError | ClientError)


def _disk_full(error: BaseException | None) -> bool:
    """Whether this error, or what led to it, says that there is no room. Not all libraries raise OSError."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error) or "database or disk is full" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"asr": {"en": 1}}` -> `{"asr.en": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def write_json(path: Path, content: Any) -> None:
    """Readable JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=float) + "\n", "utf-8")
    partial.rename(path)
