"""Figures of several runs beside each other, and whether a difference is more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.ablations.variants import Claim
from components.evaluate.figures import interval_of
from components.stage import flatten
from cslm.evaluation.confidence import difference

SHOWN = {
    "asr.en.wer": "word errors, English",
    "asr.zh.cer": "character errors, Mandarin",
    "conversation.en.exact_match": "exact answers, English",
    "conversation.zh.exact_match": "exact answers, Mandarin",
    "cross_lingual.en_zh.exact_match": "exact answers, English to Mandarin",
    "cross_lingual.zh_en.exact_match": "exact answers, Mandarin to English",
    "tts.en.label_error": "misread sounds, English",
    "tts.zh.label_error": "misread sounds, Mandarin",
    "conversation.en.label_error": "missaid sounds in answers, English",
    "conversation.zh.label_error": "missaid sounds in answers, Mandarin",
    "first_unit.tokens": "tokens before the first unit of speech",
    "first_unit.seconds": "seconds before it, each on the machine's speed of its hour",
}
"""Test figures that are compared, and what they are called."""
HIGHER_IS_BETTER = "exact_match"


@dataclass(frozen=True)
class Figure:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


def figures_of(evaluation: Mapping[str, Any], chain: str) -> dict[str, Figure]:
    """Those of `SHOWN` that an evaluation has; `chain` is the one whose latency counts for the run."""
    flat = flatten(evaluation)
    figures = {}
    for name in SHOWN:
        source = name.replace("first_unit", f"latency.{chain}")
        value, interval = flat.get(source), interval_of(source, flat)
        if value is not None and interval is not None:
            figures[name] = Figure(value, *interval)
    return figures


def change(name: str, before: Figure, after: Figure) -> int:
    """1 if `after` is better, -1 if it is worse, 0 if the 95 % interval of the difference holds zero."""
    low, high = difference(before.value, (before.low, before.high), after.value, (after.low, after.high))
    sign = 1 if low > 0 else -1 if high < 0 else 0
    return sign if name.endswith(HIGHER_IS_BETTER) else -sign


def table(measured: Mapping[str, Mapping[str, Figure]], titles: Mapping[str, str]) -> Iterator[str]:
    """Lines of a Markdown table, a row a figure; `+` and `-` mark what is better or worse than the first."""
    first, *others = measured
    yield f"| test split | {' | '.join(titles[name] for name in measured)} |"
    yield "|---" * (1 + len(measured)) + "|"
    for figure, title in SHOWN.items():
        base = measured[first].get(figure)
        cells = [_cell(figure, base)]
        for name in others:
            other = measured[name].get(figure)
            sign = change(figure, base, other) if base and other else 0
            cells.append(_cell(figure, other) + {1: " +", -1: " -", 0: ""}[sign])
        yield f"| {title} | {' | '.join(cells)} |"
    yield ""
    yield "In brackets: 95 % intervals. + better, - worse than the first column, by more than chance (95 %)."


def _cell(name: str, figure: Figure | None) -> str:
    if figure is None:
        return "not measured"
    if name.startswith("first_unit"):
        return f"{figure.value:.3g} ({figure.low:.3g} to {figure.high:.3g})"
    return f"{100 * figure.value:.1f} % ({100 * figure.low:.1f} to {100 * figure.high:.1f})"


def claims(
    measured: Mapping[str, Mapping[str, Figure]], titles: Mapping[str, str], said: Sequence[Claim]
) -> Iterator[str]:
    """A line for each claim: shown, contradicted, mixed, or not separated from chance."""
    first = next(iter(measured))
    for claim in said:
        pairs = [(name, measured[first].get(name), measured[claim.variant].get(name)) for name in claim.figures]
        signs = [change(name, before, after) for name, before, after in pairs if before and after]
        worse, better = signs.count(-1), signs.count(1)
        verdict = {
            (True, False): "SHOWN",
            (False, True): "CONTRADICTED",
            (True, True): "MIXED",
            (False, False): "NOT SEPARATED",
        }[worse > 0, better > 0]
        told = f"{worse} of {len(claim.figures)} figures worse, {better} better, with {titles[claim.variant]!r}"
        yield f"- {claim.says}: **{verdict if signs else 'NOT MEASURED'}** ({told})"
