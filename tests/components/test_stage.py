"""What every component promises: whole outputs or none, numbers in a file and in MLflow, clear last words."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import boto3
import mlflow
import pytest
import yaml

from components.checkpoints import checkpoints_of
from components.stage import Stage, StageFailed, flatten, home, tracking_uri
from tests.answering import AWAY, answering

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with the sample's parameters and a store of its own."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CSLM_HOME", str(tmp_path / "var"))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_PARENT_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_an_empty_variable_is_one_that_is_not_set(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CSLM_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
    assert home() == project / "var"
    assert tracking_uri() == f"sqlite:///{project}/var/mlflow.db"


def test_an_output_is_whole_or_not_there(project: Path) -> None:
    with Stage("align") as stage:
        with pytest.raises(RuntimeError), stage.output("work/aligned") as folder:
            (folder / "half").touch()
            raise RuntimeError
        assert not list((project / "work").iterdir())
        with stage.output("work/aligned") as folder:
            (folder / "one").touch()
        with stage.output("work/aligned") as folder:
            (folder / "two").touch()
    assert [path.name for path in (project / "work" / "aligned").iterdir()] == ["two"]


SLOW = """
import time
from components.stage import Stage

with Stage("align") as stage, stage.output("work/aligned"):
    print(stage.run_id, flush=True)
    time.sleep(60)
