"""How well the model foresees the speech of a text it is given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import exp

from cslm.evaluation.held_out import Utterance
from cslm.generation import SpeechLanguageModel
from cslm.sequences import IGNORE


def unit_losses(
    model: SpeechLanguageModel, utterances: Iterable[Utterance], batch_size: int
) -> list[tuple[float, int]]:
    """Sum of -log p over the units of each utterance, and their number (runs are merged).

    The model reads the text and the units before (text to speech, teacher forced). Markers do not count:
    they are easily foreseen and would make the figure look better than the speech is.
    """
    builder = model.builder
    sequences = []
    for utterance in utterances:
        sequence = builder.tts(utterance.text, list(utterance.units), utterance.language)
        labels = [label if label != IGNORE and builder.is_unit(label) else IGNORE for label in sequence.labels]
        sequences.append(replace(sequence, labels=labels))
    return model.token_losses(sequences, batch_size)


def perplexity(losses: Iterable[tuple[float, int]]) -> float:
    """exp(mean -log p per unit).

    Raises:
        ValueError: there are no units.
    """
    losses = list(losses)
    units = sum(count for _, count in losses)
    if not units:
        raise ValueError("a perplexity needs at least one unit")
    return exp(sum(loss for loss, _ in losses) / units)
