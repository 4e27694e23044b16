"""How soon speech begins: the interleaved chain of modality against the full chain (paper, section 3.3).

Both chains are run by the same model on the same questions, one question at a time with a KV cache. From
the end of the prompt we count

    first unit    generated tokens, and seconds with the reading of the prompt, to the first speech unit
    first chunk   the same to the end of the first stretch of speech, when a decoder that works chunk by
                  chunk has something to play

The ratio of means over the questions that both chains spoke to is the speed-up. The order of the two is
swapped from question to question, so that a slow moment of the machine hits both alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import get_args

from cslm.evaluation.confidence import bootstrap
from cslm.evaluation.held_out import Dialogue
from cslm.generation import SpeechLanguageModel
from cslm.sequences import Chain

Clock = Callable[[], float]
SEED = 0
"""Of the intervals' resampling."""


@dataclass(frozen=True)
class FirstSpeech:
    """Generated tokens and seconds until speech begins, and until its first chunk is whole."""

    tokens: int
    seconds: float
    chunk_tokens: int
    chunk_seconds: float


@dataclass(frozen=True)
class Comparison:
    """Paired measurements, and how many questions one of the chains gave no speech to."""

    interleaved: list[FirstSpeech]
    full: list[FirstSpeech]
    silent: int

    def metrics(self) -> dict[str, object]:
        """Means and ratios; `{"n": 0, ...}` alone if nothing could be paired."""
        counts: dict[str, object] = {"n": len(self.full), "silent": self.silent}
        if not self.full:
            return counts
        return counts | {
            "interleaved": _describe(self.interleaved),
            "full_chain": _describe(self.full),
            "speedup_over_full_chain": self._ratio("seconds"),
            "token_speedup": self._ratio("tokens"),
            "chunk_speedup": self._ratio("chunk_seconds"),
            "chunk_token_speedup": self._ratio("chunk_tokens"),
        }

    def _ratio(self, field: str) -> float:
        late = mean(float(getattr(m, field)) for m in self.full)
        return late / mean(float(getattr(m, field)) for m in self.interleaved)


def _describe(measurements: Sequence[FirstSpeech]) -> dict[str, object]:
    seconds, tokens = [m.seconds for m in measurements], [float(m.tokens) for m in measurements]
    return {
        "tokens": mean(tokens),
        "tokens_ci95": bootstrap(tokens, [1.0] * len(tokens), SEED),
        "seconds": mean(seconds),
        "seconds_ci95": bootstrap(seconds, [1.0] * len(seconds), SEED),
        "median_seconds": median(seconds),
        "chunk_tokens": mean(m.chunk_tokens for m in measurements),
        "chunk_seconds": mean(m.chunk_seconds for m in measurements),
    }


def first_speech(
    model: SpeechLanguageModel, prompt: list[int], max_new_tokens: int, clock: Clock = time.perf_counter
) -> FirstSpeech | None:
    """Generate until the first chunk of speech is whole; None if there is none within `max_new_tokens`."""
    builder = model.builder
    begin = clock()
    first: tuple[int, float] | None = None
    for count, token in enumerate(model.stream(prompt, "dialogue", max_new_tokens), start=1):
        if first is None:
            if builder.is_unit(token):
                first = count, clock() - begin
        elif not builder.is_unit(token):
            return FirstSpeech(*first, count, clock() - begin)
    return None


def compare_chains(
    model: SpeechLanguageModel,
    questions: Sequence[Dialogue],
    max_new_tokens: int,
    on_question: Callable[[int], None] = lambda done: None,
    clock: Clock = time.perf_counter,
) -> Comparison:
    """Measure both chains on every question; `on_question(done)` after each."""
    interleaved: list[FirstSpeech] = []
    full: list[FirstSpeech] = []
    chains: tuple[Chain, ...] = get_args(Chain)
    if questions:  # the first pass through a model is slow: it is not measured
        first_speech(model, _prompt(model, questions[0], "interleaved"), max_new_tokens, clock)
    for done, question in enumerate(questions, start=1):
        order = chains if done % 2 else chains[::-1]
        found = {c: first_speech(model, _prompt(model, question, c), max_new_tokens, clock) for c in order}
        early, late = found["interleaved"], found["full"]
        if early and late:
            interleaved.append(early)
            full.append(late)
        on_question(done)
    return Comparison(interleaved, full, len(questions) - len(full))


def _prompt(model: SpeechLanguageModel, question: Dialogue, chain: Chain) -> list[int]:
    return model.builder.prompt_dialogue(
        list(question.question_units), question.question_language, question.answer_language, chain
    )
