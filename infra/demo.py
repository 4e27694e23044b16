"""Run the DAG `cslm_train` here and now, and show how it goes.

Run:  make demo                                   the sample profile, the work tree as it is
      make demo PROFILE=test                      params.yaml with profiles/test.yaml
      make demo SET='finetune.learning_rate=2e-4 seed=2' FORCE='finetune' REF=v1.0 RUN=my-name
      make demo BASE=production                 continue from the registered version with that alias, or number

Airflow runs in a child process whose whole log is var/logs/RUN.log; what is drawn here comes from the
run's events file. Ctrl-C ends the child and all that it started.
Exit code: 0 done, 1 a stage failed, 2 a bad request, 130 interrupted.
"""

from __future__ import annotations

import datetime
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from dags import dvc_stage, events, parameters, places, preparation, tracking
from infra import airflow_local, services
from infra.metrics_table import table

POLL_S = 0.2
TAIL_LINES = 12
PLAIN_PROGRESS_S = 10.0
WIDTH = 28


def main() -> int:
    profile = os.environ.get("PROFILE") or parameters.DEFAULT_PROFILE
    run = os.environ.get("RUN") or f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    if profile not in parameters.profiles(places.PROJECT):
        return _say(
            f"PROFILE={profile}: no such profile; there are: {', '.join(parameters.profiles(places.PROJECT))}"
        )
    if not preparation.NAME.fullmatch(run):
        return _say(f"RUN={run}: letters, digits, dot, dash and underscore, please")
    if events.last(places.results(run), "", "prepared"):
        kept = "what it finished is in the cache, and the same command under another name goes on from there"
        return _say(f"RUN={run}: there is a run of this name; choose another one ({kept})")
    try:
        overrides = parameters.given(os.environ.get("SET", ""))
    except parameters.BadParameters as error:
        return _say(str(error))
    conf = {
        "name": run,
        "profile": profile,
        "overrides": overrides,
        "ref": os.environ.get("REF", ""),
        "base": os.environ.get("BASE", ""),
        "force": os.environ.get("FORCE", "").replace(",", " ").split(),
    }
    if running := services.alive():
        return _say(
            f"Airflow runs in the background ({', '.join(sorted(running))}): trigger cslm_train on its page "
            "with these parameters, or stop it first (make down)"
        )
    with airflow_local.only_demo() as alone:
        if not alone:
            return _say("another `make demo` runs in this folder: wait for its end, or stop it with Ctrl-C")
        return _run(run, profile, conf)


def _run(run: str, profile: str, conf: dict[str, Any]) -> int:
    log = places.home() / "logs" / f"{run}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"cslm_train, profile {profile}, run {run}\nlog: {_short(log)}\n", flush=True)
    begin = time.monotonic()
    airflow_local.migrate()
    code = follow(run, conf, log)
    if code == 0:
        _summary(run, time.monotonic() - begin)
    return code


