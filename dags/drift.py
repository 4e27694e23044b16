"""How the data of this checkout differs from what a version was trained on, by what `validate` counted of both.

Amounts (hours and speakers of each source and language, dialogues, translations) may have grown or shrunk, and
durations, levels and speech rates may have drifted: Kolmogorov and Smirnov's distance, the largest difference
of two cumulative distributions (0: the same, 1: no overlap). If rows were only added, it is the new ones
against those of before, which would hide them in the whole; else all against all.

A version's counts are in git, on the branch of its run. Those of the checkout are made by `ingest` and
`validate` through DVC, so that a training that follows finds both in the cache.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from dags import continuation, graph, places, preparation, run

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

STAGE, FILE = "validate", "metrics/counts.json"
CRITICAL = 1.63
"""Of the two-sample test at 1 %: samples of n and m rows of one distribution seldom differ by more than
1.63 sqrt((n + m) / (n m)), as in cslm.validation.drift."""

Counts = dict[str, Any]
"""What components/validate/counts.py describes."""
Histogram = dict[str, int]
"""Lower edge of a bin -> rows in it."""


@dataclass(frozen=True)
class Change:
    """One figure of the data that is not what it was."""

    told: str
    share: float
    """Of what is worth a training: from 1 on it is."""


def of_version(version: ModelVersion) -> Counts | None:
    """Counts of what a version was trained on; None if its run is not here, or older than counts are."""
    try:
        return dict(json.loads(continuation.file_of_run(version, FILE)))
    except continuation.CannotContinue:
        return None


def of_checkout(name: str, profile: str, log: run.Log) -> Counts:
    """Counts of the checkout's corpora; the stages work beside Airflow, whatever CSLM_RUNNER says.

    Raises:
        run.RunFailed: the data cannot be used, in the words of the stage that says so.
    """
    commit, params = preparation.checked_commit(name, profile, {}, "")
    stages = graph.read_graph(places.PROJECT / "dvc.yaml")
    wanted = [stage for stage in stages.values() if stage.name in (STAGE, *stages[STAGE].upstream)]
    addresses = [stage.address(item) for stage in wanted for item in graph.items(stage, params) or [None]]
    return dict(json.loads(run.measure(name, commit, addresses, FILE, log)))


def changes(before: Counts, now: Counts, min_growth: float, min_drift: float) -> list[Change]:
    """All that has changed, the most important first; `min_growth` (%) and `min_drift` are worth a training."""
    found = [*_grown(before, now, min_growth), *_drifted(before["speech"], now["speech"], min_drift)]
    return sorted(found, key=lambda change: -change.share)


def _grown(before: Counts, now: Counts, enough: float) -> Iterator[Change]:
    old, new = _amounts(before), _amounts(now)
    for name in sorted(old.keys() | new.keys()):
        was, is_ = old.get(name, 0), new.get(name, 0)
        if was != is_:
            growth = 100 * (is_ - was) / was if was else math.inf
            told = f"{growth:+.1f} %, {enough:g} % is worth a training" if was else "new"
            yield Change(f"{name}: {was:.4g} -> {is_:.4g} ({told})", abs(growth) / enough)


def _amounts(counts: Counts) -> dict[str, float]:
    speech = {
        f"{amount} of {group}": float(figures[amount])
        for group, figures in counts["speech"].items()
        for amount in ("hours", "speakers")
    }
    return speech | counts["texts"]


def _drifted(before: Counts, now: Counts, min_drift: float) -> Iterator[Change]:
    for group in sorted(before.keys() & now.keys()):
        for statistic, old in before[group].items():
            new = now[group].get(statistic)
            if not isinstance(old, dict) or not new or old == new:
                continue
            added = {edge: new.get(edge, 0) - old.get(edge, 0) for edge in old | new}
            only_added = min(added.values()) >= 0
            rows = added if only_added else new
            n, m = sum(old.values()), sum(rows.values())
            enough = max(min_drift, CRITICAL * math.sqrt((n + m) / (n * m)))
            distance = _distance(old, rows)
            who = f"{m} new rows" if only_added else f"all {m} rows"
            told = f"{statistic} of {group}: drift {distance:.2f} of {who} ({enough:.2f} is worth a training)"
            yield Change(told, distance / enough)


def _distance(a: Histogram, b: Histogram) -> float:
    """Kolmogorov and Smirnov's, of rows that are known to the width of a bin."""
    n, m = sum(a.values()), sum(b.values())
    edges = sorted(a | b, key=float)
    return max(map(abs, accumulate(a.get(edge, 0) / n - b.get(edge, 0) / m for edge in edges)))
