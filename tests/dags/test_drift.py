"""How far data has drifted from that of a version: by scipy's own test, and by what a data owner would say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ks_2samp

from dags import drift
from tests.dags import toy

BIN = 0.25
LOOK_AND_RUN = """
import json, os, pathlib
from dags import drift, graph, places, preparation, run
def quiet(line): pass
calls = pathlib.Path(os.environ["CSLM_HOME"], "calls.txt")
drift.STAGE, drift.FILE = "double", "metrics/double.json"
told = {"counts": drift.of_checkout("look", "sample", quiet), "called": calls.read_text().split()}
facts = preparation.prepare("first", "sample", {}, "", [], quiet)
stages = graph.read_graph(places.PROJECT / "dvc.yaml")
told["states"] = [run.run_stage(facts, stages["ingest"], "one", quiet)]
told["states"] += [run.run_stage(facts, stages["double"], None, quiet)]
print("TOLD" + json.dumps(told))
"""


def counted(seconds: np.ndarray[Any, Any], **texts: int) -> drift.Counts:
    """Counts of utterances of one source that last so long; hours and speakers are left as they are."""
    edges, rows = np.unique(np.floor(seconds / BIN) * BIN, return_counts=True)
    durations = {f"{edge:g}": int(n) for edge, n in zip(edges, rows, strict=True)}
    return {"speech": {"mine.en": {"hours": 1, "speakers": 4, "duration_s": durations}}, "texts": texts}


def compared(before: drift.Counts, now: drift.Counts) -> list[drift.Change]:
    return drift.changes(before, now, min_growth=10, min_drift=0.2)


@pytest.mark.parametrize("shift", [0.0, 1.5, 5.0])
def test_replaced_rows_are_compared_as_scipy_does(shift: float) -> None:
    rng = np.random.default_rng(1)
    old, new = rng.gamma(8, 2.0, 3000), shift + rng.gamma(8, 2.0, 2800)
    [change] = compared(counted(old), counted(new))
    exact = ks_2samp(np.floor(old / BIN), np.floor(new / BIN)).statistic
    assert (
        f"duration_s of mine.en: drift {exact:.2f} of all 2800 rows (0.20 is worth a training)" == change.told
    )
    assert (change.share >= 1) == (shift == 5.0), "0.02, 0.12 and 0.37"


def test_new_rows_are_not_hidden_by_those_of_before() -> None:
    rng = np.random.default_rng(2)
    old = rng.gamma(8, 0.4, 3000)
    alike = compared(counted(old), counted(np.append(old, rng.gamma(8, 0.4, 150))))
    assert alike[0].share < 1
    longer = 2.0 + rng.gamma(8, 0.4, 150)
    [other] = compared(counted(old), counted(np.append(old, longer)))
    exact = ks_2samp(np.floor(old / BIN), np.floor(longer / BIN)).statistic
    assert f"drift {exact:.2f} of 150 new rows" in other.told
    assert exact > 0.5 and other.share > 1
    assert ks_2samp(old, np.append(old, longer)).statistic < 0.05, "in the whole it would not be seen"


def test_a_few_rows_may_differ_by_chance() -> None:
    old = np.random.default_rng(3).gamma(8, 0.4, 3000)
    median = np.full(8, np.median(old))
    [change] = compared(counted(old), counted(np.append(old, median)))
    assert "of 8 new rows (0.58 is worth" in change.told, "1.63 sqrt(1 / 8 + 1 / 3000)"
    assert change.share < 1


def test_amounts_that_grow_shrink_or_are_new() -> None:
    before, now = counted(np.ones(9), dialogues=100, translations=40), counted(np.ones(9), dialogues=104)
    now["texts"]["translations"] = 30
    now["speech"]["spanish.es"] = {"hours": 0.5, "speakers": 2, "duration_s": {"2": 900}}
    told = [change.told for change in compared(before, now)]
    assert told[0] == "hours of spanish.es: 0 -> 0.5 (new)"
    assert told[2:] == [
        "translations: 40 -> 30 (-25.0 %, 10 % is worth a training)",
        "dialogues: 100 -> 104 (+4.0 %, 10 % is worth a training)",
    ]
    assert [change.share >= 1 for change in compared(before, now)] == [True, True, True, False]
    assert compared(before, before) == []


def test_to_look_at_the_data_is_no_work_that_a_run_does_again(tmp_path: Path) -> None:
    project = toy.make(tmp_path / "project")
    told = json.loads(toy.run(project, sys.executable, "-c", LOOK_AND_RUN).partition("TOLD")[2])
    assert told == {
        "counts": {"nested": {"value": 1.5}},
        "called": ["ingest", "double"],  # and no stage behind it
        "states": ["cached", "cached"],
    }
    assert toy.calls(project) == ["ingest", "double"], "not once more"
    branches = toy.run(project, "git", "branch", "--list", "--format=%(refname:short)", "runs/*").split()
    assert branches == ["runs/first"], "to look leaves none"
    assert not (project / "var" / "workspaces" / "look").exists()
