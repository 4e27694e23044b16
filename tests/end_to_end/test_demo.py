"""The whole graph through Airflow with the `test` profile, as `make demo PROFILE=test` runs it."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import mlflow
import pytest
import soundfile

from cslm.shards import read_rows
from tests.end_to_end.checkout import ROOT, demo

STAGES = 14
LIMIT_S = 600
"""243 s were measured on an idle machine (the wish is 300); twice that is a fault, not a busy neighbor."""
CACHED_LIMIT_S = 180
"""31 s were measured on an idle machine, and 74 before; the wish is 90."""

pytestmark = pytest.mark.timeout(900)


def test_the_whole_graph_runs_in_minutes(first: tuple[str, float]) -> None:
    output, seconds = first
    assert f"/{STAGES}]" in output and "evaluate" in output
    assert "\nregistered: version 1 (new, candidate)\n" in output
    assert seconds < LIMIT_S


def test_it_registers_a_loadable_candidate_with_its_origin(clone: Path, first: tuple[str, float]) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{clone}/var/mlflow.db")
    version = client.get_model_version_by_alias("cslm", "candidate")
    commit = subprocess.run(
        ["git", "rev-parse", "runs/first~1"], cwd=clone, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert version.tags["git_commit"] == commit
    assert version.tags["profile"] == "test"
    mlflow.set_tracking_uri(f"sqlite:///{clone}/var/mlflow.db")
    model = mlflow.pyfunc.load_model("models:/cslm@candidate")
    [answer] = model.predict([{"text": "What is the capital of France?"}]).to_dict("records")
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(answer["wav"])))
    assert answer["answer"]
    assert rate == 16_000
    assert len(samples) > rate / 2, "the answer is there in sound"


def test_the_use_of_the_machine_is_on_the_page_of_a_stage(clone: Path, first: tuple[str, float]) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{clone}/var/mlflow.db")
    experiment = client.get_experiment_by_name("cslm")
    assert experiment is not None
    [measured] = client.search_runs([experiment.experiment_id], "tags.stage = 'evaluate'")
    assert measured.data.metrics["system/cpu_utilization_percentage"] > 0


def test_served_it_answers_curl_with_text_and_sound(clone: Path, first: tuple[str, float]) -> None:
    rows = read_rows(ROOT / "data/sample/speech", ["id", "audio", "language"], ["test"])
    question = next(
        row for row in rows if row["language"] == "en" and "capital" in row["id"] and "-q-" in row["id"]
    )
    asked = {"audio": base64.b64encode(question["audio"]).decode(), "answer_language": "zh"}
    body = clone / "var" / "question.json"
    body.write_text(json.dumps({"dataframe_records": [asked]}), "utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mlflow_command = ROOT / ".venv" / "components" / "bin" / "mlflow"
    serve = f"models serve --env-manager local --model-uri models:/cslm@candidate --port {port}"
    server = subprocess.Popen(
        [mlflow_command, *serve.split()],
        cwd=clone,
        env={
            **os.environ,
            "PATH": f"{mlflow_command.parent}:{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": f"sqlite:///{clone}/var/mlflow.db",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        curl = "curl --silent --fail --retry 90 --retry-delay 1 --retry-connrefused"
        sent = "-H", "Content-Type: application/json", "--data", f"@{body}"
        answered = subprocess.run(
            [*curl.split(), *sent, f"http://127.0.0.1:{port}/invocations"],
            capture_output=True,
            check=True,
            timeout=180,
        ).stdout
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    [answer] = json.loads(answered)["predictions"]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(answer["wav"])))
    assert "capital" in answer["question"]
    assert "首都" in answer["answer"]
    assert len(samples) > rate


def test_metrics_have_all_that_the_issue_names(clone: Path, first: tuple[str, float]) -> None:
    metrics = json.loads((clone / "metrics" / "evaluation.json").read_text("utf-8"))
    for path in (
        "asr.en.wer",
        "asr.zh.cer",
        "conversation.en.exact_match",
        "cross_lingual.en_zh.exact_match",
        "cross_lingual.en_zh.off_target",
        "alignment.similarity",
        "dev.asr.en.wer",
        "heldout_voice.asr.zh.cer",
        "tts.en.wer",
        "tts.en.reference_wer",
        "tts.zh.cer",
        "tts.zh.reference_cer",
        "resynthesis.en.wer",
        "resynthesis.en.reference_wer",
        "resynthesis.zh.cer",
        "resynthesis.zh.reference_cer",
        "conversation.en.speech_wer",
        "conversation.zh.speech_cer",
        "cross_lingual.en_zh.speech_off_target",
        "dnsmos.reference.zh.mean",
        "dnsmos.tts.en.mean",
        "tts.en.second_wer",
        "later_turn.exact_match",
        "latency.first_audio_ms",
        "latency.rtf",
        "latency.underruns",
    ):
        value = metrics
        for part in path.split("."):
            value = value[part]
        assert isinstance(value, float), path
    assert metrics["asr"]["en"]["n"] > 0
    assert (clone / "var" / "runs" / "first" / "report" / "evaluation" / "index.html").exists()


def test_again_everything_is_cached_and_nothing_registered_twice(clone: Path, first: tuple[str, float]) -> None:
    output, seconds = demo(clone, RUN="second")
    assert output.count("cached") >= STAGES - 1
    versions = mlflow.MlflowClient(f"sqlite:///{clone}/var/mlflow.db").search_model_versions("name='cslm'")
    assert len(versions) == 1
    assert seconds < CACHED_LIMIT_S


def test_a_new_learning_rate_reruns_finetune_evaluate_register_only(
    clone: Path, first: tuple[str, float]
) -> None:
    output, _ = demo(clone, RUN="third", SET="finetune.learning_rate=2e-4")
    ran = {
        line.split("]")[1].split()[0]
        for line in output.splitlines()
        if line.startswith("[") and "cached" not in line
    }
    assert ran == {"finetune", "evaluate", "register"}
