"""What a model can be asked: a question that it would answer with babble is refused in words.

Whether there is speech in a recording is told before (cslm.questions); here a question is held against the
model that is to answer it.
"""

from __future__ import annotations

from collections.abc import Sequence

from cslm.generation import SpeechLanguageModel
from cslm.questions import NoQuestion
from cslm.units import FRAMES_PER_SECOND

LONGEST_TOKENS = 150
"""Tokens that a written question may have at least."""


def longest_units(model: SpeechLanguageModel) -> int:
    """Units, runs merged, that a spoken question may have.

    Its prompt may take half of what the model has learnt at once; its text and the answer need the other half.
    """
    return model.longest // 2 - len(model.builder.prompt_dialogue([], None, None))


def longest_s(model: SpeechLanguageModel) -> int:
    """Seconds of speech that are never too long: more of them may be, as runs of a unit are merged."""
    return max(1, longest_units(model) // FRAMES_PER_SECOND)


def check_spoken(units: Sequence[int], model: SpeechLanguageModel, language: str | None) -> None:
    """Units, runs merged, of a spoken question that is to be answered in `language`.

    Raises:
        NoQuestion: there are more of them than the model takes.
    """
    if len(units) > longest_units(model):
        raise NoQuestion.because("long", language, longest_s(model))


def check_written(text: str, model: SpeechLanguageModel, language: str | None) -> None:
    """A written question that is to be answered in `language`.

    Raises:
        NoQuestion: it has no letter and no digit, or no Unicode characters; or more tokens than a quarter of
            what the model has learnt at once, and than `LONGEST_TOKENS`.
    """
    writable = not any("\ud800" <= character <= "\udfff" for character in text)  # half of a pair, in JSON
    if not (writable and any(map(str.isalnum, text))):
        raise NoQuestion.because("unwritten", language)
    if len(model.builder.text_ids(text)) > max(LONGEST_TOKENS, model.longest // 4):
        raise NoQuestion.because("wordy", language)
