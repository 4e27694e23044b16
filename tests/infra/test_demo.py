"""What a user of `make demo` sees, through Airflow itself, on a toy project."""

from __future__ import annotations

import fcntl
import io
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from infra import demo
from infra.metrics_table import table
from tests import webhook
from tests.answering import AWAY, answering
from tests.dags import toy
from tests.object_store import BUCKET, WRITER, ObjectStore


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy project with no run yet; the tests use it in the order they are written."""
    return toy.make(tmp_path_factory.mktemp("toy") / "project")


def test_demo_tells_stages_metrics_version_and_places(project: Path) -> None:
    result = toy.demo(project, RUN="one", SET="final.plus=2")
    assert result.returncode == 0, result.stdout + result.stderr
    for line in ("[ 1/4] ingest@one ", "[ 2/4] double ", "[ 3/4] final ", "[ 4/4] register "):
        assert line in result.stdout
    assert "registered: registered toy with 0.044" in result.stdout
    assert "4.4 %" in result.stdout
    assert "9.8 %" in result.stdout
    assert json.loads((project / "metrics" / "evaluation.json").read_text())["asr"]["en"]["wer"] == 0.044
    assert (project / "var" / "runs" / "one" / "dvc.lock").exists()
    assert (project / "var" / "logs" / "one.log").stat().st_size > 0
    assert toy.run(project, "git", "status", "--porcelain") == ""
    toy.calls(project)


def test_failing_stage_is_named_with_cause_and_log_and_the_rerun_goes_on(project: Path) -> None:
    with webhook.listening() as (url, told):
        result = toy.demo(project, RUN="two", SET="final.mode=fail double.factor=5", CSLM_FAILURE_WEBHOOK=url)
    assert result.returncode == 1
    [failure] = told
    assert (failure["dag"], failure["task"]) == ("cslm_train", "final")
    assert "the number 13 is unlucky" in failure["error"]
    assert "stage final failed" in result.stderr
    assert "final: the number 13 is unlucky; set final.mode to work" in result.stderr
    assert "logs/two/final.log" in result.stderr
    assert "FAILED after" in result.stdout
    assert "register" not in result.stdout
    assert toy.calls(project) == ["double", "final"]

    result = toy.demo(project, RUN="three", SET="double.factor=5")
    assert result.returncode == 0, result.stdout + result.stderr
    assert toy.calls(project) == ["final"]
    assert sum(line.endswith(" cached") for line in result.stdout.splitlines()) == 2


def test_the_object_store_is_that_of_airflows_connection(project: Path, tmp_path: Path) -> None:
    """Who asks, where, and by which CA: the environment says other things, and the server speaks TLS alone."""
    with ObjectStore(tmp_path, tls=True) as store:
        extra = {"endpoint_url": store.url, "region_name": "us-east-1", "verify": str(store.authority)}
        store.client(WRITER).create_bucket(Bucket=BUCKET)
        connection = {"conn_type": "aws", "login": WRITER.access, "password": WRITER.secret, "extra": extra}
        wrong = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"), "environment")
        told = {"CSLM_DVC_REMOTE": f"s3://{BUCKET}/dvc", "SET": "final.plus=40"}
        result = toy.demo(project, RUN="mine", AIRFLOW_CONN_CSLM_S3=json.dumps(connection), **told, **wrong)
        assert result.returncode == 0, result.stdout + result.stderr
        assert store.holds(b"82"), "two times 21, and 40"
    left = [path for path in (project / "var").rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in left if WRITER.secret.encode() in path.read_bytes()] == []
    toy.calls(project)


def test_bad_parameter_fails_before_any_stage(project: Path) -> None:
    """And the name is free for another try, which tells of its own failure alone."""
    for bogus in ("final.bogus=1", "double.bogus=1"):
        result = toy.demo(project, RUN="bad", SET=bogus)
        assert result.returncode == 1
        assert "\nFAILED\nrun bad failed\n  cause:\n    prepare: bad parameters" in result.stderr
        assert result.stderr.count("final.bogus is not a known key; allowed there: plus, mode") == 1
        assert "  Airflow's log: var/logs/bad.log" in result.stderr
    assert toy.calls(project) == []


def test_an_mlflow_that_is_away_is_named_with_what_to_do(project: Path) -> None:
    """Airflow would try that again; who sits in front of it does so, and is told no more than this."""
    with answering(AWAY) as server:
        result = toy.demo(project, RUN="away", MLFLOW_TRACKING_URI=server)
    assert result.returncode == 1
    assert f"\n    MLflow at {server} does not do its work" in result.stderr
    assert "start it (make up) or unset MLFLOW_TRACKING_URI, then run this again" in result.stderr


def test_bad_requests_are_refused_at_once(project: Path) -> None:
    result = toy.demo(project, PROFILE="nope")
    assert result.returncode == 2
    assert "there are: sample, triple" in result.stderr
    result = toy.demo(project, SET="final.plus")
    assert result.returncode == 2
    assert "is not KEY=VALUE" in result.stderr


def test_progress_is_shown_now_and_then_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(demo.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    screen = demo.Screen(out)
    screen.show({"stage": "", "state": "prepared", "stages": ["a"], "commit": "0" * 40, "run": "r"})
    screen.show({"stage": "a", "state": "started"})
    for second in range(25):
        now[0] = float(second)
        screen.show({"stage": "a", "state": "progress", "text": f"{second}/25 steps"})
    screen.show({"stage": "a", "state": "ran", "seconds": 25.0})
    shown = [line for line in out.getvalue().splitlines() if "steps" in line]
    assert shown == ["        a: 10/25 steps", "        a: 20/25 steps"]
    assert out.getvalue().splitlines()[-1].endswith("25 s")


def test_table_marks_what_misses_its_target(tmp_path: Path) -> None:
    row = {"interval": "", "paper": "9.8 %", "target": "≤ 5.0 %"}
    rows = [
        {**row, "title": "English", "value": "6.1 %", "reached": False},
        {**row, "title": "Mandarin", "value": "2.0 %", "interval": "1.0 % to 3.0 %", "reached": True},
        {**row, "title": "BLEU", "value": "50.0", "paper": "", "target": "", "reached": None},
    ]
    (tmp_path / "headlines.json").write_text(json.dumps(rows))
    shown = [line.split() for line in table(tmp_path / "headlines.json")[1:]]
    assert shown[0] == ["English", "6.1", "%", "9.8", "%", "≤", "5.0", "%", "MISSED"]
    assert shown[1][-1] == "ok" and "3.0" in shown[1]
    assert shown[2] == ["BLEU", "50.0"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Programs started by the test hear SIGINT and SIGHUP, as in a terminal; a shell's background jobs are deaf
    to the one, and under nohup to the other."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGHUP, hangup)


def hanging_demo(project: Path, run: str, plus: int, before: Sequence[str] = ()) -> subprocess.Popen[str]:
    """A demo whose last stage has begun and does not end by itself; `plus` makes its result a new one."""
    pid = project / "var" / "pid"
    pid.unlink(missing_ok=True)
    process = subprocess.Popen(
        [*before, sys.executable, "-m", "infra.demo"],
        cwd=project,
        env=toy.environment(project) | {"RUN": run, "SET": f"final.mode=hang final.plus={plus}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 150
    while not pid.exists() or not pid.read_text():
        assert process.poll() is None, "the demo has ended before its stage began"
        assert time.monotonic() < deadline, "the stage has not begun"
        time.sleep(0.1)
    return process


def wait_for_the_end_of_its_stage(project: Path) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{(project / 'var' / 'pid').read_text()}").exists():
        assert time.monotonic() < deadline, "the stage's process outlived the demo"
        time.sleep(0.2)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_ends_the_stage_too(project: Path) -> None:
    process = hanging_demo(project, "stopped", plus=9)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in told
    wait_for_the_end_of_its_stage(project)
    with sqlite3.connect(project / "var" / "mlflow.db") as store:
        assert store.execute("SELECT status FROM runs WHERE name = 'stopped'").fetchall() == [("KILLED",)]
    assert toy.demo(project, RUN="next").returncode == 0
    with sqlite3.connect(project / "var" / "airflow" / "airflow.db") as airflow:
        states = dict(airflow.execute("SELECT json_extract(conf, '$.name'), state FROM dag_run"))
        waiting = airflow.execute("SELECT count(*) FROM task_instance WHERE state IN ('running', 'scheduled')")
        assert (states["stopped"], states["next"], waiting.fetchone()) == ("failed", "success", (0,))


@pytest.mark.usefixtures("interruptible")
def test_a_closed_terminal_ends_the_stage_and_so_does_a_killed_demo(project: Path) -> None:
    for plus, (run, number) in enumerate([("hung-up", signal.SIGHUP), ("killed", signal.SIGKILL)], start=20):
        process = hanging_demo(project, run, plus)
        process.send_signal(number)
        process.communicate(timeout=60)
        wait_for_the_end_of_its_stage(project)


def test_a_demo_under_nohup_outlives_its_terminal(project: Path) -> None:
    process = hanging_demo(project, "nohup", plus=30, before=("nohup",))
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 130
    wait_for_the_end_of_its_stage(project)


def test_two_demos_do_not_run_at_once(project: Path) -> None:
    lock = project / "var" / "run" / "demo.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        result = toy.demo(project, RUN="second")
    assert result.returncode == 2
    assert "another `make demo` runs" in result.stderr
