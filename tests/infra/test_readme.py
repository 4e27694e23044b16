"""What the documents tell people to type and to open is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z][a-z-]+)", _code(path))) <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_components_exist_and_have_the_options_that_are_named(path: Path) -> None:
    for line in _code(path).splitlines():
        for name, rest in re.findall(r"python -m components\.(\w+)(.*)", line):
            source = (ROOT / "components" / name / "__main__.py").read_text("utf-8")
            for option in set(re.findall(r"--([a-z]+)", rest)) - {"help"}:
                assert re.search(rf"\b{option}\b: ", source), f"{path.name}: {name} has no --{option}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_and_paths_exist(path: Path) -> None:
    text = path.read_text("utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)", text) + re.findall(r'<img [^>]*src="([^"]+)"', text):
        assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_parameters_that_the_readme_names_exist() -> None:
    params = (ROOT / "components" / "settings.py").read_text("utf-8")
    for name in re.findall(r"SET='[a-z_]+\.([a-z_]+)=", _code(ROOT / "README.md")):
        assert re.search(rf"\b{name}: ", params)


def test_variables_of_the_environment_are_documented() -> None:
    """All that a user may set; what tells a stage of its run is set by the run itself."""
    own = {"CSLM_RUN_ID", "CSLM_GIT_COMMIT", "CSLM_JOB", "CSLM_AIRFLOW_RUN", "CSLM_DATA_VERSION", "CSLM_FORCED"}
    own |= {"CSLM_GRANTED_GPUS"}
    sources = [path for name in ("dags", "components", "infra", "cslm") for path in (ROOT / name).rglob("*.py")]
    read = {name for path in sources for name in re.findall(r"\bCSLM_[A-Z_]+\b", path.read_text("utf-8"))}
    assert read - own == set(
        re.findall(r"`(CSLM_[A-Z_]+)`", (ROOT / "docs" / "operators.md").read_text("utf-8"))
    )


def _code(path: Path) -> str:
    """All code of a document: fenced blocks and code spans."""
    text = path.read_text("utf-8")
    return "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text))
