"""What containers of the orchestrator's image do, in infra/compose.yaml and infra/kubernetes/services.

Run:  python -m infra.contained prepare            databases with tables, bucket, Airflow's pools: first of all
      python -m infra.contained airflow scheduler  one of Airflow's services
      python -m infra.contained healthy scheduler  exit code 0 if Airflow hears of that service

Names of other containers and of the databases' users are those of infra/compose.yaml.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable

from dags import places
from infra import airflow_local

ROLES = {"airflow": "CSLM_AIRFLOW_DATABASE_PASSWORD", "mlflow": "CSLM_MLFLOW_DATABASE_PASSWORD"}
"""User of PostgreSQL, who owns the database of that name -> variable with the password."""
START_S = 120
API = "airflow-api"
"""Container that everybody asks about Airflow, also tasks."""


class NotUpgraded(Exception):
    """MLflow's database is not up to date, as while another pod brings it there; the text is MLflow's."""


def main() -> int:
    """Do what the first argument says."""
    match sys.argv[1:]:
        case ["prepare"]:
            return prepare()
        case ["airflow", *arguments]:
            airflow(arguments)
        case ["healthy", part]:
            return healthy(part)
    print(f"usage:\n{__doc__}", file=sys.stderr)
    return 2


def prepare() -> int:
    """Make whatever is not there yet; may be repeated."""
    from infra import services

    (places.home() / "tmp").mkdir(parents=True, exist_ok=True)
    services.passwords()
    if "PGHOST" in os.environ:  # else somebody has made them
        _waiting("PostgreSQL", _make_databases)
        _waiting("MLflow's database", _upgrade_mlflow)
    _waiting("the object store", _make_bucket)
    airflow_local.migrate(again=True)  # the mark of before tells nothing of a volume
    services.make_pools()
    print("prepared: databases with tables, bucket, Airflow's pools", flush=True)
    return 0


def airflow(arguments: list[str]) -> None:
    """Become one of Airflow's services, which others reach by the name of its container."""
    variables = airflow_local.environment() | {
        "AIRFLOW__API__HOST": "0.0.0.0",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{_api()}/execution/",
    }
    os.execvpe(sys.executable, [*airflow_local.AIRFLOW, *arguments], variables)


def healthy(part: str) -> int:
    """0 if Airflow has heard of its scheduler, dag_processor or triggerer lately."""
    with urllib.request.urlopen(f"{_api()}/api/v2/monitor/health", timeout=5) as answer:
        status = json.load(answer)[part]["status"]
    print(f"{part}: {status}")
    return 0 if status == "healthy" else 1


def _api() -> str:
    return f"http://{API}:{airflow_local.port('AIRFLOW_PORT', 8080)}"


def _make_databases() -> None:
    """Users and databases, in the server that libpq's variables name; a changed password is taken over."""
    import psycopg
    from psycopg import sql

    with psycopg.connect(autocommit=True, connect_timeout=5) as server:
        for role, variable in ROLES.items():
            name, password = sql.Identifier(role), sql.Literal(os.environ[variable])
            if not server.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
                server.execute(sql.SQL("CREATE ROLE {}").format(name))
            server.execute(sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(name, password))
            if not server.execute("SELECT 1 FROM pg_database WHERE datname = %s", [role]).fetchone():
                utf8 = sql.SQL("CREATE DATABASE {} OWNER {} ENCODING 'UTF8' TEMPLATE template0")
                server.execute(utf8.format(name, name))


def _upgrade_mlflow() -> None:
    """MLflow's tables, made or brought up to the installed release: its server refuses older ones."""
    variables = os.environ | {"PGUSER": "mlflow", "PGPASSWORD": os.environ[ROLES["mlflow"]]}
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", "postgresql:///mlflow"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotUpgraded(done.stderr[-2000:])


def _make_bucket() -> None:
    """The bucket of CSLM_ARTIFACTS; where it is there, rights on it are enough."""
    import boto3
    from botocore.exceptions import ClientError

    bucket = places.artifacts_uri().removeprefix("s3://").partition("/")[0]
    store = boto3.client("s3")
    try:
        store.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        store.create_bucket(Bucket=bucket)


def _waiting(what: str, do: Callable[[], None]) -> None:
    """Do it as soon as the server that it needs answers."""
    import psycopg
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + START_S
    while True:
        try:
            do()
            return
        except (psycopg.OperationalError, NotUpgraded, BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                sys.exit(f"prepare: {what} does not do its work, after {START_S} s: {error}")
            time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
