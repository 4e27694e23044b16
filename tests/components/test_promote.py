"""`python -m components.promote`: what the gate lets through, what moves in the registry, what history tells.

Versions are those of a real MLflow on SQLite; of a model they hold only the evaluation: nothing else is read.
"""

from __future__ import annotations

import copy
import datetime
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from components.promote.__main__ import app
from components.promote.registry import Registry, RegistryFailed
from cslm.evaluation.confidence import wilson

GOOD: dict[str, Any] = {
    "test_set": "a" * 64,
    "asr": {"en": {"wer": 0.05, "ci95": [0.04, 0.06]}, "zh": {"cer": 0.03, "ci95": [0.02, 0.04]}},
    "conversation": {"en": {"exact_match": 140 / 154, "ci95": wilson(140, 154)}},
    "latency": {"first_audio_ms": 280},
}
"""Figures of a version; the tests change some."""


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without anything in it: to make one takes seconds."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mlflow.db").write_bytes(empty.read_bytes())
    monkeypatch.setenv("CSLM_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    MlflowClient().create_registered_model("cslm")
    yield tmp_path
    mlflow.set_tracking_uri(before)


def register(store: Path, *changes: tuple[str, Any], **tags: str) -> int:
    """A new candidate whose evaluation is `GOOD` with changes such as ("asr.en.wer", 0.2)."""
    evaluation = copy.deepcopy(GOOD)
    for name, value in changes:
        *parts, last = name.split(".")
        place = evaluation
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = value
    folder = store / f"model-{len(list(store.glob('model-*')))}" / "artifacts"
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    version = MlflowClient().create_model_version("cslm", folder.parent.as_uri(), tags=tags or None)
    MlflowClient().set_registered_model_alias("cslm", "candidate", version.version)
    return int(version.version)


def keep_items(store: Path, version: int, right: list[bool], lost: str = "") -> None:
    """The report of a version: English questions, and in `lost` an utterance of which a word was misheard."""
    report = store / f"model-{version - 1}" / "artifacts" / "evaluation"
    report.mkdir()
    answers = [
        {"id": f"a{number}", "split": split, "question_language": "en", "answer_language": "en"}
        | {"exact_match": each if split == "test" else False, "off_target": False}
        for number, each in enumerate(right)
        for split in ("test", "dev")
    ]
    edits = {"deletions": 0, "insertions": 0, "length": 5, "split": "test", "language": "en"}
    heard = [{"id": name, "substitutions": int(name in lost)} | edits for name in "uvwxy"]
    for name, rows in (("dialogues", answers), ("transcripts", heard)):
        (report / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def promote(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, RegistryFailed):
        return 1, str(result.exception)
    text = result.exception.code if isinstance(result.exception, SystemExit) else ""
    return result.exit_code, f"{result.output}{text if isinstance(text, str) else ''}"


def at(alias: str) -> int | None:
    version = Registry("cslm").at(alias)
    return int(version.version) if version else None


def tags(version: int) -> dict[str, str]:
    return dict(MlflowClient().get_model_version("cslm", str(version)).tags)


def legacy(version: int) -> str:
    return str(MlflowClient().get_model_version("cslm", str(version)).current_stage)


def test_the_first_version_goes_through_all_stages(store: Path) -> None:
    version = register(store, data_version="assistant=abc")
    code, text = promote("gate")
    assert "Version 1** of cslm: nothing is in production yet" in text
    assert "| test figure | candidate |\n" in text, "nor is it compared with itself"
    assert code == 0 and "nothing is in production yet" in text
    assert (at("staging"), at("production"), legacy(version)) == (version, None, "Staging")
    code, text = promote("promote", "--by", "ana", "--reason", "first of all")
    assert (code, text.strip()) == (0, "version 1 is in production")
    assert (at("staging"), at("production"), legacy(version)) == (None, version, "Production")
    assert tags(version)["stage"] == "Production"
    assert "by ana: first of all" in tags(version)["promoted"]


def test_a_better_version_takes_over_and_the_old_one_is_archived(store: Path) -> None:
    old = register(store)
    promote("promote", "--by", "ana", "--reason", "first")
    new = register(store, ("asr.en.wer", 0.02), ("asr.en.ci95", [0.01, 0.03]))
    code, text = promote("gate", "--out", "gate.json")
    assert code == 0, text
    facts = json.loads((store / "gate.json").read_text())
    assert (facts["version"], facts["production"], facts["passed"]) == (new, old, True)
    assert "| asr.en.wer | 0.02 | 0.05 | +0.01586 to +0.04414 | better |" in facts["report"]
    code, text = promote("promote", "--by", "bo", "--reason", "hears better", "--expect-production", str(old))
    assert code == 0, text
    assert (at("production"), legacy(old), tags(old)["stage"]) == (new, "Archived", "Archived")
    assert "by bo: hears better" in tags(old)["archived"]
    last = Registry("cslm").history()[-1].run_id
    assert "| asr.en.wer | 0.02 | 0.05 |" in mlflow.artifacts.load_text(f"runs:/{last}/gate.md")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("conversation.en", {"exact_match": 0.5, "ci95": wilson(77, 154)}), "conversation.en.exact_match"),
        (("asr.zh", {}), "asr.zh.cer"),
        (("test_set", "b" * 64), "different test items"),
        (("test_set", ""), "not known which test items"),
    ],
)
def test_a_worse_or_incomparable_version_is_refused(store: Path, change: tuple[str, Any], reason: str) -> None:
    old = register(store)
    promote("promote", "--by", "ana", "--reason", "first")
    register(store, change)
    for command in (["gate"], ["promote", "--by", "ana", "--reason", "please"]):
        code, text = promote(*command)
        assert code == 1 and "refused" in text and reason in text
    assert "by gate: " in tags(2)["refused"] and reason in tags(2)["refused"]
    assert (at("production"), at("staging")) == (old, None)
    code, text = promote("promote", "--by", "ana", "--reason", "it is known", "--despite-gate")
    assert code == 0 and at("production") == 2
    assert "despite the gate" in tags(2)["promoted"] and "refused" not in tags(2)


