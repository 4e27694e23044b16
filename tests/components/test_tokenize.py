"""Speech becomes units, shard by shard; what is finished is not done again."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.settings import Tokenize
from components.tokenize import __main__ as component
from components.tokenize.on_ray import EngineFailed
from cslm.shards import read_rows
from tests import three_shards
from tests.cosyvoice_file import network

ROOT = Path(__file__).parents[2]
SECOND, THIRD = (f"{three_shards.UTTERANCES}/shard-0000{number}.parquet" for number in (1, 2))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One MLflow store for all tests: to make it takes long."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def project(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CSLM_HOME", str(home))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_PARENT_RUN_ID", "CSLM_CHECKPOINTS"):
        monkeypatch.delenv(name, raising=False)
    shutil.rmtree(home / "checkpoints", ignore_errors=True)
    three_shards.make(tmp_path)
    return tmp_path


def test_speeds_are_for_training_only(project: Path) -> None:
    component.main("en")
    heard = [(row["id"], row["speed"], row["duration_s"]) for row in read_rows(Path("work/units/en"))]
    assert heard == [
        ("u0", 1.0, 0.5),
        ("u2", 1.0, 0.7),
        ("u2", 0.9, pytest.approx(0.7 / 0.9)),
        ("u6", 1.0, 1.1),
        ("u7", 1.0, 1.2),
        ("u7", 0.9, pytest.approx(1.2 / 0.9)),
        ("u8", 1.0, 1.3),
        ("u8", 0.9, pytest.approx(1.3 / 0.9)),
    ]
    assert sorted(three_shards.files(Path("work/units/en"))) == ["shard-00000.parquet", "shard-00002.parquet"]
    metrics = json.loads(Path("metrics/tokenize/en.json").read_text("utf-8"))
    assert metrics["utterances"] == 8
    assert metrics["hours"] == pytest.approx(sum(seconds for _, _, seconds in heard) / 3600)
    rate = sum(len(row["units"]) for row in read_rows(Path("work/units/en"))) / (metrics["hours"] * 3600)
    assert metrics["units_per_second"] == pytest.approx(rate)


def test_what_was_finished_before_a_kill_is_not_done_again(
    project: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    really, begun = component.encode_shard, []

    def killed(tokenizer: Any, recipe: Any, shard: Path, folder: Path) -> Iterator[Any]:
        begun.append(shard.name)
        if shard.name == "shard-00002.parquet":
            (folder / ".shard-00002-half").mkdir()
            raise KeyboardInterrupt
        yield from really(tokenizer, recipe, shard, folder)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(component, "encode_shard", killed)
        component.main("en")
    assert not Path("work/units/en").exists()
    three_shards.set_tokenize(project, engine="local")  # which changes no unit, so it is the same work
    monkeypatch.setattr(component, "encode_shard", lambda *given: begun.append(given[2].name) or really(*given))
    component.main("en")
    assert begun == ["shard-00000.parquet", "shard-00002.parquet", "shard-00002.parquet"]
    assert "1 of 2 shards are finished already" in capfd.readouterr().out
    resumed = three_shards.files(Path("work/units/en"))
    assert not list(home.glob("checkpoints/tokenize-en-*/.*")), "nothing half made is left"

    shutil.rmtree(home / "checkpoints")
    component.main("en")
    assert three_shards.files(Path("work/units/en")) == resumed


def test_other_speeds_are_other_work(project: Path) -> None:
    component.main("en")
    three_shards.set_tokenize(project, speeds=[1.1])
    component.main("en")
    assert {row["speed"] for row in read_rows(Path("work/units/en"))} == {1.0, 1.1}


def test_a_damaged_utterance_is_named_with_its_shard(
    project: Path, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    three_shards.damage(project / THIRD)
    with pytest.raises(SystemExit, match=rf"^tokenize/en: {THIRD} .* utterance u7: .*FORCE=validate.* kept"):
        component.main("en")
    assert not Path("work/units/en").exists()
    assert len(list(home.glob("checkpoints/tokenize-en-*/shard-00000.parquet"))) == 1


def test_a_shard_that_is_none_is_named(project: Path) -> None:
    (project / SECOND).write_bytes(b"PAR1 and no more")
    with pytest.raises(SystemExit, match=rf"^tokenize/en: {SECOND} "):
        component.main("en")


def test_a_language_that_nobody_speaks_is_named(project: Path) -> None:
    with pytest.raises(SystemExit, match="no accepted utterance is in 'fr'"):
        component.main("fr")


def test_ray_that_is_not_installed_is_asked_for(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    three_shards.set_tokenize(project, engine="ray")
    with pytest.raises(SystemExit, match=r"^tokenize/en: .*make setup"):
        component.main("en")


def test_what_changes_units_is_a_parameter_of_the_stage_and_what_encodes_is_not() -> None:
    row = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]["tokenize"]["do"]
    assert set(row["params"]) == {f"tokenize.{key}" for key in Tokenize.model_fields} - {
        "tokenize.engine",
        "tokenize.provider",
    }
    written = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))["tokenize"]
    assert set(written) == set(Tokenize.model_fields), "DVC misses what is not written down"


def test_a_gpu_that_onnxruntime_cannot_use_is_not_left_idle_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, shards = network(tmp_path, "batch"), [tmp_path / "shard-00000.parquet"]
    monkeypatch.setenv("CSLM_GRANTED_GPUS", "1")
    recipe = component.recipe_of("en", Tokenize())
    told = (
        "provider 'cuda': this onnxruntime has cpu; install onnxruntime-gpu, .* or take tokenize.provider cpu"
    )
    with pytest.raises(EngineFailed, match=told):
        list(component.encode_here(folder, recipe, shards, tmp_path))
    assert component.recipe_of("en", Tokenize(provider="cpu")).provider == "cpu"
    monkeypatch.delenv("CSLM_GRANTED_GPUS")
    assert component.recipe_of("en", Tokenize()).provider is None
    assert component.recipe_of("en", Tokenize(provider="tensorrt")).provider == "tensorrt"
