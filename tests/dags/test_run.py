"""The tasks of a run on a toy project: what runs, what is cached, what is committed, and how it fails.

The tests use one project in the order they stand here: each starts from the cache that the last one left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from dags import dvc_stage, places, run
from tests.dags import toy


def test_first_run_runs_every_stage_and_second_is_cached(project: Path) -> None:
    first = toy.states(toy.pipeline(project, "first"))
    assert first["ingest@one"] == first["double"] == first["final"] == "ran"
    assert toy.calls(project) == ["ingest", "double", "final"]

    home = project / "var"
    left = sorted(path.name for path in (home / "checkpoints").iterdir())
    assert left == ["double-other", "ingest-other-done"], "what a stage or an item kept goes with its end alone"
    assert json.loads((home / "reference" / "validation.json").read_text()) == {"sample": {"number": 21}}
    told = [event.get("text") for event in toy.events(project, "first") if event["stage"] == "double"]
    assert told[-1] == "doubled one number"

    second = toy.states(toy.pipeline(project, "second"))
    assert second["ingest@one"] == second["double"] == second["final"] == "cached"
    assert toy.calls(project) == []


def test_the_run_in_mlflow_names_its_data_and_its_reason(project: Path) -> None:
    request = {"why": "to see what happens", "airflow_run": "manual__1", "overrides": {"final.plus": 5}}
    toy.states(toy.pipeline(project, "reasoned", **request))
    client = MlflowClient(f"sqlite:///{project}/var/mlflow.db")
    experiment = client.get_experiment_by_name("cslm")
    [run] = client.search_runs([experiment.experiment_id], "tags.pipeline_run = 'reasoned'")
    [used] = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.source_type) == ("one", "dvc")
    pointer = yaml.safe_load((project / "data" / "in.dvc").read_text())
    assert used.dataset.digest == pointer["outs"][0]["md5"]
    tags = run.data.tags
    assert tags["mlflow.note.content"] == "to see what happens"
    assert tags["data_version"] == f"one={used.dataset.digest}", "as a version of the model has it"
    assert tags["airflow_run"] == "manual__1"
    [facts] = [event for event in toy.events(project, "reasoned") if event["state"] == "prepared"]
    assert {key: facts[key] for key in ("airflow_run", "data_version")} == {
        key: tags[key] for key in ("airflow_run", "data_version")
    }, "what every stage is told"
    assert run.data.params == {
        "profile": "sample",
        "corpora.one.path": "data/in",
        "double.factor": "2",
        "final.plus": "5",
        "final.mode": "work",
    }
    toy.calls(project)


def test_results_are_committed_and_the_work_tree_is_untouched(project: Path) -> None:
    assert toy.run(project, "git", "status", "--porcelain") == ""
    assert toy.run(project, "git", "branch", "--show-current").strip() == "main"
    files = toy.run(project, "git", "ls-tree", "-r", "--name-only", "runs/second").split()
    assert {"dvc.lock", "metrics/evaluation.json", "metrics/ingest/one.json"} <= set(files)
    assert toy.run(project, "git", "rev-parse", "runs/second^") == toy.run(project, "git", "rev-parse", "main")
    # 21 doubled, plus 1: the toy's arithmetic, not the code's.
    evaluation = json.loads(toy.run(project, "git", "show", "runs/second:metrics/evaluation.json"))
    assert evaluation["asr"]["en"]["wer"] == 0.043
    assert not list((project / "var" / "workspaces").glob("*/*"))


def test_recorded_lock_is_what_dvc_accepts(project: Path, tmp_path: Path) -> None:
    """DVC itself, in a clone of the run's branch with the same cache, finds nothing to do."""
    toy.run(
        project, "git", "clone", "--quiet", "--branch", "runs/second", str(project), str(tmp_path / "clone")
    )
    clone = tmp_path / "clone"
    toy.run(clone, sys.executable, "-m", "dvc", "cache", "dir", "--local", str(project / "var" / "dvc-cache"))
    toy.run(clone, sys.executable, "-m", "dvc", "checkout", "--quiet")
    assert "up to date" in toy.run(clone, sys.executable, "-m", "dvc", "status")
    assert (clone / "work" / "final" / "number").read_text() == "43"