def test_what_a_person_rejects_leaves_staging_and_keeps_the_reason(store: Path) -> None:
    version = register(store)
    promote("gate")
    assert promote("reject", "--by", "ana", "--reason", "it stutters")[0] == 0
    assert (at("staging"), at("candidate"), legacy(version), tags(version)["stage"]) == (
        None,
        1,
        "None",
        "None",
    )
    assert tags(version)["refused"].endswith("UTC by ana: it stutters")
    assert promote("gate")[0] == 0
    assert at("staging") == version and "refused" not in tags(version), "it is asked about anew"
    promote("promote", "--by", "ana", "--reason", "but little")
    code, text = promote("reject", "--by", "ana", "--reason", "too much")
    assert code == 1 and "version 1 is in production; take it out (rollback)" in text


def test_a_language_that_was_added_does_not_hide_what_the_others_lost(store: Path) -> None:
    parts = {"en": "1" * 64, "zh": "2" * 64, "en_zh": "3" * 64}
    register(store, ("test_parts", parts))
    promote("promote", "--by", "ana", "--reason", "first")
    spanish = {"es": {"wer": 0.2, "ci95": [0.1, 0.3]}}
    more = (("test_set", "b" * 64), ("test_parts", parts | {"es": "4" * 64}), ("asr", GOOD["asr"] | spanish))
    register(store, *more)
    assert promote("gate")[0] == 0
    register(store, *more, ("asr.zh", {"cer": 0.3, "ci95": [0.28, 0.32]}))
    code, text = promote("gate")
    assert code == 1 and "worse than version 1: asr.zh.cer" in text
    register(store, ("test_set", "b" * 64), ("test_parts", parts | {"zh": "5" * 64}))
    code, text = promote("gate")
    assert code == 1 and "different test items of zh" in text


