"""The rules of the gate: direction, tolerance and chance of each figure."""

from __future__ import annotations

import copy
from functools import reduce
from typing import Any

import pytest

from components.evaluate.figures import LOWER_IS_BETTER, STRICT
from components.promote.gate import REFUSED, Rule, compare, load_rules
from cslm.evaluation.confidence import Interval, wilson


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


SOUND: dict[str, Any] = {
    "tts": {"en": {"wer": 0.25, "ci95": [0.14, 0.37]}, "zh": {"cer": 0.3, "ci95": [0.2, 0.4]}},
    "conversation": {"en": {"speech_wer": 0.2, "speech_ci95": [0.06, 0.36]}},
    "cross_lingual": {"en_zh": {"speech_cer": 0.3, "speech_ci95": [0.18, 0.42]}},
    "dnsmos": {"tts": {"en": {"mean": 2.89, "ci95": [2.78, 3.0]}}},
    "speaker_similarity": {"tts": {"zh": {"mean": 0.78, "ci95": [0.75, 0.81]}}},
    "alignment": {"similarity": 0.84},
}
"""Figures of 14 recordings a language and 7 answers a pair, as those of the sample demo are."""


@pytest.mark.parametrize(
    ("name", "a_little_worse", "broken"),
    [
        ("tts.en.wer", (0.36, [0.25, 0.48]), (0.8, [0.7, 0.9])),
        ("tts.zh.cer", (0.41, [0.3, 0.5]), (0.8, [0.7, 0.9])),
        ("conversation.en.speech_wer", (0.34, [0.2, 0.5]), (0.8, [0.65, 0.95])),
        ("cross_lingual.en_zh.speech_cer", (0.42, [0.3, 0.55]), (0.8, [0.65, 0.95])),
        ("dnsmos.tts.en.mean", (2.75, [2.64, 2.86]), (1.9, [1.8, 2.0])),
        ("speaker_similarity.tts.zh.mean", (0.74, [0.71, 0.77]), (0.5, [0.46, 0.54])),
        ("alignment.similarity", (0.81, None), (0.6, None)),
    ],
)
def test_a_version_whose_sound_broke_is_refused_and_one_that_differs_by_few_items_is_not(
    name: str, a_little_worse: tuple[float, Interval | None], broken: tuple[float, Interval | None]
) -> None:
    assert {check.verdict for check in compare(SOUND, SOUND, load_rules())} == {"equal"}
    for (value, interval), refused in ((a_little_worse, False), (broken, True)):
        worse = copy.deepcopy(SOUND)
        *parts, metric = name.split(".")
        place: dict[str, Any] = reduce(lambda tree, part: tree[part], parts, worse)
        place[metric] = value
        if interval:
            place["speech_ci95" if metric.startswith("speech") else "ci95"] = interval
        checks = {check.name: check.verdict for check in compare(worse, SOUND, load_rules())}
        assert [each for each, verdict in checks.items() if verdict in REFUSED] == ([name] if refused else [])


def test_a_version_whose_sound_nobody_judged_is_refused() -> None:
    unheard = {"alignment": {"similarity": 0.84}}
    missing = {check.name for check in compare(unheard, SOUND, load_rules()) if check.verdict == "MISSING"}
    assert {"tts.en.wer", "conversation.en.speech_wer", "dnsmos.tts.en.mean"} <= missing
