"""The graph of `dvc.yaml`, read with nothing but a YAML parser: cheap enough for every parse of a DAG file.

A stage depends on another if one of its `deps` lies in, contains or is one of the other's outputs: DVC's
own rule, and tests/dags/test_graph.py compares the two. A `foreach` stage keeps one row here; its items
are known only when the parameters of a run are (`items`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

INTERPOLATION = re.compile(r"\$\{([^}]+)\}")
OUTPUTS = ("outs", "metrics", "plots")


class BadGraph(ValueError):
    """dvc.yaml or the parameters cannot be scheduled; the message says what and where."""


@dataclass(frozen=True)
class Stage:
    """One row of dvc.yaml. Paths are as written, so they may hold `${...}`."""

    name: str
    description: str
    deps: tuple[str, ...]
    outputs: tuple[str, ...]
    metrics: tuple[str, ...]
    foreach: str | tuple[str, ...] | None
    """`${corpora}` (a key of the parameters), a literal list, or None for a single stage."""
    meta: dict[str, Any] = field(hash=False)
    upstream: tuple[str, ...] = ()

    def address(self, item: str | None) -> str:
        """DVC's name of the stage, or of one of its items: `tokenize@en`."""
        return self.name if item is None else f"{self.name}@{item}"


def read_graph(path: Path) -> dict[str, Stage]:
    """Stages by name, each after all that it depends on.

    Raises:
        BadGraph: the file is missing, is not YAML, or its stages form a cycle.
    """
    try:
        rows = yaml.safe_load(path.read_text("utf-8"))["stages"]
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise BadGraph(f"{path}: no stages can be read from it: {error!r}") from error
    stages = {name: _stage(name, row) for name, row in rows.items()}
    linked = {
        name: Stage(
            **{
                **vars(stage),
                "upstream": tuple(
                    other.name for other in stages.values() if name != other.name and _feeds(other, stage)
                ),
            }
        )
        for name, stage in stages.items()
    }
    return _sorted(linked, path)


def items(stage: Stage, params: dict[str, Any]) -> list[str] | None:
    """Items of a `foreach` stage under these parameters; None for a single stage."""
    if stage.foreach is None:
        return None
    if not isinstance(stage.foreach, str):
        return list(stage.foreach)
    match = INTERPOLATION.fullmatch(stage.foreach)
    value: Any = params
    for key in match.group(1).split(".") if match else [stage.foreach]:
        if not isinstance(value, dict) or key not in value:
            raise BadGraph(f"dvc.yaml: stage {stage.name} has an item for each {stage.foreach}: no such key")
        value = value[key]
    return [str(item) for item in value]


def addresses(graph: dict[str, Stage], params: dict[str, Any]) -> list[str]:
    """DVC's names of all stages of a run, in an order in which they can run."""
    return [
        stage.address(item)
        for stage in graph.values()
        for item in (items(stage, params) if stage.foreach is not None else [None]) or []
    ]


def without_null_deps(path: Path, params: dict[str, Any]) -> bytes | None:
    """dvc.yaml without the dependencies that these parameters set to null; None if there are none.

    `"${train_tokenizer.checkpoint}"` is a dependency when there is a checkpoint; DVC has no way to say that,
    and crashes on a null.
    """
    content = yaml.safe_load(path.read_text("utf-8"))
    dropped = False
    for row in content["stages"].values():
        body = row.get("do", row)
        kept = [dep for dep in body.get("deps", []) if not _is_null(dep, params)]
        dropped |= len(kept) < len(body.get("deps", []))
        if "deps" in body:
            body["deps"] = kept
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode() if dropped else None


def _is_null(dep: str | dict[str, Any], params: dict[str, Any]) -> bool:
    match = INTERPOLATION.fullmatch(dep) if isinstance(dep, str) else None
    if match is None or match.group(1).split(".")[0] in ("item", "key"):
        return False
    value: Any = params
    for key in match.group(1).split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value is None


def _stage(name: str, row: dict[str, Any]) -> Stage:
    body = row.get("do", row)
    foreach = row.get("foreach")
    outputs = tuple(path for kind in OUTPUTS for path in _paths(body.get(kind, [])))
    return Stage(
        name=name,
        description=body.get("desc", name),
        deps=tuple(_paths(body.get("deps", []))),
        outputs=outputs,
        metrics=tuple(_paths(body.get("metrics", []))),
        foreach=foreach if foreach is None or isinstance(foreach, str) else tuple(map(str, foreach)),
        meta=body.get("meta", {}),
    )


def _paths(entries: list[str | dict[str, Any]]) -> list[str]:
    return [path for entry in entries for path in ([entry] if isinstance(entry, str) else entry)]


def _feeds(stage: Stage, reader: Stage) -> bool:
    return any(_overlap(output, dep) for output in stage.outputs for dep in reader.deps)


def _overlap(output: str, dep: str) -> bool:
    """Whether one path is the other or lies in it; `${item}` in a part of a path stands for any name."""
    return all(
        a == b or INTERPOLATION.search(a) is not None
        for a, b in zip(PurePosixPath(output).parts, PurePosixPath(dep).parts, strict=False)
    )


def _sorted(stages: dict[str, Stage], path: Path) -> dict[str, Stage]:
    done: dict[str, Stage] = {}
    while len(done) < len(stages):
        ready = [s for s in stages.values() if s.name not in done and set(s.upstream) <= set(done)]
        if not ready:
            raise BadGraph(f"{path}: these stages wait for each other: {', '.join(set(stages) - set(done))}")
        done |= {stage.name: stage for stage in ready}
    return done
