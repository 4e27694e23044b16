"""A real PostgreSQL server for tests: a private cluster of Debian's package, gone when the test is over.

with Postgres("airflow", "mlflow") as server:
    server.url("airflow")     # postgresql://postgres@127.0.0.1:PORT/airflow
    server.environment        # its password, as libpq reads it
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

USER = "postgres"


def programs() -> Path | None:
    """Folder of initdb and pg_ctl; None if PostgreSQL is not installed."""
    return max((path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=None)


class Postgres:
    """A server on a free port with some empty databases, which asks for a password."""

    def __init__(self, *databases: str) -> None:
        self._databases = databases
        self._folder = Path(tempfile.mkdtemp(prefix="cslm-postgres-"))
        self._password = secrets.token_urlsafe(16)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    @property
    def environment(self) -> dict[str, str]:
        """What libpq reads."""
        return {"PGPASSWORD": self._password}

    def url(self, database: str) -> str:
        """Address of a database, without the password."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def query(self, database: str, statement: str) -> list[str]:
        """Rows of a query, as psql prints them."""
        command = ["psql", "--no-psqlrc", "--tuples-only", "--no-align", "--command", statement]
        return self._run(*command, self.url(database)).split()

    def __enter__(self) -> Postgres:
        (self._folder / "password").write_text(self._password)
        if os.getuid() == 0:  # PostgreSQL refuses to work as root; its package has made a user
            for path in (self._folder, self._folder / "password"):
                shutil.chown(path, USER)
        data = self._folder / "data"
        self._server(
            *["initdb", "--pgdata", str(data), "--username", USER, "--auth", "scram-sha-256"],
            *["--pwfile", str(self._folder / "password"), "--no-sync"],
        )
        options = f"-p {self.port} -h 127.0.0.1 -k {self._folder} -c fsync=off"
        self._server(
            "pg_ctl", "--pgdata", str(data), "--log", str(self._folder / "log"), "-o", options, "-w", "start"
        )
        for name in self._databases:
            self._run("psql", "--command", f"CREATE DATABASE {name}", self.url("postgres"))
        return self

    def __exit__(self, *_: object) -> None:
        self._server("pg_ctl", "--pgdata", str(self._folder / "data"), "--mode", "immediate", "stop")
        shutil.rmtree(self._folder)

    def _server(self, program: str, *arguments: str) -> None:
        folder = programs()
        assert folder is not None
        who = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"] if os.getuid() == 0 else []
        self._run(*who, str(folder / program), *arguments)

    def _run(self, *command: str) -> str:
        result = subprocess.run(
            command,
            cwd=self._folder,
            env=os.environ | self.environment,
            stdout=subprocess.PIPE if command[0] == "psql" else subprocess.DEVNULL,
            stderr=subprocess.PIPE if command[0] == "psql" else subprocess.DEVNULL,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{command}: {result.stderr}"
        return result.stdout or ""
