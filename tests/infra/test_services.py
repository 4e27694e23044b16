"""`make up`, a run triggered over the API as the page does it, `make down`: real services, toy project."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Asset
from mlflow import MlflowClient

from dags import assets
from infra import corpus_landed
from tests import webhook
from tests.dags import toy
from tests.infra import running

WRITING_S = 8


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make(tmp_path_factory.mktemp("toy") / "project")


@pytest.fixture(scope="module")
def ports() -> dict[str, str]:
    return running.ports() | {"CSLM_GPUS": "2"}


@pytest.fixture(scope="module")
def failures() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Address of the webhook, and what it was told."""
    with webhook.listening() as server:
        yield server


@pytest.fixture(scope="module")
def services(project: Path, ports: dict[str, str], failures: tuple[str, list[dict[str, Any]]]) -> Iterator[str]:
    """What `up` printed; `down` at the end, even of a failed test."""
    up = running.services(project, ports | {"CSLM_FAILURE_WEBHOOK": failures[0]}, "up")
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        yield up.stdout
    finally:
        running.services(project, ports, "down")


def test_taken_port_is_an_error_that_says_which(project: Path, ports: dict[str, str]) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = str(holder.getsockname()[1])
        result = running.services(project, ports | {"MLFLOW_PORT": taken}, "up")
    assert result.returncode == 1
    assert f"port {taken} is taken" in result.stderr
    assert "MLFLOW_PORT=" in result.stderr
    assert _processes(project) == []


def test_run_triggered_over_the_api_gives_what_the_demo_gives(
    services: str, project: Path, ports: dict[str, str]
) -> None:
    password_file = project / "var" / "airflow" / "passwords.json"
    assert json.loads(password_file.read_text())["admin"] in services
    assert password_file.stat().st_mode & 0o077 == 0
    assert running.call(f"http://127.0.0.1:{ports['MLFLOW_PORT']}/health", text=True) == "OK"
    airflow, token = running.airflow(project, ports)
    assert airflow in services
    conf = {"name": "triggered", "overrides": {"final.plus": 4}}
    runs = f"{airflow}/api/v2/dags/cslm_train/dagRuns"
    with _another_writer(project / "var" / "airflow" / "airflow.db"):
        run = running.call(runs, {"logical_date": None, "conf": conf}, token)["dag_run_id"]
    assert running.ended(f"{runs}/{run}", token) == "success"
    done = running.call(f"{runs}/{run}/taskInstances", token=token)["task_instances"]
    pools = {task["task_id"]: task["pool"] for task in done}
    assert (pools["final"], pools["double"]) == ("cslm_gpu", "cslm_cores"), "who uses a GPU waits for one"
    assert pools["prepare"] == pools["register"] == "default_pool", "what is no stage waits for none of them"
    pool = running.call(f"{airflow}/api/v2/pools/cslm_gpu", token=token)
    assert (pool["slots"], pool["include_deferred"]) == (2, True)
    evaluation = json.loads(
        (project / "var" / "runs" / "triggered" / "metrics" / "evaluation.json").read_text()
    )
    assert evaluation["asr"]["en"]["wer"] == 0.046
    assert toy.run(project, "git", "ls-tree", "--name-only", "runs/triggered", "dvc.lock").strip() == "dvc.lock"
    running.clear(f"{airflow}/api/v2/dags/cslm_train", run, "prepare", token)
    assert running.ended(f"{runs}/{run}", token) == "success", "a run that is done can be cleared"
    assert running.call(f"{runs}/{run}/taskInstances/prepare", token=token)["try_number"] == 2


def test_a_candidate_goes_to_production_when_a_person_approves(
    services: str, failures: tuple[str, list[dict[str, Any]]], project: Path, ports: dict[str, str]
) -> None:
    """The run above has registered a candidate: that alone starts `cslm_promote`."""
    airflow, token = running.airflow(project, ports)
    dag = f"{airflow}/api/v2/dags/cslm_promote/dagRuns"
    [run] = running.until(lambda: running.call(dag, token=token)["dag_runs"])
    detail, question = _asked(f"{dag}/{run['dag_run_id']}", token)
    assert question["subject"] == "Version 7 of cslm into production?"
    assert question["body"] == "| figure | **better** |"
    assert list(question["params"]) == ["reason"], "what the page asks for beside the buttons"
    [told] = failures[1]
    assert (told["run"], told["task"], told["asks"]) == (run["dag_run_id"], "approve", question["subject"])
    [judged] = _promote_calls(project)
    assert judged["command"] == "gate", "nothing moves before the answer"
    answer = {"chosen_options": ["Approve"], "params_input": {"reason": "sounds better"}}
    running.call(detail, answer, token, method="PATCH")
    assert running.ended(f"{dag}/{run['dag_run_id']}", token) == "success"
    promoted = _promote_calls(project)[-1]
    assert promoted["command"] == "promote"
    assert (promoted["--version"], promoted["--expect-production"]) == ("7", "0")
    assert (promoted["--by"], promoted["--reason"]) == ("admin", "sounds better")


