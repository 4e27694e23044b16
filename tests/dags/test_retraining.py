"""To train again or not, and from what: real MLflow store, real git repository, no training."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from dags import continuation, drift, places, retraining
from tests.dags import toy

NOW = datetime.datetime.now(datetime.UTC)
LOCK = {
    "schema": "2.0",
    "stages": {
        name: {
            "cmd": "x",
            "outs": [{"path": f"work/{out}", "hash": "md5", "md5": f"{out}.dir", "size": 9, "nfiles": 3}],
        }
        for name, out in (("finetune", "model"), ("train_tokenizer", "tokenizer"), ("train_decoder", "decoder"))
    },
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def project(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one corpus of digest `aaa`, and an MLflow store without a version."""
    (tmp_path / "data").mkdir()
    (tmp_path / "params.yaml").write_text("corpora:\n  one: {path: data/in}\n")
    digest(tmp_path, "in", "aaa")
    toy.run(tmp_path, "git", "init", "--quiet", "--initial-branch=main")
    (tmp_path / "mlflow.db").write_bytes(store.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(places, "PROJECT", tmp_path)
    client().create_registered_model("cslm")
    return tmp_path


def client() -> MlflowClient:
    return MlflowClient(places.tracking_uri())


def digest(project: Path, corpus: str, md5: str) -> None:
    (project / "data" / f"{corpus}.dvc").write_text(f"outs:\n- md5: {md5}\n  path: {corpus}\n")


def in_production(**tags: str) -> None:
    version = client().create_model_version("cslm", "file:///nowhere", tags=tags)
    client().set_registered_model_alias("cslm", "production", version.version)


def counts(zh: int) -> drift.Counts:
    """100 English utterances of a second, and so many Mandarin ones of two."""
    speech = {
        f"assistant.{language}": {"hours": n * seconds / 3600, "speakers": 4, "duration_s": {str(seconds): n}}
        for language, n, seconds in (("en", 100, 1), ("zh", zh, 2))
    }
    return {"speech": speech, "texts": {"dialogues": 50, "translations": 20}}


def decide(days: float = 0, zh: int = 100) -> retraining.Decision:
    """`zh` is what validation would count now."""
    limits = retraining.Limits(max_age_days=30, min_growth=10, min_drift=0.2)
    return retraining.decide("cslm", "sample", limits, NOW + datetime.timedelta(days=days), lambda: counts(zh))


def test_without_a_production_version_a_person_has_to_begin(project: Path) -> None:
    assert decide() == retraining.Decision(
        False, "no version of cslm is in production: train and promote a first one by hand (cslm_train)"
    )


@pytest.mark.parametrize(
    ("seen", "days", "train", "why"),
    [
        ("one=aaa", 1, False, "the data is that of version 1, which is 1.0 days old"),
        ("one=aaa", 31, True, "version 1 is 31 days old, more than 30; the data is the same"),
        ("one=bbb", 1, True, "data that version 1 has not seen: one bbb -> aaa"),
        ("", 1, True, "one new -> aaa"),
        ("one=aaa, two=ccc", 1, True, "two ccc -> gone"),
    ],
)
def test_new_data_or_age_is_a_reason(project: Path, seen: str, days: float, train: bool, why: str) -> None:
    in_production(data_version=seen)
    decision = decide(days)
    assert decision.train == train
    assert why in decision.why


@pytest.mark.parametrize(
    ("candidate", "days", "train", "why"),
    [
        ("one=aaa", 1, False, "version 2 was trained on this data already, and waits to be promoted"),
        ("one=ccc", 1, True, "data that version 1 has not seen"),
        ("one=aaa", 31, True, "data that version 1 has not seen"),
    ],
)
def test_what_waits_to_be_promoted_is_not_trained_again(
    project: Path, candidate: str, days: float, train: bool, why: str
) -> None:
    in_production(data_version="one=bbb")
    version = client().create_model_version("cslm", "file:///nowhere", tags={"data_version": candidate})
    client().set_registered_model_alias("cslm", "candidate", version.version)
    assert decide(days).train == train
    assert why in decide(days).why


@pytest.mark.parametrize(
    ("tag", "text", "why"),
    [
        ("refused", "2026-11-30 by ana: it stutters", "was refused (2026-11-30 by ana: it stutters); the same"),
        ("rolled_back_because", "it stutters", "was taken out of production (it stutters); the same data is"),
    ],
)
def test_what_is_not_wanted_in_production_does_not_wait_to_be_there(
    project: Path, tag: str, text: str, why: str
) -> None:
    in_production(data_version="one=bbb")
    tags = {"data_version": "one=aaa", tag: text}
    version = client().create_model_version("cslm", "file:///nowhere", tags=tags)
    client().set_registered_model_alias("cslm", "candidate", version.version)
    decision = decide(1)
    assert f"version 2 was trained on this data already, and {why}" in decision.why
    assert "tried again when it is 30 days old" in decision.why and not decision.train
    assert decide(31).train
    digest(project, "in", "ccc")
    assert decide(1).train, "other data is tried at once"


@pytest.mark.parametrize(
    ("days", "zh", "train", "why"),
    [
        (
            1,
            108,
            False,
            "bbb -> aaa, but that is not worth a training before it is 30 days old: hours of assistant",
        ),
        (1, 108, False, "hours of assistant.zh: 0.05556 -> 0.06 (+8.0 %, 10 % is worth a training)"),
        (1, 112, True, "hours of assistant.zh: 0.05556 -> 0.06222 (+12.0 %"),
        (1, 80, True, "hours of assistant.zh: 0.05556 -> 0.04444 (-20.0 %"),
        (1, 100, False, "nothing that is counted has changed"),
        (31, 100, True, "one bbb -> aaa; it is 31 days old, more than 30"),
    ],
)
def test_new_data_must_be_worth_a_training(project: Path, days: float, zh: int, train: bool, why: str) -> None:
    (project / "metrics").mkdir()
    (project / "metrics" / "counts.json").write_text(json.dumps(counts(zh=100)))
    made_by(project, "first", LOCK)
    in_production(data_version="one=bbb", pipeline_run="first")
    decision = decide(days, zh)
    assert decision.train == train
    assert why in decision.why


@pytest.mark.parametrize("where", ["/elsewhere", "data/in-git", "data/in/part"])
def test_a_corpus_without_a_file_of_dvc_is_looked_at_itself(
    project: Path, tmp_path_factory: pytest.TempPathFactory, where: str
) -> None:
    """What its digest was when the version was trained is in the lock of DVC itself."""
    path = str(tmp_path_factory.mktemp("elsewhere")) if where == "/elsewhere" else where
    corpus = project / path
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / "lines").write_text("hello")
    (project / "params.yaml").write_text(f"corpora:\n  one: {{path: data/in}}\n  other: {{path: {path}}}\n")
    stage = {"cmd": "echo", "deps": [path]}
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"ingest": stage}}))
    toy.run(project, toy.PYTHON, "-m", "dvc", "init", "--quiet")
    toy.run(project, toy.PYTHON, "-m", "dvc", "repro", "--quiet", "--single-item", "ingest")
    [locked] = yaml.safe_load((project / "dvc.lock").read_text())["stages"]["ingest"]["deps"]
    in_production(data_version=f"one=aaa, other={locked['md5']}")
    assert "the data is that of version 1" in decide(1).why
    (corpus / "more").write_text("hello again")
    assert f"data that version 1 has not seen: other {locked['md5'][:8]} -> " in decide(1).why
    shutil.rmtree(corpus)
    decision = decide(1)
    assert "but for what is not here to be looked at: other" in decision.why and not decision.train


