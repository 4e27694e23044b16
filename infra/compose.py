"""All of it in containers on this machine: PostgreSQL, object store, MLflow, Airflow and the chat page.

Run:  make compose         (python -m infra.compose up)
      make compose-down    (python -m infra.compose down)

The services are those of infra/compose.yaml, or of the files that COMPOSE_FILE names. What they are started
with is written into CSLM_HOME/airflow/compose.env (mode 600): passwords, made once and kept, images, paths and
ports. By hand:

      docker compose --env-file var/airflow/compose.env --file infra/compose.yaml logs mlflow
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dags import images, places
from infra import airflow_local, services
from infra.build_images import container_engine

FILE = places.PROJECT / "infra" / "compose.yaml"
SECRETS = (
    "CSLM_POSTGRES_PASSWORD",
    "CSLM_AIRFLOW_DATABASE_PASSWORD",
    "CSLM_MLFLOW_DATABASE_PASSWORD",
    "CSLM_MLFLOW_PASSWORD",
    "CSLM_MLFLOW_SECRET_KEY",
    "CSLM_STORE_KEY",
    "CSLM_STORE_SECRET",
)
"""Variables of infra/compose.yaml that are made here, once."""
IMAGES = {"CSLM_IMAGE_ORCHESTRATOR": images.ORCHESTRATOR, "CSLM_IMAGE_CHAT": "chat"}
PORTS = {"AIRFLOW_PORT": 8080, "MLFLOW_PORT": 5000, "CHAT_PORT": 7860}
STORES, PREPARE = ("postgres", "store"), "prepare"
"""Services that come before all others, and what is done with them first."""
START_S = 240


class Refused(Exception):
    """Nothing can be started; the message says why and what to do."""


def main() -> int:
    """Start or stop; 1 and one line if something is missing."""
    actions = {"up": up, "down": down}
    if len(sys.argv) != 2 or sys.argv[1] not in actions:
        sys.exit("usage: python -m infra.compose up|down")
    try:
        engine = container_engine()
        actions[sys.argv[1]](engine, composer(engine))
    except (Refused, FileNotFoundError) as error:
        print(f"compose: {error}", file=sys.stderr)
        return 1
    return 0


def up(engine: str, tool: list[str]) -> None:
    """Start what is not running yet, wait until it answers, print where it is.

    Raises:
        Refused: an image or the engine's socket is missing, or something does not come up.
    """
    if running := services.alive():
        raise Refused(f"`make up` runs here ({', '.join(sorted(running))}): stop it first, with make down")
    values = settings(engine)
    for variable, name in IMAGES.items():
        if subprocess.run([engine, "image", "inspect", values[variable]], capture_output=True).returncode:
            raise Refused(f"the image {values[variable]} is not there: make images ONLY='{name}' builds it")
    _run(tool, values, "up", "--detach", *STORES)
    _run(tool, values, "--profile", PREPARE, "run", "--rm", "--no-deps", PREPARE)
    _run(tool, values, "up", "--detach")
    print("waiting until Airflow and MLflow answer ...", flush=True)
    airflow, mlflow, chat = (f"http://127.0.0.1:{values[name]}" for name in PORTS)
    waiting: dict[str, Callable[[], bool]] = {
        "mlflow": lambda: services.get(f"{mlflow}/health") is not None,
        "airflow": lambda: services.airflow_healthy(airflow),
    }
    deadline = time.monotonic() + START_S
    while waiting := {name: ready for name, ready in waiting.items() if not ready()}:
        if time.monotonic() > deadline:
            by_hand = f"{' '.join(tool)} --env-file {environment_file()} --file {FILE}"
            raise Refused(f"{' and '.join(waiting)}: no answer in {START_S} s. Look with: {by_hand} logs")
        time.sleep(1)
    print(f"""
Airflow  {airflow}   user admin, password in {services.passwords()}
MLflow   {mlflow}   user admin, password CSLM_MLFLOW_PASSWORD in {environment_file()}
chat     {chat}   as soon as a model is registered

make compose-down stops all of it; what it keeps stays in the volumes""")


def down(engine: str, tool: list[str]) -> None:
    """Stop and remove all containers; the volumes stay."""
    _run(tool, settings(engine), "down")


def composer(engine: str) -> list[str]:
    """The command that reads infra/compose.yaml: podman-compose for podman, else the engine's own `compose`.

    Raises:
        Refused: it is not installed.
    """
    if Path(engine).name == "podman":
        folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        if found := shutil.which("podman-compose", path=folders):
            return [found, "--podman-path", engine]
        raise Refused("podman-compose is not here: make setup installs it")
    if subprocess.run([engine, "compose", "version"], capture_output=True).returncode:
        raise Refused(f"`{engine} compose` is not here: sudo apt-get install -y docker-compose-plugin")
    return [engine, "compose"]


def settings(engine: str) -> dict[str, str]:
    """Values of the variables of infra/compose.yaml, which are written into `environment_file` too.

    Raises:
        Refused: the engine's socket is not there.
    """
    path = environment_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    known = dict(line.split("=", 1) for line in path.read_text("utf-8").splitlines()) if path.exists() else {}
    socket = _socket(engine)
    rootless = Path(engine).name == "podman" and os.getuid() != 0
    values = {
        # without dashes at the beginning, which programs take for options
        **{name: known.get(name) or secrets.token_hex(24) for name in SECRETS},
        **{variable: images.name(name) for variable, name in IMAGES.items()},
        **{name: str(airflow_local.port(name, default)) for name, default in PORTS.items()},
        "CSLM_CHECKOUT": str(places.PROJECT),
        "CSLM_HOME": str(places.home()),
        # a rootless engine's root is the user that runs it
        "CSLM_USER": "0:0" if rootless else f"{os.getuid()}:{os.getgid()}",
        "CSLM_SOCKET": str(socket),
        "CSLM_SOCKET_GROUP": "0" if rootless else str(socket.stat().st_gid),
    }
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(
        os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
    ) as file:
        file.writelines(f"{name}={value}\n" for name, value in values.items())
    partial.rename(path)
    return values


def environment_file() -> Path:
    """Where the passwords lie: in the folder of Airflow's keys, which no stage can see."""
    return places.home() / "airflow" / "compose.env"


def _socket(engine: str) -> Path:
    """The engine's socket, through which Airflow starts stages: DOCKER_HOST's, or where it usually is.

    Raises:
        Refused: there is none.
    """
    usual = "/var/run/docker.sock"
    if Path(engine).name == "podman":
        usual = (
            f"{'/run' if os.getuid() == 0 else os.environ.get('XDG_RUNTIME_DIR', '/run')}/podman/podman.sock"
        )
    address = os.environ.get("DOCKER_HOST") or f"unix://{usual}"
    path = Path(address.removeprefix("unix://"))
    if not (path.is_absolute() and path.exists() and stat.S_ISSOCK(path.stat().st_mode)):
        raise Refused(
            f"no container engine listens at {address} (DOCKER_HOST): start it (systemctl --user enable --now "
            "podman.socket, or dockerd), or name its socket, unix:///..."
        )
    return path


def _run(tool: list[str], values: dict[str, str], *arguments: str) -> None:
    files = os.environ.get("COMPOSE_FILE") or str(FILE)
    command = [*tool, "--env-file", str(environment_file()), *arguments]
    if subprocess.run(
        command, cwd=places.PROJECT, env=os.environ | values | {"COMPOSE_FILE": files}
    ).returncode:
        raise Refused(f"{' '.join(command)} has failed (see above)")


if __name__ == "__main__":
    sys.exit(main())