def test_changed_parameter_reruns_only_what_depends_on_it(project: Path) -> None:
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("plus: 1", "plus: 2"))
    states = toy.states(toy.pipeline(project, "edited"))
    assert (states["ingest@one"], states["double"], states["final"]) == ("cached", "cached", "ran")
    assert toy.calls(project) == ["final"]
    assert "plus: 2" in toy.run(project, "git", "show", "runs/edited:params.yaml")
    assert toy.run(project, "git", "diff", "--name-only").split() == ["params.yaml"]
    toy.run(project, "git", "checkout", "--quiet", "params.yaml")


def test_data_that_changed_since_dvc_got_it_is_not_passed_over(project: Path) -> None:
    setup = "from dags.run import write_dvc_config; from dags.places import PROJECT; write_dvc_config(PROJECT)"
    toy.run(project, sys.executable, "-c", setup)
    toy.run(project, sys.executable, "-m", "dvc", "pull", "--quiet", "-r", "embedded", "data/in.dvc")
    number = project / "data" / "in" / "number"
    before = number.read_text()
    number.unlink()
    number.write_text("22")
    process = toy.pipeline(project, "stale")
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "data/in has changed since it was given to DVC" in told and "dvc add data/in" in told
    assert toy.calls(project) == []
    number.write_text(before)


def test_profile_and_override_change_the_parameters_of_the_run_alone(project: Path) -> None:
    states = toy.states(toy.pipeline(project, "triple", profile="triple", overrides={"final.plus": 10}))
    assert (states["ingest@one"], states["double"], states["final"]) == ("cached", "ran", "ran")
    evaluation = json.loads((project / "var" / "runs" / "triple" / "metrics" / "evaluation.json").read_text())
    assert evaluation["asr"]["en"]["wer"] == 0.073
    assert toy.run(project, "git", "status", "--porcelain") == ""
    toy.calls(project)


def test_old_commit_can_be_run_again(project: Path) -> None:
    states = toy.states(toy.pipeline(project, "again", ref="runs/triple"))
    assert set(states.values()) >= {"cached"}
    assert toy.calls(project) == []


def test_two_runs_at_once_do_not_mix_their_files(project: Path) -> None:
    """Airflow starts one after the other; two machines, or two Airflows, may share a CSLM_HOME all the same."""
    factors = {"left": 8, "right": 9}
    running = {
        name: toy.pipeline(project, name, overrides={"double.factor": factor})
        for name, factor in factors.items()
    }
    for name, factor in factors.items():
        states = toy.states(running[name])
        assert (states["double"], states["final"]) == ("ran", "ran")
        metrics = json.loads((project / "var" / "runs" / name / "metrics" / "evaluation.json").read_text())
        assert metrics["asr"]["en"]["wer"] == (21 * factor + 1) / 1000
        assert f"factor: {factor}" in toy.run(project, "git", "show", f"runs/{name}:params.yaml")
    toy.calls(project)


def test_a_run_that_has_ended_can_be_cleared_and_run_again(project: Path) -> None:
    first = toy.states(toy.pipeline(project, "cleared", overrides={"final.plus": 3}))
    again = toy.states(toy.pipeline(project, "cleared", overrides={"final.plus": 3}))
    assert (first["final"], again["final"]) == ("ran", "cached")
    assert first["commit"] == again["commit"], "the branch stays where it is"
    process = toy.pipeline(project, "cleared", overrides={"final.plus": 4})
    assert "runs/cleared is there already with other code, data or parameters" in process.communicate()[1]
    toy.calls(project)


def test_another_machine_takes_what_ran_here_from_the_shared_remote(project: Path, tmp_path: Path) -> None:
    there = {"remote": tmp_path / "remote", "overrides": {"final.plus": 7}}
    here = toy.states(toy.pipeline(project, "shared", force=["ingest", "double"], **there))
    assert (here["ingest@one"], here["double"], here["final"]) == ("ran", "ran", "ran")
    toy.calls(project)
    cache = project / "var" / "dvc-cache"
    cache.rename(tmp_path / "cache")  # another machine has none
    states = toy.states(toy.pipeline(project, "elsewhere", **there))
    shutil.rmtree(cache)
    (tmp_path / "cache").rename(cache)
    assert (states["ingest@one"], states["double"], states["final"]) == ("cached", "cached", "cached")
    assert toy.calls(project) == []