def test_any_two_versions_can_be_compared_and_nothing_moves(store: Path) -> None:
    register(store)
    register(store, ("asr.en", {"wer": 0.02, "ci95": [0.01, 0.03]}))
    promote("promote", "--by", "ana", "--reason", "first")
    register(store, ("asr.en", {"wer": 0.9, "ci95": [0.85, 0.95]}))
    code, text = promote("compare", "--against", "1")
    assert code == 0
    [line] = [line for line in text.splitlines() if line.startswith("| asr.en.wer | 0.9 | 0.05 |")]
    assert line.endswith("| WORSE |")
    assert "against version 1\n" in text
    assert "against version 2, which is in production" in promote("compare", "--against", "2")[1]
    assert (at("candidate"), at("production"), at("staging")) == (3, 2, None)
    assert promote("compare", "--against", "9")[0] == 1


@pytest.mark.parametrize(
    ("losses", "wins", "verdict"),
    [(8, 0, "WORSE"), (28, 20, "worse within chance"), (1, 0, "worse within tolerance")],
)
def test_the_same_items_are_compared_one_by_one(store: Path, losses: int, wins: int, verdict: str) -> None:
    """As independent samples, 120 and 112 right of 154 differ by chance; with 8 lost and none won they do not.

    The interval is compared with Wald's for paired shares (Agresti, Categorical Data Analysis, 10.1.1).
    """
    n, before = 154, 120
    after = before - losses + wins
    register(store, ("conversation.en", {"exact_match": before / n, "ci95": wilson(before, n)}))
    promote("promote", "--by", "ana", "--reason", "first")
    register(store, ("conversation.en", {"exact_match": after / n, "ci95": wilson(after, n)}))
    keep_items(store, 1, [True] * before + [False] * (n - before))
    keep_items(store, 2, [True] * (before - losses) + [False] * (n - before + losses - wins) + [True] * wins)
    code, text = promote("gate", "--out", "gate.json")
    assert code == (verdict == "WORSE"), text
    [check] = [
        check
        for check in json.loads((store / "gate.json").read_text())["checks"]
        if check["name"] == "conversation.en.exact_match"
    ]
    assert (check["verdict"], check["paired"]) == (verdict, True)
    half = 1.96 * math.sqrt(losses + wins - (losses - wins) ** 2 / n) / n
    gain = (after - before) / n
    assert check["change"] == pytest.approx([gain - half, gain + half], abs=0.008)
    assert "which is wider: asr.en.wer, asr.zh.cer." in text, (
        "whose items do not make the figure, or are not there"
    )


def test_an_error_rate_is_compared_utterance_by_utterance(store: Path) -> None:
    register(store, ("asr.en", {"wer": 1 / 25, "ci95": [0, 0.12]}))
    promote("promote", "--by", "ana", "--reason", "first")
    register(store, ("asr.en", {"wer": 3 / 25, "ci95": [0.04, 0.2]}))
    for version, lost in ((1, "u"), (2, "uvw")):
        keep_items(store, version, [True], lost)
    _, text = promote("compare", "--against", "1")
    # two of five utterances lose a word of five: the mean of five draws out of (1, 1, 0, 0, 0), over 5
    [line] = [line for line in text.splitlines() if line.startswith("| asr.en.wer |")]
    assert line == "| asr.en.wer | 0.12 | 0.04 | -0.16 to +0 | worse within chance |"


