"""A language that is added to a version: what its run gets, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from dags import languages, places
from dags.continuation import CannotContinue
from tests.dags import toy

KNOWN = {
    "languages": ["en", "fr"],
    "corpora": {"one": {"format": "shards", "path": "data/one"}, "two": {"format": "tsv", "path": "data/two"}},
}
SPANISH = {"spanish": {"format": "shards", "path": "data/spanish"}}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository and an MLflow store with one version, which knows English and French."""
    toy.run(tmp_path, "git", "init", "--quiet", "--initial-branch=runs/first")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(KNOWN))
    toy.run(tmp_path, "git", "add", "--all")
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    toy.run(tmp_path, "git", *identity, "commit", "--quiet", "-m", "Run first")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(places, "PROJECT", tmp_path)
    client = MlflowClient(places.tracking_uri())
    client.create_registered_model("cslm")
    version = client.create_model_version("cslm", "file:///nowhere", tags={"pipeline_run": "first"})
    client.set_registered_model_alias("cslm", "production", version.version)
    return tmp_path


def test_the_run_has_all_that_the_version_knows_and_the_new_language(project: Path) -> None:
    now = {"corpora": {**KNOWN["corpora"], "later": {"format": "tsv", "path": "data/later"}}}  # type: ignore[dict-item]
    (project / "params.yaml").write_text(yaml.safe_dump(now))
    version, overrides = languages.parameters_with("cslm", "production", "es", SPANISH)
    assert version == 1
    assert overrides == {
        "languages": ["en", "fr", "es"],
        "corpora": {
            "later": None,  # params.yaml has it by now, and the version was not trained on it
            "one": KNOWN["corpora"]["one"],  # type: ignore[index]
            "two": KNOWN["corpora"]["two"],  # type: ignore[index]
            "spanish": SPANISH["spanish"],
        },
    }


@pytest.mark.parametrize(
    ("base", "language", "corpora", "why"),
    [
        ("staging", "es", SPANISH, "no version 'staging'"),
        ("1", "Spanish", SPANISH, "two or three small letters are needed, such as es"),
        ("1", "zh-yue", SPANISH, "two or three small letters are needed, such as es or yue"),
        ("1", "fr", SPANISH, "version 1 speaks 'fr' already"),
        ("1", "es", {}, "at least one of 'es' is needed"),
        ("1", "es", {"two": SPANISH["spanish"]}, "has a corpus 'two' already"),
        ("1", "es", {"spanish": "data/spanish"}, "corpora.spanish = 'data/spanish': a mapping"),
    ],
)
def test_what_cannot_be_added_is_refused_with_the_reason(
    project: Path, base: str, language: str, corpora: dict[str, Any], why: str
) -> None:
    with pytest.raises(languages.CannotAdd, match=why):
        languages.parameters_with("cslm", base, language, corpora)


def test_a_version_of_another_repository_is_refused(project: Path) -> None:
    client = MlflowClient(places.tracking_uri())
    client.set_model_version_tag("cslm", "1", "pipeline_run", "elsewhere")
    with pytest.raises(CannotContinue, match="branch runs/elsewhere is not in this repository"):
        languages.parameters_with("cslm", "1", "es", SPANISH)
