"""What a model can be asked: a question that it would answer with babble is refused in words.

Whether there is speech in a recording is told before (cslm.questions); here a question is held against the
model that is to answer it.
"""

from __future__ import annotations

from collections.abc import Sequence

from cslm.generation import SpeechLanguageModel
from cslm.questions import LONGEST_TOKENS, NoQuestion
from cslm.units import FRAMES_PER_SECOND

TOO_LONG = {
    "en": "The question is too long for me: please ask in at most {seconds} seconds.",
    "zh": "这个问题太长了，请在{seconds}秒之内提问。",
}


def check_spoken(units: Sequence[int], model: SpeechLanguageModel, language: str | None) -> None:
    """Units, runs merged, of a spoken question that is to be answered in `language`.

    Its prompt may take half of what the model has learnt at once; its text and the answer need the other half.

    Raises:
        NoQuestion: it is longer; the message says how many seconds never are.
    """
    longest = model.longest // 2 - len(model.builder.prompt_dialogue([], None, None))
    if len(units) > longest:
        words = TOO_LONG.get(language or "en", TOO_LONG["en"])
        raise NoQuestion(words.format(seconds=longest // FRAMES_PER_SECOND))


def check_written(text: str, model: SpeechLanguageModel, language: str | None) -> None:
    """A written question that is to be answered in `language`.

    Raises:
        NoQuestion: it has no letter and no digit, or more than `LONGEST_TOKENS` tokens.
    """
    if not any(map(str.isalnum, text)) or len(model.builder.text_ids(text)) > LONGEST_TOKENS:
        raise NoQuestion.because("unwritten", language)
