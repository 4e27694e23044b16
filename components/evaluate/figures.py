"""The paper's figures and the targets of the sample profile, by the names of `metrics/evaluation.json`.

Paper: "Efficient Training for Cross-lingual Speech Language Models", arXiv 2604.11096. Its corpora are
others and far larger: the column is a landmark, not a race on equal terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.stage import flatten

PAPER: dict[str, float] = {
    "asr.en.wer": 0.098,
    "asr.zh.cer": 0.090,
    "cross_lingual.*.off_target": 0.01,
    "alignment.similarity": 0.725,
    "latency.speedup_over_full_chain": 2.93,
    "latency.audio_speedup": 2.93,
    "tts.en.wer": 0.038,
}
TARGETS: dict[str, float] = {
    "asr.en.wer": 0.05,
    "asr.zh.cer": 0.05,
    "heldout_voice.asr.en.wer": 0.098,
    "heldout_voice.asr.zh.cer": 0.090,
    "conversation.*.exact_match": 0.90,
    "cross_lingual.*.exact_match": 0.85,
    "cross_lingual.*.off_target": 0.01,
    "alignment.similarity": 0.725,
    "latency.speedup_over_full_chain": 2.9,
    "latency.audio_speedup": 2.93,
    "latency.first_audio_ms": 1000.0,
    "latency.rtf": 0.3,
    "latency.underruns": 0.01,
    "tts.en.wer": 0.038,
    "conversation.*.speech_wer": 0.05,
    "conversation.*.speech_cer": 0.05,
    "cross_lingual.*.speech_wer": 0.05,
    "cross_lingual.*.speech_cer": 0.05,
    "conversation.*.speech_off_target": 0.01,
    "cross_lingual.*.speech_off_target": 0.01,
    "speaker_similarity.tts.*.mean": 0.75,
}
BESIDE: dict[str, tuple[str, float]] = {
    "tts.zh.cer": ("tts.zh.reference_cer", 0.038),
    "resynthesis.en.wer": ("resynthesis.en.reference_wer", 0.02),
    "resynthesis.zh.cer": ("resynthesis.zh.reference_cer", 0.02),
    "dnsmos.tts.en.mean": ("dnsmos.reference.en.mean", -0.3),
    "dnsmos.tts.zh.mean": ("dnsmos.reference.zh.mean", -0.3),
}
"""Targets that are so far from what the recordings themselves get."""
STRICT = ("off_target",)
"""Figures that must stay below the target; the others may equal it."""
LOWER_IS_BETTER = (
    *("wer", "cer", "off_target", "perplexity", "seconds", "tokens"),
    *("reference_wer", "reference_cer", "speech_wer", "speech_cer", "speech_off_target"),
    *(
        "label_error",
        "reference_label_error",
        "second_wer",
        "second_reference_wer",
        "first_audio_ms",
        "rtf",
        "underruns",
    ),
)
INTERVALS = ("wer", "cer", "exact_match", "mean")
"""Figures whose interval is the plain `ci95` beside them; others have `NAME_ci95`, or none."""
INTERVAL_NAMES = {
    "reference_wer": "reference_ci95",
    "reference_cer": "reference_ci95",
    "speech_wer": "speech_ci95",
    "speech_cer": "speech_ci95",
}
COUNTS = {"speech_off_target": "speech_n", "underruns": "audio_n"}
"""Shares of so few items that their number is said beside the interval."""
HEADLINES = (
    "asr.*.wer",
    "asr.*.cer",
    "conversation.*.exact_match",
    "cross_lingual.*.exact_match",
    "cross_lingual.*.off_target",
    "later_turn.exact_match",
    "conversation.*.judge_score",
    "cross_lingual.*.judge_score",
    "alignment.similarity",
    "alignment.retrieval_accuracy",
    "latency.speedup_over_full_chain",
    "latency.audio_speedup",
    "latency.first_audio_ms",
    "latency.rtf",
    "latency.underruns",
    "tts.*.wer",
    "tts.*.cer",
    "tts.*.reference_wer",
    "tts.*.reference_cer",
    "tts.*.label_error",
    "tts.*.reference_label_error",
    "tts.*.second_wer",
    "tts.*.second_reference_wer",
    "resynthesis.*.wer",
    "resynthesis.*.cer",
    "conversation.*.speech_wer",
    "conversation.*.speech_cer",
    "cross_lingual.*.speech_wer",
    "cross_lingual.*.speech_cer",
    "conversation.*.speech_off_target",
    "cross_lingual.*.speech_off_target",
    "dnsmos.reference.*.mean",
    "dnsmos.tts.*.mean",
    "speaker_similarity.reference.*.mean",
    "speaker_similarity.tts.*.mean",
    "mt.*.bleu",
    "text_instruction.*.exact_match",
    "heldout_voice.asr.*.wer",
    "heldout_voice.asr.*.cer",
)


@dataclass(frozen=True)
class Headline:
    """One figure of this run beside the paper's and the target; `reached` is None without a target."""

    name: str
    value: float
    paper: float | None
    target: float | None
    reached: bool | None
    lower_is_better: bool
    ci95: tuple[float, float] | None
    n: int | None = None


def headlines(metrics: Mapping[str, Any]) -> list[Headline]:
    """The figures that the report and `make demo` show first, of those that the run has."""
    flat = flatten(metrics)
    names = [name for pattern in HEADLINES for name in flat if matches(name, pattern)]
    return [_headline(name, flat) for name in names]


def _headline(name: str, flat: Mapping[str, Any]) -> Headline:
    value, target = float(flat[name]), _look_up(TARGETS, name)
    if name in BESIDE:
        beside, distance = BESIDE[name]
        target = flat[beside] + distance
    parent, _, metric = name.rpartition(".")
    lower = metric in LOWER_IS_BETTER
    reached = None if target is None else value <= target if lower else value >= target
    if name.endswith(STRICT) and target is not None:
        reached = value < target
    n = flat.get(f"{parent}.{COUNTS.get(metric)}")
    return Headline(name, value, _look_up(PAPER, name), target, reached, lower, interval_of(name, flat), n)


def interval_of(name: str, flat: Mapping[str, Any]) -> tuple[float, float] | None:
    """95 % interval of a figure, by its dotted name; None if it has none."""
    parent, _, metric = name.rpartition(".")
    plain = INTERVAL_NAMES.get(metric, "ci95" if metric in INTERVALS else f"{metric}_ci95")
    interval = flat.get(f"{parent}.{plain}")
    return (interval[0], interval[1]) if interval else None


def _look_up(figures: Mapping[str, float], name: str) -> float | None:
    return next((figure for pattern, figure in figures.items() if matches(name, pattern)), None)


def matches(name: str, pattern: str) -> bool:
    """Equal part by part; `*` is any one part."""
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(w in ("*", p) for p, w in zip(parts, wanted, strict=True))