def test_items_that_cannot_be_read_are_no_reason_to_be_lenient(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        register(store)
        keep_items(store, number + 1, [True])
        promote("promote", "--by", "ana", "--reason", "first")
    register(store)
    keep_items(store, 3, [True])
    damaged = store / "model-2" / "artifacts" / "evaluation" / "dialogues.jsonl"
    good = damaged.read_text()
    damaged.write_text(good[:-9])
    code, text = promote("gate")
    assert code == 1 and "test items of cslm version 3" in text and "are damaged" in text
    damaged.write_text(good)
    whole = mlflow.artifacts.download_artifacts

    def away(artifact_uri: str, dst_path: str) -> str:
        if artifact_uri.endswith(".jsonl"):
            raise mlflow.MlflowException("the store does not answer")
        return str(whole(artifact_uri=artifact_uri, dst_path=dst_path))

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", away)
    result = CliRunner().invoke(app, ["gate"])
    assert "does not answer" in str(result.exception), "which the program explains"
    assert at("staging") is None


def test_a_production_version_that_is_damaged_can_be_replaced(store: Path) -> None:
    register(store)
    promote("promote", "--by", "ana", "--reason", "first")
    register(store)
    for version in (1, 2):
        keep_items(store, version, [True])
    damaged = store / "model-0" / "artifacts" / "evaluation" / "dialogues.jsonl"
    damaged.write_text("{")
    code, text = promote("promote", "--by", "ana", "--reason", "second")
    assert code == 1 and "test items of cslm version 1" in text and "--despite-gate" in text
    assert "refused" not in tags(2), "it is not to blame"
    own = store / "model-1" / "artifacts" / "evaluation" / "dialogues.jsonl"
    good = own.read_text()
    own.write_text("{")
    assert promote("promote", "--reason", "second", "--despite-gate")[0] == 1, "nobody knows what it is"
    own.write_text(good)
    assert promote("promote", "--by", "ana", "--reason", "second", "--despite-gate")[0] == 0
    assert at("production") == 2


def test_production_that_changed_since_it_was_compared_is_not_overwritten(store: Path) -> None:
    register(store)
    promote("promote", "--by", "ana", "--reason", "first")
    register(store)
    code, text = promote("promote", "--by", "bo", "--reason", "late", "--expect-production", "0")
    assert code == 1 and "version 1 is in production now, not 0" in text
    assert at("production") == 1


def test_rollback_returns_to_the_version_before_and_again(store: Path) -> None:
    for number in range(1, 4):
        register(store)
        promote("promote", "--by", "ana", "--reason", f"number {number}")
    assert promote("rollback", "--by", "bo", "--reason", "it stutters")[0] == 0
    assert (at("production"), legacy(3), legacy(2)) == (2, "Archived", "Production")
    assert "archived" in tags(3) and "archived" not in tags(2)
    code, text = promote("promote", "--by", "ana", "--reason", "again")
    assert code == 1 and "taken out again (it stutters)" in text, "the candidate is still the bad version"
    assert promote("rollback", "--by", "bo", "--reason", "so does this")[0] == 0
    assert at("production") == 1
    code, text = promote("rollback", "--by", "bo", "--reason", "and this")
    assert code == 1 and "no version that was in production before version 1" in text


def test_a_version_that_was_put_back_is_not_refused_for_its_rollback(store: Path) -> None:
    for number in (1, 2):
        register(store)
        promote("promote", "--reason", f"number {number}")
    promote("rollback", "--reason", "it stutters")
    assert promote("promote", "--version", "2", "--despite-gate", "--reason", "it does not")[0] == 0
    assert "rolled_back_because" not in tags(2)
    assert promote("gate")[0] == 0


@pytest.mark.parametrize("killed_at", ["set_registered_model_alias", "set_terminated", None])
def test_a_rollback_that_is_asked_for_again_takes_off_no_other_version(
    store: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str | None
) -> None:
    for number in range(1, 4):
        register(store)
        promote("promote", "--by", "ana", "--reason", f"number {number}")
    ask = ["rollback", "--by", "bo", "--reason", "it stutters", "--request"]
    with monkeypatch.context() as patch:
        if killed_at:
            patch.setattr(MlflowClient, killed_at, _killed)
        promote(*ask, "manual__1")
    if killed_at:
        promote(*ask, "manual__1")
    assert at("production") == 2
    code, text = promote(*ask, "manual__1")
    assert code == 0 and "manual__1 has put version 2 back already" in text and "nothing moves" in text
    assert (at("production"), len(Registry("cslm").history())) == (2, 4)
    promote(*ask, "manual__2")
    assert at("production") == 1, "another request is another rollback"


def test_the_same_command_again_changes_nothing(store: Path) -> None:
    register(store)
    for _ in range(2):
        promote("gate")
        code, text = promote("promote", "--by", "ana", "--reason", "first")
        assert code == 0
    assert "in production already" in text
    assert [release.event for release in Registry("cslm").history()] == ["staged", "promoted"]


@pytest.mark.parametrize("killed_at", ["set_registered_model_alias", "set_terminated"])
def test_a_killed_move_is_finished_by_the_same_command(
    store: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    for number in range(1, 3):
        register(store)
        with monkeypatch.context() as patch:
            if number == 2:
                patch.setattr(MlflowClient, killed_at, _killed)
            promote("promote", "--by", "ana", "--reason", f"number {number}")
    assert len(Registry("cslm").history()) == 1
    assert promote("promote", "--by", "ana", "--reason", "number 2")[0] == 0
    assert (at("production"), tags(1)["stage"], tags(2)["stage"]) == (2, "Archived", "Production")
    told = [(release.version, release.before) for release in Registry("cslm").history()]
    assert told == [(1, None), (2, 1)]


def test_a_killed_move_that_others_overtook_is_told_when_and_by_whom_it_was_finished(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 4):
        register(store)
        with monkeypatch.context() as patch:
            if number == 2:
                patch.setattr(MlflowClient, "set_registered_model_alias", _killed)
            promote("promote", "--version", str(number), "--by", "ana", "--reason", f"number {number}")
    assert promote("promote", "--version", "2", "--by", "bo", "--reason", "after all")[0] == 0
    last = Registry("cslm").history()[-1]
    assert (last.version, last.before, last.by, last.reason) == (2, 3, "bo", "after all")
    today = str(datetime.datetime.now(datetime.UTC).date())
    assert "version 2 promoted by bo (before: version 3)" in promote("history", "--on", today)[1]
    code, text = promote("rollback", "--by", "bo", "--reason", "no, it stutters")
    assert code == 0 and "version 3 is in production again, version 2 is archived" in text


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_history_tells_who_when_from_which_data_and_on_which_figures(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no version of cslm has been staged" in promote("history")[1]
    register(store, data_version="assistant=abc", git_commit="c0ffee")
    promote("promote", "--by", "ana", "--reason", "first")
    text = promote("history")[1]
    for part in ("version 1 promoted by ana", "why     first", "data    assistant=abc", "commit  c0ffee"):
        assert part in text
    assert "asr.en.wer 0.05" in text
    today = datetime.datetime.now(datetime.UTC).date()
    assert "version 1 promoted" in promote("history", "--on", str(today))[1]
    yesterday = str(today - datetime.timedelta(days=1))
    assert f"nothing was in production at the end of {yesterday}" in promote("history", "--on", yesterday)[1]
    assert "YYYY-MM-DD is needed" in promote("history", "--on", "yesterday")[1]


def test_without_a_candidate_it_says_what_to_do(store: Path) -> None:
    code, text = promote("gate")
    assert code == 1 and "make demo" in text


def test_figures_that_are_not_those_that_were_registered_let_nothing_pass(store: Path) -> None:
    version = register(store, evaluation_digest=hashlib.sha256(json.dumps(GOOD).encode()).hexdigest())
    assert promote("gate")[0] == 0
    (store / "model-0" / "artifacts" / "evaluation.json").write_text(
        json.dumps(GOOD | {"conversation": {"en": {"exact_match": 1.0, "ci95": [1.0, 1.0]}}})
    )
    for command in (["gate"], ["promote", "--reason", "it is perfect"]):
        code, told = promote(*command)
        assert code == 1
        assert f"cslm version {version}: what lies at " in told
        assert "evaluation_digest" in told and "backup" in told
