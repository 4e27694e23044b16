"""Workers of a real Ray, of this process or of a cluster, write what one process writes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from components.tokenize.__main__ import main
from tests import three_shards

pytest.importorskip("ray", reason="no ray in this environment: run `make setup`")

THIRD = f"{three_shards.UTTERANCES}/shard-00002.parquet"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CSLM_HOME", str(tmp_path / "home"))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_PARENT_RUN_ID", "CSLM_CHECKPOINTS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    three_shards.make(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # the cores of the stage
    yield tmp_path
    torch.set_num_threads(threads)


def finished(project: Path) -> Path:
    [folder] = (project / "home/checkpoints").glob("tokenize-en-*")
    return folder


def test_ray_goes_on_where_the_local_engine_was_and_writes_the_same(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    main("en")
    here = three_shards.files(Path("work/units/en"))
    [kept, other] = [finished(project) / name for name in here]
    other.unlink()
    written = kept.stat().st_mtime_ns
    three_shards.set_tokenize(project, engine="ray")
    capfd.readouterr()
    main("en")
    out = capfd.readouterr().out
    assert three_shards.files(Path("work/units/en")) == here
    assert kept.stat().st_mtime_ns == written
    assert "1 of 2 shards are finished already" in out
    assert "progress: 2/2 shards, 5 utterances, 0.00 h" in out  # u6 once, u7 and u8 at two speeds


def test_a_shard_that_fails_on_ray_is_named_and_the_rest_is_kept(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    three_shards.set_tokenize(project, engine="ray")
    three_shards.damage(project / THIRD)
    with pytest.raises(SystemExit, match=rf"^tokenize/en: .*{THIRD} .* utterance u7: .*FORCE=validate"):
        main("en")
    assert not Path("work/units/en").exists()
    ours = {process.pid for process in psutil.Process().children(recursive=True)}
    assert not [pid for pid in ours if "ray" in psutil.Process(pid).name()], "Ray ends with the stage"


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a cluster of one node, whose workers start elsewhere and know no code of ours."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    scratch = Path("/tmp") / f"cslm-ray-test-{os.getpid()}"  # a socket's path must be short
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-this-test")
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    paths = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if "site-packages" in each]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    start = ["start", "--head", "--port=6399", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
    start += [
        "--object-store-memory=134217728",
        "--include-dashboard=false",
        f"--temp-dir={scratch}",
        "--block",
    ]
    with subprocess.Popen([*ray, *start], cwd=elsewhere, env=env, stdout=subprocess.PIPE, text=True) as head:
        assert head.stdout is not None
        for line in head.stdout:
            if "Ray runtime started" in line:
                break
        yield "127.0.0.1:6399"
        head.terminate()


def test_workers_of_a_cluster_write_the_same(
    project: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    main("en")
    here = three_shards.files(Path("work/units/en"))
    for name in here:
        (finished(project) / name).unlink()
    three_shards.set_tokenize(project, engine="ray")
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    main("en")
    assert three_shards.files(Path("work/units/en")) == here


def test_a_cluster_that_is_not_there_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three_shards.set_tokenize(project, engine="ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(
        SystemExit, match=r"^tokenize/en: Ray at '127\.0\.0\.1:9' \(RAY_ADDRESS\) cannot be used"
    ):
        main("en")