def made_by(project: Path, run: str, lock: dict[str, object]) -> None:
    (project / "dvc.lock").write_text(yaml.safe_dump(lock))
    toy.run(project, "git", "checkout", "--quiet", "-b", f"runs/{run}")
    toy.run(project, "git", "add", "--all")
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    toy.run(project, "git", *identity, "commit", "--quiet", "-m", "Results")


def test_a_version_is_continued_from_by_the_digests_of_its_run(project: Path) -> None:
    made_by(project, "first", LOCK)
    in_production(pipeline_run="first")
    overrides, files = continuation.of_version("cslm", "production")
    assert overrides == {
        "backbone.checkpoint": "models/registered/model",
        "train_tokenizer.checkpoint": "models/registered/tokenizer",
        "train_decoder.checkpoint": "models/registered/decoder",
    }
    [out] = yaml.safe_load(files["models/registered/model.dvc"])["outs"]
    assert out.pop("desc") == "that of cslm version 1"
    assert out.pop("meta") == {"license": "those in the model card of cslm version 1"}
    assert out == {"md5": "model.dir", "size": 9, "nfiles": 3, "hash": "md5", "path": "model"}
    assert continuation.of_version("cslm", "1") == (overrides, files)


def test_what_cannot_be_continued_from_is_refused_with_what_to_do(project: Path) -> None:
    with pytest.raises(continuation.CannotContinue, match="no version 'production'"):
        continuation.of_version("cslm", "production")
    in_production(pipeline_run="elsewhere")
    with pytest.raises(continuation.CannotContinue, match=r"branch runs/elsewhere is not in\s+this repository"):
        continuation.of_version("cslm", "production")
    made_by(project, "broken", {"stages": {}})
    in_production(pipeline_run="broken")
    with pytest.raises(continuation.CannotContinue, match="has no work/model"):
        continuation.of_version("cslm", "2")
