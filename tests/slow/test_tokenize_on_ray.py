"""Workers of a real Ray, of the stage's own or of a cluster, write what one process writes."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cslm.shards import read_rows
from tests import three_shards

if importlib.util.find_spec("ray") is None:
    pytest.skip("no ray in this environment: run `make setup`", allow_module_level=True)

THIRD = f"{three_shards.UTTERANCES}/shard-00002.parquet"
ADDRESS = "127.0.0.1:6399"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    three_shards.make(tmp_path)
    return tmp_path


def tokenize(project: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the stage as the pipeline does, with two cores."""
    unwanted = ("MLFLOW_", "CSLM_", "RAY_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
    paths = [str(three_shards.ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment |= {"CSLM_HOME": str(project / "home"), "OMP_NUM_THREADS": "2"}
    return subprocess.run(
        [sys.executable, "-m", "components.tokenize", "--language", "en"],
        cwd=project,
        env=environment | {"PYTHONPATH": os.pathsep.join(paths)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def finished(project: Path) -> Path:
    [folder] = (project / "home/checkpoints").glob("tokenize-en-*")
    return folder


def test_ray_goes_on_where_the_local_engine_was_and_writes_the_same(project: Path) -> None:
    assert tokenize(project).returncode == 0
    here = three_shards.files(project / "work/units/en")
    [kept, lost] = [finished(project) / name for name in here]
    lost.unlink()
    written = kept.stat().st_mtime_ns
    three_shards.set_tokenize(project, engine="ray")
    result = tokenize(project)
    assert result.returncode == 0, result.stderr
    assert three_shards.files(project / "work/units/en") == here
    assert kept.stat().st_mtime_ns == written
    assert "1 of 2 shards are finished already" in result.stdout
    assert "progress: 2/2 shards, 5 utterances" in result.stdout  # u6 once, u7 and u8 at two speeds
    assert not re.search("usage stats|telemetry", result.stdout + result.stderr, re.IGNORECASE)


def test_ray_writes_the_units_of_the_samples_tokenizer(tmp_path: Path) -> None:
    three_shards.make_of_sample(tmp_path)
    assert tokenize(tmp_path).returncode == 0
    here = three_shards.files(tmp_path / "work/units/en")
    assert len({unit for row in read_rows(tmp_path / "work/units/en") for unit in row["units"]}) > 100
    for name in here:
        (finished(tmp_path) / name).unlink()
    three_shards.set_tokenize(tmp_path, engine="ray")
    result = tokenize(tmp_path)
    assert result.returncode == 0, result.stderr
    assert "finished already" not in result.stdout
    assert three_shards.files(tmp_path / "work/units/en") == here


def test_a_shard_that_fails_on_ray_is_named(project: Path) -> None:
    three_shards.set_tokenize(project, engine="ray")
    three_shards.damage(project / THIRD)
    result = tokenize(project)
    assert result.returncode == 1
    assert re.search(rf"^tokenize/en: .*{THIRD} .* utterance u7: .*FORCE=validate", result.stderr, re.MULTILINE)
    assert "Traceback" not in result.stderr
    assert not (project / "work/units/en").exists()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Variables that name a cluster of one node, whose workers start elsewhere and know no code of ours."""
    scratch = tempfile.mkdtemp(prefix="ray-")  # short, as it is in the names of sockets
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
    start += ["--node-ip-address=127.0.0.1", f"--port={ADDRESS.partition(':')[2]}", f"--temp-dir={scratch}"]
    start += ["--object-store-memory=134217728", "--include-dashboard=false"]
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32, "RAY_USAGE_STATS_ENABLED": "0"}
    paths = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if "site-packages" in each]
    environment = os.environ | variables | {"PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen(
        start, cwd=scratch, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as head:
        assert head.stdout is not None
        told = []
        for line in head.stdout:
            told.append(line)
            if "Ray runtime started" in line:
                break
        else:
            pytest.fail("".join(told))
        yield variables | {"RAY_ADDRESS": ADDRESS}
        head.terminate()
    shutil.rmtree(scratch, ignore_errors=True)


def test_workers_of_a_cluster_write_the_same(project: Path, cluster: dict[str, str]) -> None:
    assert tokenize(project).returncode == 0
    here = three_shards.files(project / "work/units/en")
    for name in here:
        (finished(project) / name).unlink()
    three_shards.set_tokenize(project, engine="ray")
    result = tokenize(project, **cluster)
    assert result.returncode == 0, result.stderr
    assert three_shards.files(project / "work/units/en") == here


def test_a_cluster_that_is_not_there_is_named(project: Path) -> None:
    three_shards.set_tokenize(project, engine="ray")
    result = tokenize(project, RAY_ADDRESS="127.0.0.1:9")
    assert result.returncode == os.EX_TEMPFAIL, "Airflow tries again: it may be there then"
    assert re.search(
        r"^tokenize/en: Ray at '127\.0\.0\.1:9' \(RAY_ADDRESS\) cannot be used", result.stderr, re.M
    )