def follow(run: str, conf: dict[str, Any], log: Path) -> int:
    """Start the DAG and draw its events until it ends; the exit code for make."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it: it outlives its terminal
        signal.signal(signal.SIGHUP, _interrupt)
    command = [sys.executable, "-m", "dags.in_process", json.dumps(conf)]
    told = events.Reader(places.results(run))
    told.read()  # of an earlier try, which came to nothing
    with log.open("w", encoding="utf-8") as file:
        child = subprocess.Popen(
            command,
            cwd=places.PROJECT,
            env=airflow_local.environment() | {"AIRFLOW__CORE__DEFAULT_TASK_RETRIES": "0"},
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        screen = Screen(sys.stdout)
        try:
            while True:
                ended = child.poll() is not None
                for event in told.read():
                    screen.show(event)
                if ended:
                    break
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            screen.end_line()
            print("interrupted: ending what runs ...", flush=True)
            end_child(child)
            _close(run)
            other = " (under another RUN=)" if os.environ.get("RUN") else ""
            print(f"what was finished is kept; the same command goes on from there{other}")
            return 130
    screen.end_line()
    if child.returncode == 0:
        return 0
    if screen.failures:
        print("\nFAILED\n" + "\n".join(screen.failures), file=sys.stderr)
    else:
        tail = log.read_text("utf-8", errors="replace").rstrip().splitlines()[-TAIL_LINES:]
        print("\nFAILED\n  cause:", *(f"    {line}" for line in tail), sep="\n", file=sys.stderr)
    print(f"  Airflow's log: {_short(log)}", file=sys.stderr)
    return 1


def end_child(child: subprocess.Popen[bytes]) -> None:
    """TERM, then KILL. What a stage has started ends by itself with its task (dags/dvc_stage.py)."""
    child.terminate()
    try:
        child.wait(dvc_stage.grace_s())
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _close(run: str) -> None:
    """End the MLflow run of an interrupted run as KILLED, if it had begun."""
    if begun := events.last(places.results(run), "", "prepared"):
        tracking.end(begun["mlflow_run"], "KILLED")


class Screen:
    """One line per stage; progress inside a stage is drawn over it on a terminal, else now and then."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.numbers: dict[str, int] = {}
        self.failures: list[str] = []
        self.terminal = out.isatty()
        self._open = ""
        self._last_progress = 0.0

    def show(self, event: dict[str, Any]) -> None:
        stage, state = event["stage"], event["state"]
        if state == "prepared":
            self.numbers = {name: i for i, name in enumerate([*event["stages"], "register"], start=1)}
            print(f"commit {event['commit'][:10]} on branch runs/{event['run']}", file=self.out, flush=True)
        elif not stage:
            if state == "failed":
                self.failures.append(event["cause"])
        elif state == "started":
            self._last_progress = time.monotonic()
            self._draw(stage, "")
        elif state == "progress":
            self._progress(stage, event["text"])
        else:
            seconds = f"{event['seconds']:.0f} s"
            text = {"cached": "cached", "failed": f"FAILED after {seconds}"}.get(state, seconds)
            self._draw(stage, f"{text}  {event['text']}" if event.get("text") else text)
            self.end_line()
            if state == "failed":
                self.failures.append(event["cause"])

    def end_line(self) -> None:
        """Leave a half-drawn line."""
        if self._open:
            print(file=self.out, flush=True)
            self._open = ""

    def _progress(self, stage: str, text: str) -> None:
        if self.terminal:
            self._draw(stage, text)
        elif time.monotonic() - self._last_progress >= PLAIN_PROGRESS_S:
            self._last_progress = time.monotonic()
            self.end_line()
            print(f"        {stage}: {text}", file=self.out, flush=True)

    def _draw(self, stage: str, text: str) -> None:
        line = f"[{self.numbers.get(stage, 0):>2}/{len(self.numbers)}] {f'{stage} ':.<{WIDTH}} "
        if self.terminal:
            columns = max(20, os.get_terminal_size(self.out.fileno()).columns - 1)
            self.out.write("\r\x1b[K" + (line + text)[:columns])
        elif self._open == stage:
            self.out.write(text)
        else:
            self.end_line()
            self.out.write(line + text)
        self.out.flush()
        self._open = stage


def _summary(run: str, seconds: float) -> None:
    folder = places.results(run)
    headlines = folder / "report" / "evaluation" / "headlines.json"
    if headlines.exists():
        print("\n" + "\n".join(table(headlines)))
    registered = events.last(folder, "register", "ran") or {}
    print(f"\nregistered: {registered.get('text', '-')}")
    print(f"took:       {int(seconds // 60)} min {seconds % 60:.0f} s")
    print(f"results:    {_short(folder)} (dvc.lock, metrics/, report/), and the branch runs/{run}")
    print("look:       make up  (the pages of Airflow and MLflow)")


def _short(path: Path) -> str:
    return str(path.relative_to(places.PROJECT)) if path.is_relative_to(places.PROJECT) else str(path)


def _say(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