@pytest.mark.parametrize(
    ("answer", "version", "state", "called"),
    [("Reject", None, "success", ["gate", "reject"]), (None, 13, "failed", ["gate"])],
    ids=["person", "gate"],
)
def test_what_a_person_or_the_gate_refuses_stays_out(
    services: str,
    failures: tuple[str, list[dict[str, Any]]],
    project: Path,
    ports: dict[str, str],
    answer: str | None,
    version: int | None,
    state: str,
    called: list[str],
) -> None:
    airflow, token = running.airflow(project, ports)
    dag = f"{airflow}/api/v2/dags/cslm_promote/dagRuns"
    before = len(_promote_calls(project))
    run = running.call(dag, {"logical_date": None, "conf": {"version": version}}, token)["dag_run_id"]
    if answer:
        detail, _ = _asked(f"{dag}/{run}", token)
        said = {"chosen_options": [answer], "params_input": {"reason": "it stutters"}}
        running.call(detail, said, token, method="PATCH")
    assert running.ended(f"{dag}/{run}", token) == state
    calls = _promote_calls(project)[before:]
    assert [call["command"] for call in calls] == called
    if answer:
        assert (calls[-1]["--version"], calls[-1]["--by"], calls[-1]["--reason"]) == (
            "7",
            "admin",
            "it stutters",
        )
    if state == "failed":
        [told] = running.until(lambda: [each for each in failures[1] if "error" in each])
        assert (told["dag"], told["run"], told["task"]) == ("cslm_promote", run, "gate")
        assert "version 13 is unlucky" in told["error"]
        assert told["log"].startswith(airflow)


def test_a_rollback_needs_a_reason_and_notes_who(services: str, project: Path, ports: dict[str, str]) -> None:
    airflow, token = running.airflow(project, ports)
    dag = f"{airflow}/api/v2/dags/cslm_rollback/dagRuns"
    with pytest.raises(urllib.error.HTTPError, match="400"):
        running.call(dag, {"logical_date": None, "conf": {}}, token)
    run = running.call(dag, {"logical_date": None, "conf": {"reason": "it stutters"}}, token)["dag_run_id"]
    assert running.ended(f"{dag}/{run}", token) == "success"
    call = _promote_calls(project)[-1]
    assert (call["command"], call["--by"], call["--reason"]) == ("rollback", "admin", "it stutters")
    assert call["--request"] == run, "who clears it takes off no other version"


def test_new_data_starts_a_training_from_the_production_version(
    services: str, project: Path, ports: dict[str, str]
) -> None:
    """The toy's runs make no weights to go on from, so the run that is started ends there, and says so."""
    registry = MlflowClient(f"sqlite:///{project}/var/mlflow.db")
    registry.create_registered_model("cslm")
    tags = {"data_version": "one=another-digest", "pipeline_run": "triggered"}
    version = registry.create_model_version("cslm", (project / "var").as_uri(), tags=tags)
    registry.set_registered_model_alias("cslm", "production", version.version)
    airflow, token = running.airflow(project, ports)
    told = _corpus_landed(project, ports)
    assert (told.returncode, told.stderr) == (0, "")
    runs = f"{airflow}/api/v2/dags/cslm_train/dagRuns"
    started = running.until(
        lambda: [
            run
            for run in running.call(runs, token=token)["dag_runs"]
            if run["conf"].get("base") == "production"
        ]
    )
    conf = started[0]["conf"]
    assert conf["overrides"]["seed"] > 20260000, "another seed every night"
    assert conf["overrides"]["register.model"] == "cslm", "what was asked about is what is trained"
    assert len(conf["overrides"]) == 2, "all corpora stay: the old ones are the replay"
    assert "data that version 1 has not seen: one another-" in conf["why"]
    assert running.ended(f"{runs}/{started[0]['dag_run_id']}", token) == "failed"
    log = f"{runs}/{started[0]['dag_run_id']}/taskInstances/prepare/logs/1"
    assert "dvc.lock of runs/triggered has no work/model" in json.dumps(running.call(log, token=token))

    dag = f"{airflow}/api/v2/dags/cslm_retrain"
    [decided] = [
        each["dag_run_id"]
        for each in running.call(f"{dag}/dagRuns", token=token)["dag_runs"]
        if each["dag_run_id"] in started[0]["dag_run_id"]
    ]
    running.clear(dag, decided, "train", token)
    again = f"{runs}/{started[0]['dag_run_id']}/taskInstances/prepare"
    running.until(lambda: running.call(again, token=token)["try_number"] == 2)
    assert len(running.call(runs, token=token)["dag_runs"]) == 2, "the same training again, and no other one"