"""


def test_a_stage_that_is_told_to_end_leaves_nothing_half_done(project: Path) -> None:
    command = [sys.executable, "-c", SLOW]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as stage:
        assert stage.stdout is not None
        name = stage.stdout.readline().strip()
        stage.terminate()
        assert stage.wait(60) == 143, "what dvc_stage.py knows as a stage that was told to end"
    assert not list((project / "work").iterdir())
    assert not (project / "metrics").exists()
    mlflow.set_tracking_uri(f"sqlite:///{project}/var/mlflow.db")
    assert mlflow.get_run(name).info.status == "KILLED", "not RUNNING for ever"


def test_metrics_and_parameters_are_in_the_file_and_in_mlflow(project: Path) -> None:
    with Stage("align") as stage:
        stage.log_metrics({"asr": {"en": 0.25}, "ci95": [0.2, 0.3]})
        stage.log_metrics({"loss": 2.0}, step=1)
    written = json.loads((project / "metrics" / "align.json").read_text("utf-8"))
    assert written["asr"] == {"en": 0.25} and written["ci95"] == [0.2, 0.3] and "loss" not in written
    run = mlflow.get_run(written["mlflow_run_id"])
    assert run.data.metrics == {"asr.en": 0.25, "loss": 2.0}
    assert run.data.params == {"words_per_chunk": "7"}
    assert run.info.status == "FINISHED"


def test_the_use_of_the_machine_is_in_mlflow_for_short_stages_too(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")  # as dags/places.py has it
    with Stage("align") as stage:
        name = stage.run_id
        deadline = time.monotonic() + 9  # MLflow's own first sample comes after 10
        while "system/cpu_utilization_percentage" not in mlflow.get_run(name).data.metrics:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_failure_is_told_in_one_line_and_recorded() -> None:
    with pytest.raises(SystemExit, match=r"^align: no shards; run ingest$"), Stage("align") as stage:
        name = stage.run_id
        raise StageFailed("no shards; run ingest")
    assert mlflow.get_run(name).info.status == "FAILED"


def test_a_full_disk_is_called_so() -> None:
    with pytest.raises(SystemExit, match="align: the disk is full"), Stage("align"):
        raise OSError(errno.ENOSPC, "No space left on device", "work/aligned")


def test_a_full_disk_is_called_so_by_libraries_that_raise_something_else() -> None:
    with pytest.raises(SystemExit, match="align: the disk is full"), Stage("align"):
        try:
            raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
        except RuntimeError as error:
            raise ValueError("the checkpoint could not be written") from error


def test_a_server_that_stops_answering_is_named_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    here = mlflow.get_tracking_uri()
    with pytest.raises(SystemExit) as ended, Stage("align") as stage:
        mlflow.set_tracking_uri("http://127.0.0.1:9")
        stage.log_metrics({"loss": 1.0}, step=1)
    mlflow.set_tracking_uri(here)
    assert ended.value.code == 75, "what Airflow tries again (dags/dvc_stage.py)"
    assert "no longer answers" in capsys.readouterr().err
    mlflow.end_run()


def test_a_stage_is_nested_in_the_run_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with Stage("align") as parent:
        name = parent.run_id
    monkeypatch.setenv("MLFLOW_PARENT_RUN_ID", name)
    with Stage("align") as child:
        assert mlflow.get_run(child.run_id).data.tags["mlflow.parentRunId"] == name


def test_a_stage_is_found_by_its_commit_its_run_and_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tags that the pipeline's own run and the model's version have."""
    told = {
        "CSLM_GIT_COMMIT": "c0ffee",
        "CSLM_RUN_ID": "tonight",
        "CSLM_AIRFLOW_RUN": "scheduled__1",
        "CSLM_DATA_VERSION": "en=abc, zh=def",
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with Stage("align"):
        pass
    query = "tags.data_version = 'en=abc, zh=def' and tags.airflow_run = 'scheduled__1'"
    [found] = mlflow.search_runs(filter_string=query, experiment_names=["cslm"], output_format="list")
    assert (found.data.tags["git_commit"], found.data.tags["pipeline_run"]) == ("c0ffee", "tonight")


def test_a_training_outside_of_a_checkout_says_so(project: Path) -> None:
    with pytest.raises(SystemExit, match=r"^pretrain: dvc.yaml does not tell"):
        checkpoints_of(Stage("pretrain")).__enter__()


def test_a_store_of_checkpoints_that_is_away_is_another_try(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "dvc.yaml").write_text(json.dumps({"stages": {"pretrain": {"deps": [], "params": ["seed"]}}}))
    monkeypatch.setattr("components.checkpoint_store.ATTEMPTS", 1)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("CSLM_CHECKPOINTS", "s3://bucket/checkpoints")
    with pytest.raises(SystemExit) as ended:
        checkpoints_of(Stage("pretrain")).__enter__()
    assert ended.value.code == 75, "what Airflow tries again (dags/dvc_stage.py)"
    assert "pretrain: the store of checkpoints, s3://bucket/checkpoints" in capsys.readouterr().err


def test_only_the_same_training_continues(project: Path) -> None:
    deps = ["work/train/pretrain", "components/pretrain", "cslm/packing.py", "${backbone.checkpoint}"]
    (project / "dvc.yaml").write_text(
        json.dumps({"stages": {"pretrain": {"deps": deps, "params": ["pretrain", "seed"]}}})
    )
    files = ["work/train/pretrain/rows.npy", "components/pretrain/__main__.py", "cslm/packing.py"]
    files.append("models/cslm/model.safetensors")
    for name in files:
        (project / name).parent.mkdir(parents=True)
        (project / name).write_text("1")
    folders, runs = [], []
    for change in ("", "", *files):
        if change:
            (project / change).write_text("2")
        stage = Stage("pretrain")
        with checkpoints_of(stage) as folder, stage:
            folders.append(folder)
            runs.append(stage.run_id)
    assert folders[0] == folders[1] and runs[0] == runs[1]
    assert len(set(folders)) == len(set(runs)) == 1 + len(files), (
        "data, code and start each begin another training"
    )


def test_a_forced_training_begins_anew_only_where_one_is_finished(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "dvc.yaml").write_text(json.dumps({"stages": {"pretrain": {"deps": [], "params": ["seed"]}}}))
    monkeypatch.setenv("CSLM_FORCED", "yes")
    for left in (False, True, False):  # killed; goes on to its end; done once more
        with suppress(InterruptedError), checkpoints_of(Stage("pretrain")) as folder:
            assert (folder / "half").exists() is left
            (folder / "half").touch()
            if not left:
                raise InterruptedError


def test_other_ranks_continue_a_training_and_another_recipe_does_not(project: Path) -> None:
    (project / "dvc.yaml").write_text(
        json.dumps({"stages": {"pretrain": {"deps": [], "params": ["pretrain", "seed"]}}})
    )
    parameters = yaml.safe_load((project / "params.yaml").read_text("utf-8"))
    folders, runs = [], []
    for change in ({}, {"ranks": 2}, {"weight_decay": 0.5}):
        parameters["pretrain"] |= change
        (project / "params.yaml").write_text(yaml.safe_dump(parameters), "utf-8")
        stage = Stage("pretrain")
        with checkpoints_of(stage) as folder, stage:
            folders.append(folder)
            runs.append(stage.run_id)
    assert folders[0] == folders[1] != folders[2]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(("status", "again"), [(AWAY, True), (503, True), (401, False)])
def test_a_server_that_does_not_answer_is_named_and_tried_again(
    status: int, again: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that refuses is named too, and another try would end alike."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with answering(status) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        with pytest.raises(SystemExit) as ended, Stage("align"):
            pass
    told = f"{ended.value.code}{capsys.readouterr().err}"  # Python prints a text itself, and ends with 1
    assert told.startswith("75") is again
    assert f"{server} does not answer" in told


@pytest.mark.parametrize(("status", "again"), [(AWAY, True), (503, True), (403, False)])
def test_a_store_of_files_that_is_away_is_tried_again(
    status: int, again: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with answering(status) as server, pytest.raises(SystemExit) as ended, Stage("align"):
        boto3.client(
            "s3", endpoint_url=server, aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1"
        ).head_object(Bucket="bucket", Key="mlflow")
    told = f"{ended.value.code}{capsys.readouterr().err}"
    assert told.startswith("75") is again
    assert "the store of MLflow's files" in told


def test_bad_parameters_end_a_component_before_any_work(project: Path) -> None:
    (project / "params.yaml").write_text("profile: x\nsurprise: 1\n", "utf-8")
    result = subprocess.run(
        [sys.executable, "-m", "components.pretrain"],
        cwd=project,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "surprise is not a known key" in result.stderr and "Traceback" not in result.stderr


def test_a_stage_that_does_not_see_its_gpus_does_not_work_on_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CSLM_GRANTED_GPUS", "8")
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    told = r"pretrain: its container was given 8 GPUs, and torch \S+ sees 0: this torch is built for processors"
    with pytest.raises(SystemExit, match=told):
        Stage("pretrain")
    monkeypatch.setattr("torch.version.cuda", "12.8")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 7)
    with pytest.raises(SystemExit, match=r"sees 7: look with nvidia-smi .*; or work without \(CSLM_GPUS=0\)"):
        Stage("pretrain")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    Stage("pretrain")


def test_nested_numbers_get_dotted_names() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": 2}, "e": 3}) == {"a.b.c": 1, "a.d": 2, "e": 3}
