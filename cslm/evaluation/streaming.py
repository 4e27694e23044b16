"""How soon a spoken question is answered in sound, and whether the sound then runs dry.

Each question is answered by the whole system (ears, language model, mouth), by both chains in turn. Times count
from the end of the question. An answer has an under-run if, played from its first piece on, a later piece comes
after the ones before it have been played.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any, get_args

from cslm.audio import SAMPLE_RATE, Samples
from cslm.conversation import Assistant, Speech, Text
from cslm.evaluation.confidence import wilson
from cslm.sequences import Chain

Clock = Callable[[], float]


@dataclass(frozen=True)
class Timing:
    """Seconds to the first text and sound of an answer and to its end, how long it sounds, if it ran dry."""

    first_text: float
    first_audio: float
    end: float
    sounding: float
    ran_dry: bool
    events: tuple[tuple[str, float, float], ...]
    """What came (`heard`, `text`, `speech`), when, and how many seconds it sounds."""


def answer_timing(
    assistant: Assistant,
    question: Samples,
    language: str | None,
    chain: Chain,
    clock: Clock = time.perf_counter,
) -> Timing | None:
    """Answer one question and note when what came; None if there was no sound."""
    begin = clock()
    first_text = first_audio = None
    sounding = 0.0
    ran_dry = False
    events: list[tuple[str, float, float]] = []
    for event in assistant.answer(question, language, chain=chain):
        now = clock() - begin
        seconds = len(event.samples) / SAMPLE_RATE if isinstance(event, Speech) else 0.0
        events.append((type(event).__name__.lower(), now, seconds))
        if isinstance(event, Text) and first_text is None:
            first_text = now
        if isinstance(event, Speech):
            first_audio = now if first_audio is None else first_audio
            ran_dry |= sounding > 0 and now > first_audio + sounding
            sounding += seconds
    if first_text is None or first_audio is None:
        return None
    return Timing(first_text, first_audio, clock() - begin, sounding, ran_dry, tuple(events))


def measure_streaming(
    assistant: Assistant,
    questions: Sequence[tuple[Samples, str | None]],
    on_question: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, Any], list[Timing]]:
    """Times of all questions that both chains answered in sound, and the interleaved answers' timings.

    `audio_silent` says how many questions one of the chains gave no sound to.
    """
    chains: tuple[Chain, ...] = get_args(Chain)
    timings: dict[Chain, list[Timing]] = {chain: [] for chain in chains}
    if questions:  # the first pass through a network is slow: it is not measured
        answer_timing(assistant, *questions[0], "interleaved")
    for done, (question, language) in enumerate(questions, start=1):
        order = chains if done % 2 else chains[::-1]
        found = {chain: answer_timing(assistant, question, language, chain) for chain in order}
        if all(found.values()):
            for chain, timing in found.items():
                assert timing is not None
                timings[chain].append(timing)
        on_question(done)
    ours, full = timings["interleaved"], timings["full"]
    if not questions:
        return {}, []
    return {"audio_silent": len(questions) - len(ours), **(_figures(ours, full) if ours else {})}, ours


def _figures(ours: Sequence[Timing], full: Sequence[Timing]) -> dict[str, Any]:
    first = [1000 * timing.first_audio for timing in ours]
    ran_dry = sum(timing.ran_dry for timing in ours)
    return {
        "first_audio_ms": mean(first),
        "first_audio_ms_median": median(first),
        "first_audio_ms_worst": max(first),
        "first_text_ms": mean(1000 * timing.first_text for timing in ours),
        "rtf": sum(timing.end for timing in ours) / sum(timing.sounding for timing in ours),
        "underruns": ran_dry / len(ours),
        "underruns_ci95": wilson(ran_dry, len(ours)),
        "full_chain_first_audio_ms": mean(1000 * timing.first_audio for timing in full),
        "audio_speedup": mean(t.first_audio for t in full) / mean(t.first_audio for t in ours),
        "audio_n": len(ours),
    }
