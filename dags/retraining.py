"""Whether to train again: from the version of the data, and the age of what is in production."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dags import datasets, parameters, places, tracking

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Decision:
    """To train or not, and why; a person reads it in the task's log and as the task's result."""

    train: bool
    why: str


def data_version(profile: str) -> dict[str, str | None]:
    """Digest of each corpus of a profile, as DVC tracks it in this checkout; None if it does not."""
    project = places.PROJECT
    params = parameters.merged(project, profile, {}) or parameters.read(project / "params.yaml")

    def read(path: str) -> str | None:
        return (project / path).read_text("utf-8") if (project / path).exists() else None

    known = {dataset.name: dataset.digest for dataset in datasets.tracked(params, read)}
    return {name: known.get(name) for name in params["corpora"]}


def decide(model: str, profile: str, max_age_days: float, now: datetime.datetime) -> Decision:
    """Train if the data is not that of the production version, or if that version is old.

    A candidate that was trained on this data since waits for a person: to train again would change nothing.
    """
    production = tracking.registered(model, "production")
    if production is None:
        told = f"no version of {model} is in production"
        return Decision(False, f"{told}: train and promote a first one by hand (cslm_train)")
    found = data_version(profile)
    unseen, age = _unseen(production, found), _age_days(production, now)
    if not unseen and age <= max_age_days:
        told = f"the data is that of version {production.version}, which is {age:.1f} days old"
        return Decision(False, f"{told} (from {max_age_days:g} days on it is trained again all the same)")
    candidate = tracking.registered(model, "candidate")
    newer = candidate is not None and int(candidate.version) > int(production.version)
    if newer and not _unseen(candidate, found) and _age_days(candidate, now) <= max_age_days:
        return Decision(
            False, f"version {candidate.version} was trained on this data already, and waits to be promoted"
        )
    if unseen:
        return Decision(True, f"data that version {production.version} has not seen: {', '.join(unseen)}")
    told = f"version {production.version} is {age:.0f} days old, more than {max_age_days:g}"
    return Decision(True, f"{told}; the data is the same")


def _unseen(version: ModelVersion, found: dict[str, str | None]) -> list[str]:
    """What is not as it was when the version was trained; corpora without a digest cannot be compared."""
    known = dict(part.split("=", 1) for part in version.tags.get("data_version", "").split(", ") if part)
    changed = [
        f"{name} {known.get(name, 'new')[:8]} -> {digest[:8]}"
        for name, digest in found.items()
        if digest and digest != known.get(name)
    ]
    return changed + [f"{name} {known[name][:8]} -> gone" for name in sorted(known.keys() - found.keys())]


def _age_days(version: ModelVersion, now: datetime.datetime) -> float:
    made = datetime.datetime.fromtimestamp(version.creation_timestamp / 1000, datetime.UTC)
    return (now - made).total_seconds() / 86400
