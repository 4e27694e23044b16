"""Airflow's configuration on one machine, for `make demo` and for `make up`; all under CSLM_HOME.

Everything is given by environment variables, so that there is one place to look and no airflow.cfg to edit.
The keys are in Airflow's configuration reference under the names after AIRFLOW__. Where things lie and how they
are guarded is said here alone; how tasks are carried out, the user's environment may say otherwise.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dags import places

AIRFLOW = [sys.executable, "-m", "airflow"]
DATABASE_S = 30
"""How long a process waits while another one writes into SQLite: its own 5 s are short on a busy machine."""


def port(name: str, default: int) -> int:
    """A port from the environment (`AIRFLOW_PORT`, `MLFLOW_PORT`)."""
    value = os.environ.get(name) or str(default)  # make exports it empty if it is not given
    if not value.isdigit() or not 0 < int(value) < 65536:
        sys.exit(f"{name}={value!r} is no port: give a number from 1 to 65535")
    return int(value)


def database() -> str:
    """URL of Airflow's metadata database: CSLM_AIRFLOW_DATABASE, else SQLite under CSLM_HOME.

    Airflow's own variable may belong to another Airflow of the same user.
    """
    given = os.environ.get("CSLM_AIRFLOW_DATABASE")
    return given or f"sqlite:///{places.home() / 'airflow' / 'airflow.db'}?timeout={DATABASE_S}"


def environment() -> dict[str, str]:
    """Environment for every Airflow process of this checkout: places and keys, and the inherited one."""
    home = places.home() / "airflow"
    home.mkdir(parents=True, exist_ok=True)
    keys = _secrets(home / "secrets.json")
    url = f"http://127.0.0.1:{port('AIRFLOW_PORT', 8080)}"
    settings = {
        "core": {
            "dags_folder": places.PROJECT / "dags",
            "load_examples": False,
            "simple_auth_manager_users": "admin:admin",
            "simple_auth_manager_passwords_file": home / "passwords.json",
            "fernet_key": keys["fernet"],
        },
        "database": {"sql_alchemy_conn": database()},
        "api": {
            "host": "127.0.0.1",
            "port": url.rpartition(":")[2],
            "base_url": url,
            "secret_key": keys["api"],
        },
        "api_auth": {"jwt_secret": keys["jwt"]},
        "logging": {"base_log_folder": home / "logs", "colored_console_log": False},
        "usage_data_collection": {"enabled": False},
    }
    return {
        **_variables(_habits()),
        **os.environ,
        **_variables(settings),
        **places.dvc_environment(),
        **places.cache_environment(),
        "AIRFLOW_HOME": str(home),
        "CSLM_HOME": str(places.home()),
        "PYTHONPATH": str(places.PROJECT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "NO_COLOR": "1",
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def _habits() -> dict[str, dict[str, object]]:
    """How tasks are carried out, where the environment does not say it."""
    return {
        "core": {
            "executor": "LocalExecutor",
            "parallelism": 4,
            "default_task_retries": 4,
            "default_task_retry_delay": 30,
            "dagbag_import_timeout": 120,
        },
        "dag_processor": {
            "refresh_interval": 15,
            "min_file_process_interval": 20,
            "dag_file_processor_timeout": 180,
        },
        "scheduler": {"task_instance_heartbeat_timeout": 900, "scheduler_idle_sleep_time": 1},
    }


def _variables(settings: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    return {
        f"AIRFLOW__{section.upper()}__{key.upper()}": str(value)
        for section, values in settings.items()
        for key, value in values.items()
    }


@contextmanager
def only_demo() -> Iterator[bool]:
    """Hold the place of the one `make demo` that may use this database; false if another one does.

    The place is given back when the process ends in whatever way.
    """
    path = places.home() / "run" / "demo.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def migrate(again: bool = False) -> None:
    """Make the metadata database on first use, and bring an old one up to the installed Airflow.

    It is looked at only if the database or Airflow is another one than last time, or `again`.
    """
    home = places.home() / "airflow"
    home.mkdir(parents=True, exist_ok=True)
    from importlib.metadata import version

    which = hashlib.sha256(database().encode()).hexdigest()[:12]
    mark, done = f"{version('apache-airflow')} {which}", home / "migrated"
    lost = database().startswith("sqlite:") and not (home / "airflow.db").exists()
    if not again and done.exists() and done.read_text("utf-8") == mark and not lost:
        return
    result = subprocess.run(
        [*AIRFLOW, "db", "migrate"], env=environment(), capture_output=True, text=True, check=False
    )
    if result.returncode:
        sys.exit(f"airflow db migrate failed in {home}:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    done.write_text(mark, "utf-8")


def _secrets(path: Path) -> dict[str, str]:
    """Keys that all processes share, made once; mode 600, safe against two makers."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = file.read()
        if not text:
            keys = {"jwt": secrets.token_urlsafe(48), "api": secrets.token_urlsafe(48), "fernet": _fernet()}
            text = json.dumps(keys)
            file.write(text)
    return dict(json.loads(text))


def _fernet() -> str:
    import base64

    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
