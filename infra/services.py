"""Airflow and MLflow in the background.

Run:  make up       (python -m infra.services up)
      make down     (python -m infra.services down)

Ports come from AIRFLOW_PORT (8080) and MLFLOW_PORT (5000). Each service is a process group of its own with a
pid file in var/run and a log in var/logs; `down` ends the groups and checks that nothing is left of them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from dags import places, runners
from infra import airflow_local

START_S = 240
STOP_S = 30
"""Longer than a training gets to write a checkpoint (dags/dvc_stage.py)."""
AIRFLOW_SERVICES = {
    "airflow-api-server": ["api-server", "--workers", "1", "--apps", "core"],
    # What tasks report to, apart from what people ask: Airflow 3.3 writes its audit log in the event loop, and
    # on SQLite that waits for the very request of a task that waits for the loop, until one of them fails.
    "airflow-execution-api": ["api-server", "--workers", "1", "--apps", "execution"],
    "airflow-scheduler": ["scheduler", "--skip-serve-logs"],
    "airflow-dag-processor": ["dag-processor"],
    "airflow-triggerer": ["triggerer", "--skip-serve-logs"],
}


def up() -> int:
    """Start all services, wait until they answer, print where they are."""
    if running := alive():
        return _fail(f"already running: {', '.join(sorted(running))}; `make down` stops them")
    ports = {
        "AIRFLOW_PORT": airflow_local.port("AIRFLOW_PORT", 8080),
        "MLFLOW_PORT": airflow_local.port("MLFLOW_PORT", 5000),
    }
    for name, number in ports.items():
        if _taken(number):
            return _fail(
                f"port {number} is taken by another program: stop that, or choose one: make up {name}=..."
            )
    with airflow_local.only_demo() as alone:
        if not alone:
            return _fail("`make demo` runs in this folder: its tasks would be taken from it. Wait for its end")
        print("preparing Airflow's database ...", flush=True)
        airflow_local.migrate()
        subprocess.run(
            [sys.executable, "-m", "dags.interrupted"],
            env=airflow_local.environment(),
            cwd=places.home(),
            check=True,
        )
        try:
            runners.longest_stage()
            make_pools()
        except (ValueError, subprocess.CalledProcessError) as error:
            return _fail(str(error))
        return _start_all(ports)


def make_pools() -> None:
    """Airflow's pools of cores and GPUs.

    Raises:
        ValueError: CSLM_GPUS is no number.
    """
    path = places.home() / "airflow" / "pools.json"
    path.write_text(json.dumps(runners.pools(), indent=1), "utf-8")
    subprocess.run(
        [*airflow_local.AIRFLOW, "pools", "import", str(path)],
        env=airflow_local.environment(),
        cwd=places.home(),
        check=True,
        stdout=subprocess.DEVNULL,
    )


def passwords() -> Path:
    """The file in which Airflow keeps the password that it makes; nobody else may read it."""
    path = places.home() / "airflow" / "passwords.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.chmod(0o600)
    return path


def _start_all(ports: dict[str, int]) -> int:
    kept = passwords()
    airflow, mlflow = (f"http://127.0.0.1:{number}" for number in ports.values())
    tasks_port = _free_port()
    execution = f"http://127.0.0.1:{tasks_port}/execution/"
    environment = airflow_local.environment() | {"AIRFLOW__CORE__EXECUTION_API_SERVER_URL": execution}
    _start(
        "mlflow",
        [
            *[
                sys.executable,
                "-m",
                "mlflow",
                "server",
                "--host",
                "127.0.0.1",
                "--port",
                str(ports["MLFLOW_PORT"]),
            ],
            *["--workers", "1", "--default-artifact-root", places.artifacts_uri()],
        ],
        # Not among the arguments, which everybody on the machine may read: it can hold a password.
        environment | {"MLFLOW_BACKEND_STORE_URI": places.store_uri()},
    )
    for name, arguments in AIRFLOW_SERVICES.items():
        port = ["--port", str(tasks_port)] if name == "airflow-execution-api" else []
        _start(name, [*airflow_local.AIRFLOW, *arguments, *port], environment)
    print("waiting until Airflow and MLflow answer ...", flush=True)
    waiting: dict[str, Callable[[], bool]] = {
        "mlflow": lambda: get(f"{mlflow}/health") is not None,
        "airflow-api-server": lambda: airflow_healthy(airflow),
        "airflow-execution-api": lambda: get(f"{execution}health/ping") is not None,
    }
    deadline = time.monotonic() + START_S
    while waiting:
        if dead := sorted(_services() - alive()):
            return _give_up(dead[0], "has ended")
        if time.monotonic() > deadline:
            return _give_up(next(iter(waiting)), f"no answer in {START_S} s")
        waiting = {name: ready for name, ready in waiting.items() if not ready()}
        time.sleep(1)
    password = json.loads(kept.read_text("utf-8"))["admin"]
    print(f"\nAirflow  {airflow}   user admin, password {password}\nMLflow   {mlflow}\n\nmake down stops them")
    return 0


def down() -> int:
    """End every service and what it started; an error if something will not go."""
    groups = _running() | _orphaned()
    # Children that moved to groups of their own (tasks, web workers) are looked up before their parents die.
    families = {name: {group} | _descendant_groups(group) for name, group in groups.items()}
    everything = set().union(*families.values())
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        for group in everything:
            _signal(group, signal_number)
        deadline = time.monotonic() + STOP_S
        while any(map(_members, everything)) and time.monotonic() < deadline:
            time.sleep(0.2)
    if left := [pid for group in everything for pid in _members(group)]:
        return _fail(f"these processes will not end: {left}")
    for path in _folder().glob("*.pid"):
        path.unlink()
    print(f"stopped {', '.join(sorted(groups))}" if groups else "nothing was running")
    return 0


def alive() -> set[str]:
    """Names of the services whose process lives."""
    return set(_running())


def _running() -> dict[str, int]:
    """Service -> its process group. A pid file tells also when the process began: pids are given out again."""
    running = {}
    for path in _folder().glob("*.pid"):
        pid, _, began = path.read_text().partition(" ")
        if pid.isdigit() and began and _began(int(pid)) == began:
            running[path.stem] = int(pid)
    return running


def _orphaned() -> dict[str, int]:
    """Service -> the process group that it left behind when it died."""
    written = {path.stem: path.read_text().partition(" ")[0] for path in _folder().glob("*.pid")}
    groups = {name: int(pid) for name, pid in written.items() if pid.isdigit()}
    return {name: group for name, group in groups.items() if not _began(group) and _members(group)}


def _services() -> set[str]:
    return {"mlflow", *AIRFLOW_SERVICES}


def _start(name: str, command: list[str], environment: dict[str, str]) -> None:
    log = _log(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    # Mode 600: Airflow prints the password that it makes.
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
        process = subprocess.Popen(
            command,
            cwd=places.home(),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    (_folder() / f"{name}.pid").write_text(f"{process.pid} {_began(process.pid)}")


def _give_up(name: str, why: str) -> int:
    tail = "\n".join(_log(name).read_text("utf-8", errors="replace").splitlines()[-15:])
    down()
    return _fail(f"{name}: {why}. Its log, {_log(name)}, ends with:\n{tail}")


def airflow_healthy(url: str) -> bool:
    """Whether Airflow answers there, and hears of all its parts."""
    health = get(f"{url}/api/v2/monitor/health")
    if health is None:
        return False
    parts = json.loads(health)
    return all(
        parts[p]["status"] == "healthy" for p in ("metadatabase", "scheduler", "dag_processor", "triggerer")
    )


def get(url: str) -> bytes | None:
    """What a server answers; None if it does not."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bytes(answer.read())
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _began(pid: int) -> str | None:
    """Start of a living process in clock ticks since boot (field 22 of /proc/PID/stat)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _processes() -> dict[int, tuple[int, int]]:
    """Living processes: pid -> (parent, group)."""
    table = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, group = path.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if state != "Z":
            table[int(path.parent.name)] = (int(parent), int(group))
    return table


def _descendant_groups(pid: int) -> set[int]:
    table = _processes()
    family, grown = {pid}, True
    while grown:
        children = {child for child, (parent, _) in table.items() if parent in family} - family
        family |= children
        grown = bool(children)
    return {table[member][1] for member in family if member in table}


def _members(group: int) -> list[int]:
    return [pid for pid, (_, its_group) in _processes().items() if its_group == group]


def _signal(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def _folder() -> Path:
    folder = places.home() / "run"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _log(name: str) -> Path:
    return places.home() / "logs" / f"{name}.log"


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 1


if __name__ == "__main__":
    actions = {"up": up, "down": down}
    if len(sys.argv) != 2 or sys.argv[1] not in actions:
        sys.exit("usage: python -m infra.services up|down")
    sys.exit(actions[sys.argv[1]]())
