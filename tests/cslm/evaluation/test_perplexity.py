"""Perplexity counts units, and only units."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from cslm.evaluation.held_out import Utterance
from cslm.evaluation.perplexity import perplexity, unit_losses
from cslm.generation import SpeechLanguageModel


def test_a_fair_die_has_the_perplexity_of_its_sides() -> None:
    assert perplexity([(log(6) * 10, 10), (log(6) * 3, 3)]) == pytest.approx(6)


def test_there_must_be_units() -> None:
    with pytest.raises(ValueError, match="at least one unit"):
        perplexity([(0.0, 0)])


def test_only_units_count(model: SpeechLanguageModel, utterances: list[Utterance]) -> None:
    losses = unit_losses(model, utterances, batch_size=2)
    assert [count for _, count in losses] == [4, 2, 3]
    builder, utterance = model.builder, utterances[1]
    sequence = builder.tts(utterance.text, list(utterance.units), "en").input_ids
    with torch.inference_mode():
        logits = model.model(input_ids=torch.tensor([sequence])).logits[0].log_softmax(-1)
    places = [i for i, token in enumerate(sequence) if builder.is_unit(token)]
    by_hand = -sum(float(logits[i - 1, sequence[i]]) for i in places)
    assert losses[1][0] == pytest.approx(by_hand, rel=1e-4)
    assert perplexity(losses[1:2]) == pytest.approx(exp(by_hand / 2), rel=1e-4)
