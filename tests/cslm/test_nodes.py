"""Which node this is, what its ranks are, and how it hears of a training."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cslm.training.nodes import BadNodes, Nodes

TOLD = {"PET_NNODES": "3", "PET_NODE_RANK": "2", "PET_MASTER_ADDR": "node-0", "PET_MASTER_PORT": "29400"}


def test_a_machine_alone_has_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PET_NNODES", raising=False)
    assert list(Nodes.here().ranks(3)) == [0, 1, 2]


def test_a_node_has_its_part_of_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (TOLD | {"CSLM_JOB": "/shared/job.json"}).items():
        monkeypatch.setenv(name, value)
    nodes = Nodes.here()
    assert nodes == Nodes(3, 2, "node-0", 29400, Path("/shared/job.json"))
    assert list(nodes.ranks(6)) == [4, 5]
    with pytest.raises(BadNodes, match=r"8 ranks cannot be shared among 3 nodes \(CSLM_NODES\)"):
        nodes.ranks(8)
    monkeypatch.delenv("PET_MASTER_ADDR")
    with pytest.raises(BadNodes, match="PET_MASTER_ADDR"):
        Nodes.here()


def test_nodes_hear_of_a_training_when_node_0_calls(tmp_path: Path) -> None:
    first, other = (Nodes(2, rank, "node-0", 29400, tmp_path / "job.json") for rank in (0, 1))
    threading.Timer(0.2, first.call, (2, Path("relative.json"))).start()
    assert other.wait(until=tmp_path / "result.json") == (2, Path("relative.json").absolute())


def test_a_node_ends_when_there_is_nothing_to_train(tmp_path: Path) -> None:
    """Node 0 found its outputs in the cache."""
    (tmp_path / "result.json").touch()
    ended = subprocess.run(
        [sys.executable, "-m", "cslm.training.join", str(tmp_path / "result.json")],
        env=TOLD | {"CSLM_JOB": str(tmp_path / "job.json")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "node 2: there is nothing to train\n"), ended.stderr