def test_while_a_training_waits_or_runs_no_other_one_is_started(
    services: str, project: Path, ports: dict[str, str]
) -> None:
    """The production version of the test above still has not seen the data, so there is a reason to train."""
    airflow, token = running.airflow(project, ports)
    train, dag = f"{airflow}/api/v2/dags/cslm_train", f"{airflow}/api/v2/dags/cslm_retrain"
    before = running.call(f"{train}/dagRuns", token=token)["dag_runs"]
    for each in before:
        running.ended(f"{train}/dagRuns/{each['dag_run_id']}", token)
    running.call(train, {"is_paused": True}, token, method="PATCH")
    waiting = running.call(f"{train}/dagRuns", {"logical_date": None, "conf": {}}, token)["dag_run_id"]
    run = running.call(f"{dag}/dagRuns", {"logical_date": None, "conf": {}}, token)["dag_run_id"]
    assert running.ended(f"{dag}/dagRuns/{run}", token) == "success"
    why = running.call(f"{dag}/dagRuns/{run}/taskInstances/decide/xcomEntries/why", token=token)["value"]
    assert "a run of cslm_train is queued or running" in why
    states = running.call(f"{dag}/dagRuns/{run}/taskInstances", token=token)["task_instances"]
    assert {task["task_id"]: task["state"] for task in states} == {"decide": "skipped", "train": "skipped"}
    after = {each["dag_run_id"] for each in running.call(f"{train}/dagRuns", token=token)["dag_runs"]}
    assert after == {each["dag_run_id"] for each in before} | {waiting}
    running.call(train, {"is_paused": False}, token, method="PATCH")
    assert running.ended(f"{train}/dagRuns/{waiting}", token) == "success"


def test_a_candidate_is_judged_once(services: str, project: Path, ports: dict[str, str]) -> None:
    registry = MlflowClient(f"sqlite:///{project}/var/mlflow.db")
    version = registry.create_model_version("cslm", (project / "var").as_uri(), tags={"stage": "Staging"})
    registry.set_registered_model_alias("cslm", "candidate", version.version)
    airflow, token = running.airflow(project, ports)
    train, judging = f"{airflow}/api/v2/dags/cslm_train", f"{airflow}/api/v2/dags/cslm_promote/dagRuns"
    before = running.call(judging, token=token)["total_entries"]
    run = running.call(f"{train}/dagRuns", {"logical_date": None, "conf": {}}, token)["dag_run_id"]
    assert running.ended(f"{train}/dagRuns/{run}", token) == "success"
    log = f"{train}/dagRuns/{run}/taskInstances/register/logs/1"
    told = f"version {version.version} was judged before: cslm_promote is not started again"
    assert told in json.dumps(running.call(log, token=token))
    assert _registered(f"{train}/dagRuns/{run}", token) == int(version.version)
    events = running.call(f"{airflow}/api/v2/assets/events", token=token)["asset_events"]
    assert run not in {event["source_run_id"] for event in events if event["name"] == "cslm-candidate"}
    assert running.call(judging, token=token)["total_entries"] == before
    registry.delete_model_version_tag("cslm", version.version, "stage")
    running.clear(train, run, "register", token)
    running.until(lambda: running.call(judging, token=token)["total_entries"] == before + 1)
    running.until(lambda: _promote_calls(project)[-1].get("--version") == str(version.version))
    assert _promote_calls(project)[-1]["--model"] == "cslm", "the very version whose registration was told"


def test_a_language_is_told_of_by_the_version_of_its_own_run(
    services: str, project: Path, ports: dict[str, str]
) -> None:
    """The toy cannot learn one, so a run of `cslm_train` from above stands for the training of it."""
    airflow, token = running.airflow(project, ports)
    train, dag = f"{airflow}/api/v2/dags/cslm_train/dagRuns", f"{airflow}/api/v2/dags/cslm_add_language"
    runs = [each["dag_run_id"] for each in running.call(train, token=token)["dag_runs"]]
    [run, *_] = [run for run in reversed(runs) if _registered(f"{train}/{run}", token)]
    running.call(dag, {"is_paused": True}, token, method="PATCH")
    asked = {"dag_run_id": run, "logical_date": None, "conf": {"profile": "sample"}}
    running.call(f"{dag}/dagRuns", asked, token)
    tasks = f"{dag}/dagRuns/{run}/taskInstances"
    for task in ("check", "train"):
        running.call(f"{tasks}/{task}", {"new_state": "success"}, token, method="PATCH")
    checked = {"key": "return_value", "value": {"version": 1}}
    running.call(f"{tasks}/check/xcomEntries", checked, token)
    registry = MlflowClient(f"sqlite:///{project}/var/mlflow.db")
    later = registry.create_model_version("cslm", (project / "var").as_uri())
    registry.set_registered_model_alias("cslm", "candidate", later.version)
    running.call(dag, {"is_paused": False}, token, method="PATCH")
    assert running.ended(f"{dag}/dagRuns/{run}", token) == "success"
    call = [each for each in _promote_calls(project) if each["command"] == "compare"][-1]
    made = _registered(f"{train}/{run}", token)
    assert (call["--version"], call["--against"]) == (str(made), "1")
    assert made != int(later.version)


