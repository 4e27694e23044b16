"""How well units pronounce their text, heard by the speech tokenizer's own recogniser: no sound, no decoder.

What a language model reads aloud or answers can be poor because of its units, or of what the decoder
makes of them. The recogniser reads the labels (phones, characters) off the units themselves; recordings,
read in the same way, show the least error that there can be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cslm.evaluation.confidence import bootstrap
from cslm.evaluation.held_out import Utterance, grouped, place_of
from cslm.evaluation.tasks import Answer
from cslm.pronunciation import labels
from cslm.tokenizer import Tokenizer
from cslm.tokenizer.corpus import edit_distance

BATCH = 32


def label_errors(
    tokenizer: Tokenizer, spoken: Sequence[tuple[str, Sequence[int]]], language: str, seed: int
) -> dict[str, Any]:
    """Label error of (text, merged units that should pronounce it), its 95 % interval, and their number.

    Each unit counts as one frame, as durations are the decoder's business. Empty if no text has a label.
    """
    errors, lengths = [], []
    for first in range(0, len(spoken), BATCH):
        batch = spoken[first : first + BATCH]
        audible = [units for _, units in batch if units]
        heard = iter(tokenizer.log_probs(audible) if audible else ())
        for text, units in batch:
            wanted = [label.name for label in labels(text, language)]
            errors.append(edit_distance(wanted, tokenizer.transcribe(next(heard)) if units else []))
            lengths.append(len(wanted))
    if not any(lengths):
        return {}
    rate, interval = sum(errors) / sum(lengths), bootstrap(errors, lengths, seed)
    return {"label_error": rate, "label_error_ci95": interval, "label_n": len(spoken)}


def reading_errors(
    tokenizer: Tokenizer, utterances: Sequence[Utterance], read: Mapping[str, Sequence[int]], seed: int
) -> dict[str, Any]:
    """`tts.LANGUAGE.label_error` of texts read aloud, beside `reference_label_error` of recordings."""
    metrics: dict[str, Any] = {}
    for language, group in grouped(utterances, lambda utterance: utterance.language).items():
        recorded = label_errors(tokenizer, [(u.text, u.units) for u in group], language, seed)
        recorded.pop("label_n", None)
        metrics[language] = {
            **label_errors(tokenizer, [(u.text, read[u.id]) for u in group], language, seed),
            **{f"reference_{name}": figure for name, figure in recorded.items()},
        }
    return {"tts": metrics}


def answer_errors(tokenizer: Tokenizer, answers: Sequence[Answer], seed: int) -> dict[str, Any]:
    """`label_error` of spoken answers against their own text, in `conversation` and `cross_lingual`."""
    metrics: dict[str, dict[str, Any]] = {}
    for (asked, wanted), group in grouped(answers, lambda answer: answer.dialogue.pair).items():
        said = [(answer.parsed.text, answer.parsed.units) for answer in group]
        kind, key = place_of(asked, wanted)
        metrics.setdefault(kind, {})[key] = label_errors(tokenizer, said, wanted, seed)
    return metrics
