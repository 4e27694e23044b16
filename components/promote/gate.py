"""The gate before production: is a candidate worse than what is there, by more than tolerance and chance?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from components.evaluate.figures import interval_of, matches
from components.promote.items import Items
from components.stage import flatten
from cslm.evaluation.confidence import Interval, bootstrap, difference

RULES = Path(__file__).with_name("gate.yaml")
Verdict = Literal["better", "equal", "worse within tolerance", "worse within chance", "WORSE", "MISSING"]
REFUSED: tuple[Verdict, ...] = ("WORSE", "MISSING")
SEED = 0
UNKNOWN: Mapping[str, Items] = MappingProxyType({})


class Rule(BaseModel):
    """Direction of a figure, and what it may be worse by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    better: Literal["lower", "higher"]
    tolerance: float = Field(ge=0)


@dataclass(frozen=True)
class Check:
    """One figure of both versions."""

    name: str
    candidate: float | None
    production: float | None
    change: Interval | None
    """95 % interval of the candidate's gain; negative where it is worse. None if the figure has no interval."""
    verdict: Verdict
    paired: bool = False
    """The interval comes from the same items, one by one; else from the intervals of both versions."""


def load_rules(path: Path = RULES) -> dict[str, Rule]:
    """Read gate.yaml: pattern of names -> rule."""
    return TypeAdapter(dict[str, Rule]).validate_python(yaml.safe_load(path.read_text("utf-8")))


def incomparable(candidate: Mapping[str, Any], production: Mapping[str, Any]) -> str:
    """Why two evaluations cannot be compared; empty if they can."""
    ours, theirs = candidate.get("test_set"), production.get("test_set")
    if not ours or not theirs:
        return "it is not known which test items they were measured on (evaluated by an older version)"
    if ours == theirs:
        return ""
    parts, known = candidate.get("test_parts", {}), production.get("test_parts", {})
    other = sorted(name for name, digest in known.items() if parts.get(name) != digest)
    if known and not other:
        return ""  # a language was added to what production knows
    where = f" of {', '.join(other)}" if parts and other else ""
    return f"they were measured on different test items{where} ({ours[:12]} and {theirs[:12]})"


def compare(
    candidate: Mapping[str, Any],
    production: Mapping[str, Any],
    rules: Mapping[str, Rule],
    items: tuple[Mapping[str, Items], Mapping[str, Items]] = (UNKNOWN, UNKNOWN),
) -> list[Check]:
    """A check for every figure of production that a rule names; `items` of both, as far as they are known."""
    ours, theirs = flatten(candidate), flatten(production)
    return [
        _check(name, ours, theirs, rule, (items[0].get(name, {}), items[1].get(name, {})))
        for pattern, rule in rules.items()
        for name in theirs
        if matches(name, pattern) and isinstance(theirs[name], int | float)
    ]


def _check(
    name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], rule: Rule, items: tuple[Items, Items]
) -> Check:
    after, before = ours.get(name), theirs[name]
    if after is None:
        return Check(name, None, before, None, "MISSING")
    sign = 1 if rule.better == "higher" else -1
    gain = sign * (after - before)
    paired = _makes(items[0], after) and _makes(items[1], before) and _same(*items)
    found: Interval | None = None
    if paired:
        found = _paired(*items)
    elif (mine := interval_of(name, ours)) and (other := interval_of(name, theirs)):
        found = difference(before, other, after, mine)
    change = sorted(sign * bound for bound in found) if found else None
    return Check(name, after, before, change, _verdict(gain, rule.tolerance, change), paired)


def _makes(items: Items, rate: float) -> bool:
    """Whether these are all the items of a rate."""
    whole = sum(part for _, part in items.values())
    return whole > 0 and isclose(sum(part for part, _ in items.values()) / whole, rate, abs_tol=1e-9)


def _same(ours: Items, theirs: Items) -> bool:
    return ours.keys() == theirs.keys() and all(ours[name][1] == theirs[name][1] for name in ours)


def _paired(ours: Items, theirs: Items) -> Interval:
    """Paired bootstrap (Koehn 2004): items are drawn with what both versions made of them."""
    changes = [ours[name][0] - theirs[name][0] for name in ours]
    return bootstrap(changes, [whole for _, whole in ours.values()], SEED)


def _verdict(gain: float, tolerance: float, change: Interval | None) -> Verdict:
    if gain >= 0:
        return "better" if gain and (change is None or change[0] > 0) else "equal"
    if -gain <= tolerance:
        return "worse within tolerance"
    return "worse within chance" if change is not None and change[1] >= -tolerance else "WORSE"


def figures_alone(checks: Sequence[Check]) -> Iterator[str]:
    """Markdown, for a version that there is nothing to compare with."""
    yield "| test figure | candidate |"
    yield "|---|---|"
    for check in checks:
        yield f"| {check.name} | {_number(check.candidate)} |"


def table(checks: Sequence[Check]) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield "| test figure | candidate | production | change (95 %) | |"
    yield "|---|---|---|---|---|"
    for check in checks:
        change = f"{check.change[0] + 0.0:+.4g} to {check.change[1] + 0.0:+.4g}" if check.change else ""
        cells = [_number(check.candidate), _number(check.production), change, check.verdict]
        yield f"| {check.name} | {' | '.join(cells)} |"
    yield ""
    yield "Change: above zero is better, whatever the figure's direction."
    if alone := [check.name for check in checks if check.change and not check.paired]:
        yield (
            "Its interval is that of the same items, one by one; where items are not at hand, it is put "
            f"together from the intervals of both versions, which is wider: {', '.join(alone)}."
        )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
