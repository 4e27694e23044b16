"""dvc.yaml names all code that a stage runs: a change of any of it runs the stage again."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]


def imports(path: Path) -> set[Path]:
    """Files of this project that a file imports, packages by their `__init__.py`."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            file = ROOT.joinpath(*name.split("."))
            found |= {p for p in (file.with_suffix(".py"), file / "__init__.py") if p.exists()}
    return found


def code_of(component: str) -> set[Path]:
    """All files of this project that run in a component, by following its imports."""
    todo = set((ROOT / "components" / component).glob("*.py"))
    seen: set[Path] = set()
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo |= imports(path)
    return {path.relative_to(ROOT) for path in seen if path.stat().st_size}


@pytest.mark.parametrize("name", sorted(STAGES))
def test_all_code_of_a_stage_is_among_its_deps(name: str) -> None:
    stage = STAGES[name].get("do", STAGES[name])
    deps = [Path(dep) for dep in stage["deps"] if not dep.startswith("$")]
    missing = [
        str(path) for path in code_of(name) if not any(path == dep or dep in path.parents for dep in deps)
    ]
    assert sorted(missing) == []


@pytest.mark.parametrize("name", sorted(STAGES))
def test_deps_that_are_code_exist(name: str) -> None:
    stage = STAGES[name].get("do", STAGES[name])
    assert [
        dep for dep in stage["deps"] if dep.startswith(("cslm", "components")) and not (ROOT / dep).exists()
    ] == []