def test_new_data_is_told_to_nobody_where_no_airflow_runs(
    services: str, project: Path, ports: dict[str, str]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = str(probe.getsockname()[1])
        told = _corpus_landed(project, ports | {"AIRFLOW_PORT": nobody})
    assert told.returncode == 1
    assert f"Airflow does not answer at http://127.0.0.1:{nobody} (" in told.stderr
    assert "start it (make up, or make compose)" in told.stderr
    wrong = _corpus_landed(project, ports | {"AIRFLOW_PORT": ports["MLFLOW_PORT"]})
    assert wrong.returncode == 1
    assert f"Airflow at http://127.0.0.1:{ports['MLFLOW_PORT']} refuses" in wrong.stderr


def test_an_airflow_that_is_not_ready_is_told_in_one_line(
    services: str, project: Path, ports: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(assets, "CORPUS", Asset("of-a-dag-that-is-not-parsed"))
    monkeypatch.setenv("CSLM_HOME", str(project / "var"))
    with pytest.raises(corpus_landed.NotReady, match="does not know of of-a-dag-that-is-not-parsed yet"):
        corpus_landed.tell(f"http://127.0.0.1:{ports['AIRFLOW_PORT']}")
    (tmp_path / "airflow").mkdir()
    (tmp_path / "airflow" / "passwords.json").touch()
    told = _corpus_landed(project, ports | {"CSLM_HOME": str(tmp_path)})
    assert told.returncode == 1
    assert "passwords.json has no password of admin" in told.stderr and "Traceback" not in told.stderr


def test_demo_is_refused_while_airflow_runs(services: str, project: Path) -> None:
    result = toy.demo(project, RUN="beside")
    assert result.returncode == 2
    assert "make down" in result.stderr


def test_down_leaves_no_process(services: str, project: Path, ports: dict[str, str]) -> None:
    assert len(_processes(project)) > 4
    again = running.services(project, ports, "up")
    assert again.returncode == 1
    assert "already running" in again.stderr
    result = running.services(project, ports, "down")
    assert result.returncode == 0, result.stderr
    assert _processes(project) == []
    for port in ports.values():
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(port))) != 0


def _processes(project: Path) -> list[int]:
    """Living processes that work in the project's var/ folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            folder = (path / "cwd").readlink()
        except OSError:
            continue
        if folder.is_relative_to(project / "var"):
            found.append(int(path.name))
    return found


@contextmanager
def _another_writer(database: Path) -> Iterator[None]:
    """As when Airflow imports something for the first time within a transaction, on a busy machine."""
    writer = sqlite3.connect(database, timeout=60, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    end = threading.Timer(WRITING_S, lambda: writer.execute("ROLLBACK"))
    end.start()
    try:
        yield
    finally:
        end.join()
        writer.close()


def _corpus_landed(project: Path, ports: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`make corpus-landed`."""
    return subprocess.run(
        [toy.PYTHON, "-m", "infra.corpus_landed"],
        cwd=project,
        env=toy.environment(project) | ports,
        capture_output=True,
        text=True,
        check=False,
    )


def _promote_calls(project: Path) -> list[dict[str, str]]:
    """What the toy's components.promote was called with."""
    path = project / "var" / "promote.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _registered(run: str, token: str) -> int | None:
    """Number of the version that a run of `cslm_train` has registered, if it came so far."""
    entries = f"{run}/taskInstances/register/xcomEntries"
    known = {entry["key"] for entry in running.call(entries, token=token)["xcom_entries"]}
    return running.call(f"{entries}/return_value", token=token)["value"] if "return_value" in known else None


def _asked(run: str, token: str) -> tuple[str, dict[str, Any]]:
    """Where to answer what a run asks a person, and the question, when it is read."""
    task = f"{run}/taskInstances/approve"
    running.until(lambda: running.call(task, token=token)["state"] == "awaiting_input")
    time.sleep(running.READING_S)
    detail = f"{task}/-1/hitlDetails"
    return detail, running.call(detail, token=token)
