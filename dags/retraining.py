"""Whether to train again: from the version of the data, its drift, and the age of what is in production."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dags import datasets, drift, parameters, places, run, tracking

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

TOLD = 3
"""So many changes of the data are named."""


@dataclass(frozen=True)
class Limits:
    """What is worth a training: age of the production version, or change of the data (dags/drift.py)."""

    max_age_days: float
    min_growth: float
    """In per cent."""
    min_drift: float


@dataclass(frozen=True)
class Decision:
    """To train or not, and why; a person reads it in the task's log and as the task's result."""

    train: bool
    why: str


def data_version(profile: str) -> dict[str, str | None]:
    """Digest of each corpus of a profile in this checkout, as DVC takes it; None if the corpus is not here.

    Those without a `.dvc` file of their own (absolute paths, folders in git) are looked at themselves.

    Raises:
        run.RunFailed: DVC cannot read them.
    """
    project = places.PROJECT
    params = parameters.merged(project, profile, {}) or parameters.read(project / "params.yaml")

    def read(path: str) -> str | None:
        return (project / path).read_text("utf-8") if (project / path).exists() else None

    known = {dataset.name: dataset.digest for dataset in datasets.tracked(params, read)}
    paths = {name: str(corpus["path"]) for name, corpus in params["corpora"].items() if name not in known}
    return known | _digests(paths)


def _digests(paths: dict[str, str]) -> dict[str, str | None]:
    """Digest of what is at each path, by name, as it gets into dvc.lock."""
    if not paths:
        return {}
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("dvc_digest.py")), *paths.values()],
        cwd=places.PROJECT,
        env=os.environ | places.dvc_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise run.RunFailed(f"DVC cannot read {', '.join(paths.values())}:\n{ended.stderr.strip()}")
    found = json.loads(ended.stdout)
    return {name: found[path] for name, path in paths.items()}


def decide(
    model: str, profile: str, limits: Limits, now: datetime.datetime, count: Callable[[], drift.Counts]
) -> Decision:
    """Train if the data is not that of the production version and differs enough, or if that version is old.

    `count` looks at the data itself; it is asked only where digests and age do not decide. Where a candidate
    was trained on this data since, another training would differ by its seed alone: it waits until that one is
    promoted, or old. That holds of a candidate that was refused or taken out, too.
    """
    production = tracking.registered(model, "production")
    if production is None:
        told = f"no version of {model} is in production"
        return Decision(False, f"{told}: train and promote a first one by hand (cslm_train)")
    found = data_version(profile)
    number, age, limit = production.version, _age_days(production, now), limits.max_age_days
    unseen = _unseen(production, found)
    if not unseen and age <= limit:
        told = f"the data is that of version {number}, which is {age:.1f} days old"
        if away := [name for name, digest in found.items() if digest is None]:
            told = f"{told}, but for what is not here to be looked at: {', '.join(away)}"
        return Decision(False, f"{told} (from {limit:g} days on it is trained again all the same)")
    candidate = tracking.registered(model, "candidate")
    newer = candidate is not None and int(candidate.version) > int(number)
    if newer and not _unseen(candidate, found) and _age_days(candidate, now) <= limit:
        return Decision(
            False,
            f"version {candidate.version} was trained on this data already, and {_state(candidate, limit)}",
        )
    if not unseen:
        return Decision(
            True, f"version {number} is {age:.0f} days old, more than {limit:g}; the data is the same"
        )
    told = f"data that version {number} has not seen: {', '.join(unseen)}"
    if age > limit:
        return Decision(True, f"{told}; it is {age:.0f} days old, more than {limit:g}")
    if (before := drift.of_version(production)) is None:
        return Decision(True, f"{told}; how much it differs is not known, as its run left no {drift.FILE} here")
    changes = drift.changes(before, count(), limits.min_growth, limits.min_drift)
    largest = "; ".join(change.told for change in changes[:TOLD]) or "nothing that is counted has changed"
    if changes and changes[0].share >= 1:
        return Decision(True, f"{told}; {largest}")
    return Decision(
        False, f"{told}, but that is not worth a training before it is {limit:g} days old: {largest}"
    )


def _unseen(version: ModelVersion, found: dict[str, str | None]) -> list[str]:
    """What is not as it was when the version was trained; corpora that are not here cannot be compared."""
    known = dict(part.split("=", 1) for part in version.tags.get("data_version", "").split(", ") if part)
    changed = [
        f"{name} {known.get(name, 'new')[:8]} -> {digest[:8]}"
        for name, digest in found.items()
        if digest and digest != known.get(name)
    ]
    return changed + [f"{name} {known[name][:8]} -> gone" for name in sorted(known.keys() - found.keys())]


def _state(candidate: ModelVersion, limit: float) -> str:
    """What has become of a candidate that is not in production."""
    by_hand = f"the same data is tried again when it is {limit:g} days old, or by hand (cslm_train)"
    if because := candidate.tags.get("rolled_back_because"):
        return f"was taken out of production ({because}); {by_hand}"
    if refused := candidate.tags.get("refused"):
        return f"was refused ({refused}); {by_hand}"
    return "waits to be promoted"


def _age_days(version: ModelVersion, now: datetime.datetime) -> float:
    made = datetime.datetime.fromtimestamp(version.creation_timestamp / 1000, datetime.UTC)
    return (now - made).total_seconds() / 86400
