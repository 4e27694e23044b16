"""Where a run keeps its things, all under `CSLM_HOME` (default `var/` in the checkout).

dvc-cache/                  content-addressed outputs and run cache, shared by all workspaces
workspaces/RUN/STAGE/       a clone of the run's commit while a stage works (kept if it fails)
runs/RUN/                   results: events.jsonl, dvc.lock, metrics/, report/
logs/RUN/STAGE.log          all that a stage printed
mlflow.db, mlartifacts/     MLflow's SQLite store and files
chat/MODEL/VERSION/         what the chat page has brought from an object store
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).absolute().parents[1]
DATABASES = ("postgresql", "sqlite")
"""Beginnings of the URLs of databases that MLflow can keep its runs in here."""


def home() -> Path:
    """`CSLM_HOME`, made absolute from the checkout and not from wherever Airflow stands."""
    return (PROJECT / (os.environ.get("CSLM_HOME") or "var")).absolute()


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or the SQLite store in `home`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home()}/mlflow.db"


def store_uri() -> str:
    """The database behind the MLflow server of `make up`: MLFLOW_TRACKING_URI's, or SQLite in `home`."""
    uri = tracking_uri()
    return uri if uri.startswith(DATABASES) else f"sqlite:///{home()}/mlflow.db"


def artifacts_uri() -> str:
    """Where MLflow keeps files of runs and models: `CSLM_ARTIFACTS` (s3://bucket/mlflow), or in `home`."""
    return os.environ.get("CSLM_ARTIFACTS") or (home() / "mlartifacts").as_uri()


def workspace(run: str, stage: str) -> Path:
    """Folder in which a stage of a run works."""
    return home() / "workspaces" / run / stage


def results(run: str) -> Path:
    """Folder of what a run leaves for people to read."""
    return home() / "runs" / run


def stage_log(run: str, stage: str) -> Path:
    """All that a stage printed."""
    return home() / "logs" / run / f"{stage}.log"


def components_bin() -> Path:
    """Folder of the components' Python: `make setup`'s, or CSLM_COMPONENTS, as in the orchestrator's image."""
    return Path(os.environ.get("CSLM_COMPONENTS") or PROJECT / ".venv" / "components" / "bin")


def dvc_environment() -> dict[str, str]:
    """Keeps DVC's own state out of the user's home and /var/tmp."""
    state = home() / "dvc"
    return {
        "DVC_SITE_CACHE_DIR": str(state / "site"),
        "DVC_GLOBAL_CONFIG_DIR": str(state / "global"),
        "DVC_SYSTEM_CONFIG_DIR": str(state / "system"),
        "DVC_NO_ANALYTICS": "1",
    }


def cache_environment() -> dict[str, str]:
    """Keeps the caches of libraries (compiled operators, fonts, hub files) out of the user's home."""
    cache = home() / "cache"
    return {
        "XDG_CACHE_HOME": str(cache),
        "XDG_CONFIG_HOME": str(home() / "config"),
        "TORCH_EXTENSIONS_DIR": str(cache / "torch_extensions"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "HF_HOME": str(cache / "huggingface"),
        "MPLCONFIGDIR": str(cache / "matplotlib"),
        "NUMBA_CACHE_DIR": str(cache / "numba"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def stage_environment(facts: Mapping[str, Any]) -> dict[str, str]:
    """Environment of a stage's component: also the run it belongs to."""
    return {
        **component_environment(),
        "CSLM_RUN_ID": facts["run"],
        "CSLM_GIT_COMMIT": facts["commit"],
        "CSLM_AIRFLOW_RUN": facts.get("airflow_run", ""),
        "CSLM_DATA_VERSION": facts.get("data_version", ""),
        "MLFLOW_PARENT_RUN_ID": facts["mlflow_run"],
    }


def component_environment() -> dict[str, str]:
    """Environment of a component: its Python first."""
    # Without compiled bytecode the imports of torch and MLflow cost every stage seconds.
    unwanted = {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "CSLM_AIRFLOW_DATABASE"}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW") and k not in unwanted}
    return {
        **inherited,
        **dvc_environment(),
        **cache_environment(),
        "PATH": f"{components_bin()}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONPYCACHEPREFIX": str(home() / "pycache"),
        "PYTHONUNBUFFERED": "1",
        "CSLM_HOME": str(home()),
        "MLFLOW_TRACKING_URI": tracking_uri(),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES") or "3",
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING")
        or "true",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count() or 1),
    }
