"""The graph that is scheduled is DVC's own, and importing the DAG pulls in none of the science."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dags import graph, parameters
from tests.dags import toy

CHECKOUT = toy.CHECKOUT
HEAVY = {"torch", "cslm", "components", "transformers", "dvc", "mlflow"}

DVC_INDEX = """
import json, sys
from dvc.repo import Repo
index = Repo(uninitialized=True).index
print(json.dumps({s.addressing: sorted(a.addressing for a in index.graph.successors(s)) for s in index.stages}))
"""

DAG_FACTS = """
import json, sys
from dags.cslm_train import cslm_train as dag
print("FACTS" + json.dumps({
    "modules": sorted(name for name in sys.modules if "." not in name),
    "upstream": {t.task_id: sorted(t.upstream_task_ids) for t in dag.tasks},
    "mapped": sorted(t.task_id for t in dag.tasks if t.is_mapped),
    "profiles": dag.params.get_param("profile").schema["enum"],
}))
"""


def _copy_of_graph(target: Path) -> Path:
    """dvc.yaml and params.yaml alone, as a project of their own for DVC."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(CHECKOUT / name, target / name)
    toy.run(target, "git", "init", "--quiet")
    toy.run(target, sys.executable, "-m", "dvc", "init", "--quiet")
    return target


@pytest.fixture(scope="module")
def dag() -> dict[str, object]:
    """What a fresh process knows after importing the DAG file."""
    import os

    with_airflow = toy.environment(CHECKOUT) | {
        "PYTHONPATH": str(CHECKOUT),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    import tempfile

    with tempfile.TemporaryDirectory() as home:
        result = subprocess.run(
            [sys.executable, "-c", DAG_FACTS],
            env=os.environ | with_airflow | {"AIRFLOW_HOME": home, "CSLM_HOME": home},
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout.partition("FACTS")[2]))


def test_importing_the_dag_imports_no_science(dag: dict[str, list[str]]) -> None:
    assert HEAVY & set(dag["modules"]) == set()


def test_edges_are_those_of_dvc(tmp_path: Path) -> None:
    theirs = json.loads(toy.run(_copy_of_graph(tmp_path), sys.executable, "-c", DVC_INDEX))
    edges = {(stage.split("@")[0], up.split("@")[0]) for stage, ups in theirs.items() for up in ups}
    stages = graph.read_graph(CHECKOUT / "dvc.yaml")
    assert {(stage.name, up) for stage in stages.values() for up in stage.upstream} == edges
    params = yaml.safe_load((CHECKOUT / "params.yaml").read_text())
    assert set(graph.addresses(stages, params)) == set(theirs)


def test_dag_has_a_task_per_stage_in_dvcs_order(dag: dict[str, dict[str, list[str]]]) -> None:
    stages = graph.read_graph(CHECKOUT / "dvc.yaml")
    upstream = dag["upstream"]
    added = {"prepare", "register", "record"} | {f"{s.name}_items" for s in stages.values() if s.foreach}
    assert set(upstream) == set(stages) | added
    for stage in stages.values():
        assert set(upstream[stage.name]) - added == set(stage.upstream)
    assert dag["mapped"] == sorted(s.name for s in stages.values() if s.foreach)
    assert upstream["record"] and "register" in upstream["record"]
    ends = set(stages) - {up for s in stages.values() for up in s.upstream}
    assert ends <= set(upstream["register"])


def test_airflow_page_offers_every_profile(dag: dict[str, list[str]]) -> None:
    assert set(dag["profiles"]) == {"sample"} | {path.stem for path in (CHECKOUT / "profiles").glob("*.yaml")}


@pytest.mark.parametrize("profile", parameters.profiles(CHECKOUT))
def test_every_profile_parses(profile: str, tmp_path: Path) -> None:
    params = parameters.merged(CHECKOUT, profile, {})
    text = (CHECKOUT / "params.yaml").read_text() if params is None else yaml.safe_dump(params)
    (tmp_path / "params.yaml").write_text(text)
    python = CHECKOUT / ".venv" / "components" / "bin" / "python"
    if not python.exists():
        pytest.skip("the components' environment is not there: make setup")
    result = subprocess.run(
        [python, "-m", "components.settings", tmp_path / "params.yaml"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_every_profile_makes_a_graph_that_dvc_reads(tmp_path: Path) -> None:
    project = _copy_of_graph(tmp_path)
    stages = graph.read_graph(CHECKOUT / "dvc.yaml")
    for profile in parameters.profiles(CHECKOUT):
        params = parameters.merged(CHECKOUT, profile, {}) or parameters.read(CHECKOUT / "params.yaml")
        (project / "params.yaml").write_text(yaml.safe_dump(params))
        rewritten = graph.without_null_deps(CHECKOUT / "dvc.yaml", params)
        (project / "dvc.yaml").write_bytes(rewritten or (CHECKOUT / "dvc.yaml").read_bytes())
        theirs = json.loads(toy.run(project, sys.executable, "-c", DVC_INDEX))
        assert set(graph.addresses(stages, params)) == set(theirs), profile


def test_cycle_is_named(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  a: {cmd: a, deps: [y], outs: [x]}\n  b: {cmd: b, deps: [x], outs: [y]}\n"
    )
    with pytest.raises(graph.BadGraph, match="wait for each other"):
        graph.read_graph(tmp_path / "dvc.yaml")


@pytest.mark.parametrize(
    ("output", "dep", "linked"),
    [
        ("work/a", "work/a", True),
        ("work/a", "work", True),
        ("work/a", "work/a/b", True),
        ("work/a", "work/ab", False),
    ],
)
def test_paths_link_stages_by_whole_names(tmp_path: Path, output: str, dep: str, linked: bool) -> None:
    (tmp_path / "dvc.yaml").write_text(
        f"stages:\n  b: {{cmd: b, deps: [{dep}], outs: [end]}}\n  a: {{cmd: a, outs: [{output}]}}\n"
    )
    stages = graph.read_graph(tmp_path / "dvc.yaml")
    assert stages["b"].upstream == (("a",) if linked else ())
    assert not linked or list(stages) == ["a", "b"]


def test_overlay_merges_mappings_and_replaces_the_rest() -> None:
    base = {
        "a": {"x": 1, "y": [1, 2]},
        "corpora": {"one": {"path": "p"}, "two": {"path": "q"}},
        "b": {"checkpoint": "m"},
    }
    overlay = {"a": {"y": [3]}, "corpora": {"one": None, "three": {"path": "r"}}, "b": {"checkpoint": None}}
    assert parameters.overlaid(base, overlay) == {
        "a": {"x": 1, "y": [3]},
        "corpora": {"two": {"path": "q"}, "three": {"path": "r"}},
        "b": {"checkpoint": None},
    }
    assert base["a"] == {"x": 1, "y": [1, 2]}