def test_forced_stage_runs_although_cached(project: Path) -> None:
    states = toy.states(toy.pipeline(project, "forced", force=["double"]))
    assert (states["ingest@one"], states["double"], states["final"]) == ("cached", "ran", "cached")
    toy.calls(project)


def test_what_a_forced_stage_gave_is_taken_though_the_commit_knows_another(project: Path) -> None:
    toy.states(toy.pipeline(project, "before", overrides={"double.factor": 5}))
    chance = project / "var" / "chance"
    chance.write_text("100")
    states = toy.states(toy.pipeline(project, "after", ref="runs/before", force=["double"]))
    chance.unlink()
    assert (states["double"], states["final"]) == ("ran", "ran")
    evaluation = json.loads((project / "var" / "runs" / "after" / "metrics" / "evaluation.json").read_text())
    assert evaluation["asr"]["en"]["wer"] == (5 * 21 + 100 + 1) / 1000
    toy.calls(project)


def test_killed_stage_is_reported_and_rerun_gives_the_undisturbed_result(project: Path) -> None:
    overrides = {"final.mode": "hang"}
    process = toy.pipeline(project, "killed", overrides=overrides)
    pid = project / "var" / "pid"
    deadline = time.monotonic() + 90
    while not pid.exists() or not pid.read_text():
        assert process.poll() is None and time.monotonic() < deadline, "the stage has not begun"
        time.sleep(0.1)
    os.kill(int(pid.read_text()), signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "stage final failed" in told
    toy.calls(project)

    states = toy.states(toy.pipeline(project, "after-kill", overrides=overrides))
    assert (states["double"], states["final"]) == ("cached", "ran")
    evaluation = json.loads(
        (project / "var" / "runs" / "after-kill" / "metrics" / "evaluation.json").read_text()
    )
    assert evaluation["asr"]["en"]["wer"] == 0.043
    pid.unlink()
    toy.calls(project)


@pytest.mark.parametrize("who", ["its command", "all of it"])
def test_a_stage_that_is_told_to_end_is_one_to_try_again(project: Path, who: str) -> None:
    """Which of these Airflow tries again: tests/infra/test_tries.py."""
    process = toy.pipeline(project, f"told-{len(who)}", overrides={"final.mode": "hang", "final.plus": 60})
    pid = project / "var" / "pid"
    deadline = time.monotonic() + 90
    while not pid.exists() or not pid.read_text():
        assert process.poll() is None and time.monotonic() < deadline, "the stage has not begun"
        time.sleep(0.1)
    command = int(pid.read_text())
    os.kill(command if who == "its command" else os.getpgid(command), signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stage final failed (it goes on when it is tried again)" in told
    assert not _lives(command)
    pid.unlink()
    toy.calls(project)


def test_a_stage_over_its_time_limit_fails_the_run_in_mlflow(project: Path) -> None:
    """Airflow's own limit, which no code of ours sees coming."""
    done = toy.demo(project, RUN="late", SET="final.mode=hang final.plus=70", CSLM_STAGE_HOURS="0.01")
    assert done.returncode == 1
    client = MlflowClient(f"sqlite:///{project}/var/mlflow.db")
    experiment = client.get_experiment_by_name("cslm")
    [late] = client.search_runs([experiment.experiment_id], "tags.pipeline_run = 'late'")
    assert late.info.status == "FAILED"
    pid = project / "var" / "pid"
    assert not _lives(int(pid.read_text()))
    pid.unlink()
    toy.calls(project)


def test_killed_task_takes_its_stage_with_it(project: Path) -> None:
    process = toy.pipeline(project, "orphan", overrides={"final.mode": "hang", "final.plus": 3})
    pid = project / "var" / "pid"
    deadline = time.monotonic() + 90
    while not pid.exists() or not pid.read_text():
        assert process.poll() is None and time.monotonic() < deadline, "the stage has not begun"
        time.sleep(0.1)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while _lives(int(pid.read_text())):
        assert time.monotonic() < deadline, "the stage's process outlived its task"
        time.sleep(0.2)
    pid.unlink()
    toy.calls(project)


def test_what_does_not_end_when_it_is_told_to_has_its_time_and_is_killed() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(); time.sleep(60)"
    stage = f"""
import subprocess, sys
from dags import dvc_stage
dvc_stage.lead_group()
subprocess.run([sys.executable, "-u", "-c", {deaf!r}])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", stage],
        cwd=places.PROJECT,
        env=os.environ | {dvc_stage.GRACE: str(dvc_stage.SPARE_S + 3)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    told = time.monotonic()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert 3 <= time.monotonic() - told < 10
    assert process.stdout.read() == b"", "nobody is left who could write"


@pytest.mark.parametrize("seconds", ["5", "-30", "half a minute", "1e3"])
def test_a_time_to_end_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    monkeypatch.setenv(dvc_stage.GRACE, seconds)
    with pytest.raises(ValueError, match=rf"CSLM_GRACE_S='{seconds}': how many seconds"):
        dvc_stage.grace_s()


def test_a_command_ends_with_the_task_that_started_it(tmp_path: Path) -> None:
    pids = []

    def limit(text: str) -> None:
        pids.append(int(text))
        raise TimeoutError

    with pytest.raises(TimeoutError):
        run._execute(["sh", "-c", "echo $$; exec sleep 60"], tmp_path, dict(os.environ), limit)
    assert not _lives(pids[0])


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"overrides": {"final.bogus": 1}}, "final.bogus is not a known key; allowed there: plus, mode"),
        ({"profile": "quadruple"}, "no profile 'quadruple'; there are: sample, triple"),
        ({"ref": "no-such-branch"}, "ref 'no-such-branch' names no commit"),
        ({"force": ["trian"]}, "no stage trian to force; there are: all, ingest@one, double, final"),
        ({"overrides": {"corpora.two": {"path": "data/nowhere"}}}, "corpora.two.path = 'data/nowhere'"),
        ({"overrides": {"corpora.two": {"path": "../data/in"}}}, "corpora.two.path = '../data/in'"),
        ({"overrides": {"double.checkpoint": "models/typo"}}, "double.checkpoint = 'models/typo'"),
    ],
)
def test_bad_request_is_refused_before_any_work(project: Path, conf: dict[str, object], message: str) -> None:
    process = toy.pipeline(project, "refused", **conf)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert message in told
    assert toy.calls(project) == []
    assert subprocess.run(
        ["git", "-C", project, "rev-parse", "--verify", "-q", "runs/refused"], check=False
    ).returncode


def test_missing_ancestor_is_named_and_not_run(project: Path) -> None:
    """A stage whose ancestor is not in the cache does not do the ancestor's work in its own task."""
    code = """
from dags import graph, places, preparation, run
stages = graph.read_graph(places.PROJECT / "dvc.yaml")
facts = preparation.prepare("skipper", "sample", {"double.factor": 7}, "", [], print)
try:
    run.run_stage(facts, stages["final"], None, print)
except run.RunFailed as error:
    raise SystemExit(str(error))
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        env=toy.environment(project),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "final needs the outputs of double, and the cache has none" in result.stderr
    assert toy.calls(project) == []


def test_numbers_of_cached_stages_reach_the_parent_run(project: Path) -> None:
    import sqlite3

    with sqlite3.connect(project / "var" / "mlflow.db") as store:
        runs = store.execute("SELECT run_uuid, status FROM runs WHERE name = 'second'").fetchall()
        assert [status for _, status in runs] == ["FINISHED"]
        metrics = dict(store.execute("SELECT key, value FROM metrics WHERE run_uuid = ?", (runs[0][0],)))
        tags = dict(store.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (runs[0][0],)))
        killed = store.execute("SELECT status FROM runs WHERE name = 'killed'").fetchall()
    assert metrics["evaluation.asr.en.wer"] == 0.043
    assert metrics["double.nested.value"] == 1.5
    assert tags["state.evaluation"] == "cached"
    assert tags["made_by.ingest.one"] == "made-it"
    assert tags["profile"] == "sample"
    assert tags["git_commit"] == toy.run(project, "git", "rev-parse", "main").strip()
    assert killed == [("FAILED",)]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
