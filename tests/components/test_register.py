"""`python -m components.register` on a tiny random model, a real SQLite MLflow, and the served model."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import mlflow
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import yaml
from mlflow import MlflowClient
from mlflow.pyfunc.model import PythonModelContext
from mlflow.store.artifact import s3_artifact_repo

from components.chat.__main__ import files_of, open_registered
from components.register.__main__ import main
from components.register.model import Dialogue
from components.register.result import result_digest
from cslm.audio import SAMPLE_RATE, Samples, encode_wav
from cslm.decoder import DecoderConfig, SpeechDecoder
from cslm.decoder.vocoder import SourceFilterVocoder
from cslm.text_model import random_llama, train_text_tokenizer
from cslm.tokenizer.speech_tokenizer import SpeechTokenizer, TokenizerConfig
from cslm.vocabulary import extend
from tests.object_store import BUCKET, READER, STRANGER, WRITER, Keys, ObjectStore
from tests.recordings import question

EVALUATION = {
    "asr": {"en": {"wer": 0.0312, "n": 100}, "zh": {"cer": 0.0401, "n": 90}},
    "conversation": {"en": {"exact_match": 0.91, "n": 100}},
    "latency": {"first_speech_s": 0.31, "speedup_over_full_chain": 3.2},
    "dev": {"asr": {"en": {"wer": 0.02, "n": 50}}},
    "mlflow_run_id": "0123",
}
ROOT = Path(__file__).parents[2]
PARAMS: dict[str, Any] = {
    "profile": "test",
    "languages": ["en", "zh"],
    "corpora": {"assistant": {"format": "shards", "path": "data/sample"}},
    "train_tokenizer": {"steps": 1},
    "train_decoder": {"checkpoint": "models/decoder"},
    "text_model": {"steps": 1},
    "pretrain": {"learning_rate": 0.001},
    "finetune": {"learning_rate": 0.001},
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """work/model, work/tokenizer and work/decoder with random weights, and an empty MLflow store."""
    root = tmp_path_factory.mktemp("artifacts")
    MlflowClient(f"sqlite:///{root}/mlflow.db").search_experiments()
    text_tokenizer = train_text_tokenizer(["what is the capital of france?", "法国的首都是哪里"], 300)
    model = random_llama(text_tokenizer, hidden=32, layers=1, heads=2, seed=1)
    extend(model, text_tokenizer, units=8, seed=1)
    model.save_pretrained(root / "work/model")
    text_tokenizer.save_pretrained(root / "work/model")
    torch.manual_seed(1)
    config = TokenizerConfig(hidden=32, layers=2, levels=[2, 2, 2], labels=["a", "b"])
    SpeechTokenizer(config).save(root / "work/tokenizer")
    voices = {"ann": "en", "wei": "zh"}
    heard = SpeechTokenizer.load(root / "work/tokenizer").fingerprint
    decoder = SpeechDecoder(DecoderConfig(8, voices, heard, 16, 1, 4, 16, 1), SourceFilterVocoder(16, 1))
    decoder.save(root / "work/decoder")
    return root


@pytest.fixture
def workspace(artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder as the pipeline leaves it behind, with an MLflow of its own."""
    for name in ("work", "metrics", "report/evaluation", "requirements", "data", "var"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("model", "tokenizer", "decoder"):
        shutil.copytree(artifacts / "work" / name, tmp_path / "work" / name)
    (tmp_path / "var/mlflow.db").write_bytes((artifacts / "mlflow.db").read_bytes())
    write(tmp_path / "metrics/evaluation.json", json.dumps(EVALUATION))
    write(tmp_path / "report/evaluation/index.html", "<p>report</p>")
    write(tmp_path / "requirements/components.in", "# what components import\ntorch\ntransformers\n")
    write(tmp_path / "params.yaml", yaml.safe_dump(PARAMS))
    shutil.copy(ROOT / "models.yaml", tmp_path)
    write(tmp_path / "metrics/validate.json", json.dumps({"hours": {"en": 1.5}}))
    write(tmp_path / "data/sample.dvc", "outs:\n- md5: abc123.dir\n  path: sample\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CSLM_HOME", str(tmp_path / "var"))
    monkeypatch.setenv("CSLM_GIT_COMMIT", "c0ffee")
    monkeypatch.setenv("CSLM_RUN_ID", "manual__1")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_PARENT_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    uri = mlflow.get_tracking_uri()
    yield tmp_path
    mlflow.set_tracking_uri(uri)


def write(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")


def wav(samples: Samples | None = None, kind: str = "WAV", channels: int = 1) -> bytes:
    """An audio file, of a real question if nothing else is given."""
    samples = question() if samples is None else samples
    buffer = io.BytesIO()
    soundfile.write(buffer, np.repeat(samples[:, None], channels, 1), 16_000, format=kind)
    return buffer.getvalue()


def versions() -> list[Any]:
    return sorted(MlflowClient().search_model_versions("name = 'cslm'"), key=lambda v: int(v.version))


def candidate() -> int:
    return int(MlflowClient().get_model_version_by_alias("cslm", "candidate").version)


@pytest.mark.usefixtures("workspace")
def test_the_same_result_is_one_version(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    assert "version 1 (new, candidate)" in capsys.readouterr().out
    rerun = {**EVALUATION, "mlflow_run_id": "4567", "latency": {"first_speech_s": 0.29}}
    write(Path("metrics/evaluation.json"), json.dumps(rerun))
    MlflowClient().delete_registered_model_alias("cslm", "candidate")
    MlflowClient().update_model_version("cslm", "1", description="")  # as if killed after registering
    main()
    assert "version 1 (unchanged)" in capsys.readouterr().out
    assert [int(version.version) for version in versions()] == [1]
    assert candidate() == 1
    assert "asr.en.wer" in versions()[0].description


@pytest.mark.usefixtures("workspace")
def test_new_weights_are_a_new_version_and_old_ones_get_the_alias_back() -> None:
    main()
    weights = Path("work/tokenizer/model.safetensors")
    old = weights.read_bytes()
    weights.write_bytes(old[:-1] + bytes([old[-1] ^ 1]))
    main()
    assert candidate() == 2
    weights.write_bytes(old)
    main()
    assert len(versions()) == 2
    assert candidate() == 1


@pytest.mark.usefixtures("workspace")
def test_a_version_says_where_it_came_from_and_how_good_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{Path('var').absolute()}/mlflow.db")
    parent = MlflowClient().create_run(mlflow.set_experiment("cslm").experiment_id)
    monkeypatch.setenv("MLFLOW_PARENT_RUN_ID", parent.info.run_id)
    monkeypatch.setenv("CSLM_AIRFLOW_RUN", "scheduled__1")
    main()
    [version] = versions()
    digest = result_digest([Path(f"work/{name}") for name in ("model", "tokenizer", "decoder")], EVALUATION)
    assert version.tags == {
        "git_commit": "c0ffee",
        "pipeline_run": "manual__1",
        "airflow_run": "scheduled__1",
        "profile": "test",
        "data_version": "assistant=abc123.dir",
        "result_digest": digest,
        "evaluation_digest": hashlib.sha256(Path("metrics/evaluation.json").read_bytes()).hexdigest(),
        "languages": "en,zh",
    }
    assert version.current_stage == "None"
    assert version.run_id == parent.info.run_id
    run = MlflowClient().get_run(parent.info.run_id)
    assert run.info.status == "RUNNING", "the pipeline's run is not ended by one of its stages"
    assert run.data.metrics["asr.en.wer"] == 0.0312
    model = mlflow.get_logged_model(version.source.removeprefix("models:/"))
    assert {metric.key for metric in model.metrics or []} >= {"asr.zh.cer", "dev.asr.en.wer"}
    assert "| asr.en.wer | 0.0312 | 0.02 | - |" in version.description
    assert "c0ffee" in version.description


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with ObjectStore(tmp_path_factory.mktemp("store")) as store:
        with pytest.MonkeyPatch.context() as patch:  # the tests below have their files at home again
            ask_as(WRITER, store, patch)
            boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield store


def ask_as(keys: Keys, store: ObjectStore, patch: pytest.MonkeyPatch) -> None:
    for name, value in {**store.environment(keys), "CSLM_ARTIFACTS": f"s3://{BUCKET}/mlflow"}.items():
        patch.setenv(name, value)
    boto3.setup_default_session()  # it and MLflow's client have the keys of before
    s3_artifact_repo._cached_get_s3_client.cache_clear()


def test_a_version_can_live_on_an_object_store(
    workspace: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_as(WRITER, store, monkeypatch)
    main()
    keys = [o["Key"] for o in boto3.client("s3").list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert any(key.endswith("artifacts/model/model.safetensors") for key in keys)
    assert not (workspace / "var" / "mlartifacts").exists()
    model = mlflow.pyfunc.load_model("models:/cslm@candidate")
    assert len(model.predict([{"text": "hello"}], {"max_new_tokens": 5})) == 1


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(("keys", "why"), [(STRANGER, "SignatureDoesNotMatch"), (READER, "AccessDenied")])
def test_a_store_that_refuses_a_version_is_named_with_what_to_do(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, keys: Keys, why: str
) -> None:
    ask_as(keys, store, monkeypatch)
    with pytest.raises(SystemExit) as ended:
        main()
    told = str(ended.value)
    assert told.startswith(f"register: the store of MLflow's files, s3://{BUCKET}/mlflow/")
    for part in ("CSLM_ARTIFACTS", why, "AWS_SECRET_ACCESS_KEY and the rights on the bucket", "run this again"):
        assert part in told
    assert keys.secret not in told
    assert MlflowClient().search_model_versions("name = 'cslm'") == [], "nothing half registered"
    ask_as(WRITER, store, monkeypatch)
    main()
    assert candidate() == 1


@pytest.mark.parametrize("file", ["model/model.safetensors", "tokenizer/model.safetensors", "evaluation.json"])
def test_a_version_whose_files_are_others_now_does_not_answer_people(workspace: Path, file: str) -> None:
    main()
    folder = files_of("cslm", "1")
    assert (folder / "model" / "model.safetensors").exists(), "what was registered is taken"
    [kept] = (workspace / "var" / "mlartifacts").rglob(f"artifacts/{file}")
    if file.endswith(".json"):
        kept.write_text(kept.read_text().replace("0.0312", "0.0212"))
    else:
        content = bytearray(kept.read_bytes())
        content[-1] ^= 1
        kept.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        open_registered("cslm")
    for part in ("cslm version 1: what lies at ", "is not what was registered", "result_digest", "backup"):
        assert part in str(ended.value)


def test_a_version_that_cannot_be_opened_is_named_and_left_where_it_lies(workspace: Path) -> None:
    """Its decoder was trained with another tokenizer."""
    config = workspace / "work/decoder/config.json"
    write(config, json.dumps(json.loads(config.read_text("utf-8")) | {"tokenizer": "another"}))
    main()
    with pytest.raises(
        SystemExit, match=r"cslm version 1 \(candidate\) cannot be opened: the decoder in .*make demo"
    ):
        open_registered("cslm")
    assert not (workspace / "var" / "chat").exists(), "no second copy of what is on this machine"


@pytest.mark.usefixtures("workspace")
def test_the_model_card_says_what_it_is_made_of_and_where_it_falls_short() -> None:
    main()
    card = Path(mlflow.artifacts.download_artifacts("models:/cslm@candidate/artifacts/model_card.md"))
    text = card.read_text("utf-8")
    assert "| assistant | shards | abc123.dir | not stated |" in text
    assert "Speech that validation accepted, all splits: English 1.50 h." in text
    assert "| asr.en.wer | 0.0312 | 0.02 | - |" in text
    assert "latency.speedup_over_full_chain" not in text.partition("## Limits")[2], "3.2 is above its target"
    licences = text.partition("## Licences of the parts")[2]
    assert "| speech decoder | models/decoder | not stated |" in licences
    assert "tokenizer |" not in licences, "it was trained from random weights"
    assert "llama" not in licences.lower(), "what models.yaml has and this version does not use"
    assert "Measured with" not in licences, "no judge was there"
    assert "- git_commit: `c0ffee`" in text
    assert versions()[0].description == text


@pytest.mark.usefixtures("workspace")
def test_the_pipeline_run_leads_to_the_report_that_an_earlier_run_made(monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(f"sqlite:///{Path('var').absolute()}/mlflow.db")
    experiment = client.create_experiment("cslm")
    earlier, pipeline = (client.create_run(experiment).info.run_id for _ in range(2))
    client.set_tag(pipeline, "mlflow.note.content", "The data has grown.")
    write(Path("metrics/evaluation.json"), json.dumps({**EVALUATION, "mlflow_run_id": earlier}))
    monkeypatch.setenv("MLFLOW_PARENT_RUN_ID", pipeline)
    main()
    main()
    said = client.get_run(pipeline).data.tags["mlflow.note.content"]
    link = f"(#/experiments/{experiment}/runs/{earlier}/artifacts/evaluation/index.html)"
    assert said.startswith("The data has grown.")
    assert said.count(link) == 1


@pytest.mark.usefixtures("workspace")
def test_nothing_that_is_served_is_pickled() -> None:
    main()
    folder = Path(mlflow.artifacts.download_artifacts("models:/cslm@candidate"))
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"model.safetensors", "MLmodel", "index.html", "generation.py"} <= names
    assert not {name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin", ".pyc"))}
    assert "torch" in (folder / "requirements.txt").read_text("utf-8").split()


@pytest.mark.usefixtures("workspace")
def test_the_candidate_answers_speech_and_text() -> None:
    main()
    model = mlflow.pyfunc.load_model("models:/cslm@candidate")
    few = {"max_new_tokens": 5}
    frame = pd.DataFrame(
        [
            {"audio": wav()},
            {"text": "what is the capital of france?", "answer_language": "zh"},
            {"audio": wav(kind="FLAC"), "answer_language": "zh"},
            {"audio": base64.b64encode(wav()).decode()},
        ]
    )
    answers = model.predict(frame, few)
    assert list(answers.columns) == ["question", "answer", "units", "wav", "well_formed"]
    assert answers["question"][1] == "what is the capital of france?"
    assert all(isinstance(unit, int) and 0 <= unit < 8 for units in answers["units"] for unit in units)
    assert not answers["well_formed"].any(), "five tokens of random weights are no whole answer"
    assert answers.iloc[0].equals(answers.iloc[3]), "base64 is the same audio"
    single = model.predict({"audio": wav()}, few)
    assert single.iloc[0].equals(answers.iloc[0])
    assert len(model.predict({"text": ["hello", "你好"], "answer_language": "en"}, few)) == 2
    assert len(model.predict([{"text": "hello"}], few)) == 1


SILENCE = np.zeros(3 * SAMPLE_RATE, np.float32)
NOISE = (0.1 * np.random.default_rng(1).standard_normal(3 * SAMPLE_RATE)).astype(np.float32)


@pytest.mark.usefixtures("workspace")
def test_a_bad_row_is_answered_in_words_and_the_others_as_ever() -> None:
    main()
    model = mlflow.pyfunc.load_model("models:/cslm@candidate")
    bad: list[tuple[dict[str, Any], str]] = [
        ({"audio": wav(SILENCE)}, "only silence"),
        ({"audio": wav(SILENCE), "answer_language": "zh"}, "一片寂静"),
        ({"audio": wav(NOISE)}, "no speech"),
        ({"audio": wav(np.tile(NOISE, 20))}, "too long for me: please ask in at most"),
        ({"audio": wav(SILENCE[:100])}, "I heard nothing"),
        ({"text": "hi", "answer_language": "xx"}, "answer_language 'xx' is unknown; allowed: en, zh"),
        ({"text": "hi", "voice": "bob"}, "voice 'bob' is unknown; allowed: ann, wei"),
        ({"text": "hi", "audio": wav()}, "both of audio and text given"),
        ({"answer_language": "en"}, "neither of audio and text given"),
        ({"text": ""}, "neither of audio and text given"),
        ({"text": "  "}, "Please write a question"),
        ({"text": "?!"}, "Please write a question"),
        ({"audio": b"RIFF and nothing else"}, "not readable as audio"),
        ({"audio": wav(kind="FLAC")[:500]}, "not readable as audio"),
        ({"audio": wav(channels=8)}, "8 channels"),
        ({"audio": "%%%"}, "not base64"),
        ({"audio": "问题.wav"}, "not base64"),
        ({"text": "why " * 5000}, "in fewer words"),
    ]
    good = {"text": "what is the capital of france?"}
    rows = [good, *(cells for cells, _ in bad), good]
    answers = model.predict(pd.DataFrame(rows), {"max_new_tokens": 5})
    assert len(answers) == len(rows)
    for (_, said), (_, answer) in zip(bad, answers[1:-1].iterrows(), strict=True):
        assert said in answer["answer"]
        assert (answer["units"], answer["wav"], answer["well_formed"]) == ([], "", False)
    alone = model.predict([good], {"max_new_tokens": 5})
    assert answers.iloc[0].equals(alone.iloc[0])
    assert answers.iloc[-1].equals(alone.iloc[0])
    with pytest.raises(ValueError, match="max_new_tokens 9999 is not allowed; give 1 to"):
        model.predict([good], {"max_new_tokens": 9999})
    with pytest.raises(ValueError, match="batch_size -1 is not allowed; give 1 or more"):
        model.predict([good], {"batch_size": -1})


@pytest.fixture
def context(artifacts: Path) -> PythonModelContext:
    """Where a served model finds its parts."""
    folders = {name: str(artifacts / "work" / name) for name in ("model", "tokenizer", "decoder")}
    return PythonModelContext(folders, {"languages": ["en", "zh"]})  # type: ignore[no-untyped-call]  # MLflow's


def test_a_question_longer_than_what_the_model_learnt_is_refused_in_words(
    context: PythonModelContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Dialogue()
    served.load_context(context)
    monkeypatch.setattr(served.tokenizer, "encode", lambda sounds: [[1, 2] * 150 for _ in sounds])
    [answer] = served.predict(context, pd.DataFrame([{"audio": wav()}]))["answer"]
    assert re.fullmatch(r"The question is too long for me: please ask in at most \d seconds\.", answer)


def test_another_language_is_asked_for_only_if_the_question_is_not_in_it(
    context: PythonModelContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Dialogue()
    served.load_context(context)
    builder = served.model.builder
    asked: list[str] = []

    def generate(prompts: list[list[int]], reply: str, max_new_tokens: int, batch_size: int) -> list[list[int]]:
        """Hears "hello" in any speech; answers and translates in the language of the instruction."""
        replies = []
        for prompt in prompts:
            asked.append(str(builder.tokenizer.decode([t for t in prompt if not builder.is_unit(t)])))
            text = "12" if "中文" in asked[-1] or "Chinese" in asked[-1] or "12" in asked[-1] else "hi"
            if reply == "speech":
                replies.append(builder.speech_ids([5]))
                continue
            spoken = [builder.question_id, *builder.text_ids("hello"), builder.answer_id]
            ids = builder.text_ids(text)
            replies.append(
                [*spoken, *ids, *builder.speech_ids([3])] if builder.speech_start_id in prompt else ids
            )
        return replies

    monkeypatch.setattr(served.model, "generate", generate)
    wanted = [None, "en", "zh"] * 2
    questions = {"audio": [wav()] * 3 + [None] * 3, "text": [None] * 3 + ["hello"] * 3}
    answers = served.predict(context, pd.DataFrame({**questions, "answer_language": wanted}))
    assert answers["answer"].tolist() == ["hi", "hi", "12"] * 2
    assert answers["units"].tolist() == [[3]] * 3 + [[5]] * 3, "what is written is read aloud"
    for (_, answer), native in zip(answers.iterrows(), ("ann", "ann", "wei") * 2, strict=True):
        sound = base64.b64decode(answer["wav"])
        assert soundfile.info(io.BytesIO(sound)).samplerate == 16_000
        assert sound == encode_wav(served.decoder.speak(answer["units"], native)), "digits tell no language"
    assert answers["well_formed"].all()
    assert sum("directly answer" in prompt for prompt in asked) == 3
    assert sum("用中文回答" in prompt for prompt in asked) == 1
    assert not any("in English" in prompt for prompt in asked)
    assert sum("translate the text to Chinese" in prompt for prompt in asked) == 1


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(
    "missing",
    [
        "work/model/config.json",
        "work/decoder/config.json",
        "metrics/evaluation.json",
        "requirements/components.in",
    ],
)
def test_what_is_missing_is_named_with_the_command_that_makes_it(missing: str) -> None:
    Path(missing).unlink()
    with pytest.raises(
        SystemExit, match=rf"register: {missing} is missing; make it first \((make demo|git checkout)\)"
    ):
        main()


def test_a_result_is_its_files_and_its_scores(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write(tmp_path / "model/config.json", "{}")
    first = result_digest([tmp_path / "model"], EVALUATION)
    assert first == result_digest([tmp_path / "model"], json.loads(json.dumps(EVALUATION)))
    layers, again = ({**EVALUATION, "by_layer": [0.5 + noise]} for noise in (0, 1e-9))
    assert result_digest([tmp_path / "model"], layers) == result_digest([tmp_path / "model"], again)
    worse = {**EVALUATION, "asr": {"en": {"wer": 0.04}}}
    assert first != result_digest([tmp_path / "model"], worse)
    (tmp_path / "model/config.json").rename(tmp_path / "model/other.json")
    assert first != result_digest([tmp_path / "model"], EVALUATION)
