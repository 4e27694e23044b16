"""The rules of the gate: direction, tolerance and chance of each figure."""

from __future__ import annotations

import pytest

from components.evaluate.figures import LOWER_IS_BETTER, STRICT
from components.promote.gate import Rule, compare, load_rules
from cslm.evaluation.confidence import wilson


@pytest.mark.parametrize(
    ("name", "candidate", "interval", "production", "theirs", "expected"),
    [
        ("asr.en.wer", 0.10, [0.08, 0.12], 0.05, [0.04, 0.06], "WORSE"),  # more errors are worse
        ("asr.en.wer", 0.02, [0.01, 0.03], 0.05, [0.04, 0.06], "better"),
        ("asr.en.wer", 0.06, [0.04, 0.08], 0.05, [0.04, 0.06], "worse within chance"),
        ("asr.en.wer", 0.054, [0.053, 0.055], 0.05, [0.049, 0.051], "worse within tolerance"),
        (
            "conversation.en.exact_match",
            0.5,
            wilson(77, 154),
            0.9,
            wilson(139, 154),
            "WORSE",
        ),  # fewer right are
        ("conversation.en.exact_match", 0.9, wilson(139, 154), 0.5, wilson(77, 154), "better"),
        ("conversation.en.exact_match", 0.9, wilson(139, 154), 0.9, wilson(139, 154), "equal"),
        ("mt.en_zh.bleu", 70.0, None, 80.0, None, "WORSE"),  # without intervals, the tolerance decides
        ("mt.en_zh.bleu", 79.0, None, 80.0, None, "worse within tolerance"),
    ],
)
def test_each_figure_is_compared_in_its_direction(
    name: str,
    candidate: float,
    interval: list[float] | None,
    production: float,
    theirs: list[float] | None,
    expected: str,
) -> None:
    parent, _, metric = name.rpartition(".")
    ours = {parent: {metric: candidate} | ({"ci95": interval} if interval else {})}
    other = {parent: {metric: production} | ({"ci95": theirs} if theirs else {})}
    [check] = compare(ours, other, load_rules())
    assert check.verdict == expected


def test_the_gate_knows_the_directions_that_the_report_shows() -> None:
    lower = {name for name, rule in load_rules().items() if rule.better == "lower"}
    assert lower == {name for name in load_rules() if name.rsplit(".", 1)[-1] in (*LOWER_IS_BETTER, *STRICT)}


def test_a_figure_that_the_candidate_lacks_is_refused() -> None:
    [check] = compare({}, {"asr": {"en": {"wer": 0.1}}}, {"asr.*.wer": Rule(better="lower", tolerance=0.1)})
    assert check.verdict == "MISSING"
