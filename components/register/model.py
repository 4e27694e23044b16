"""The model as the registry serves it: spoken or written questions in, answers out.

    model = mlflow.pyfunc.load_model("models:/cslm@candidate")
    answer = model.predict({"audio": Path("question.wav").read_bytes(), "answer_language": "zh"})
    Path("answer.wav").write_bytes(base64.b64decode(answer["wav"][0]))

MLflow logs this file as it is ("models from code"), with `cslm` beside it: nothing is pickled.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.models
import numpy as np
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from cslm.audio import encode_wav
from cslm.conversation import Assistant
from cslm.grammar import Reply
from cslm.languages import language_of
from cslm.limits import check_spoken, check_written, longest_s
from cslm.questions import NoQuestion, hear, read_recording

INPUTS = ("audio", "text", "answer_language", "voice")
OUTPUTS = ("question", "answer", "units", "wav", "well_formed")
DEFAULTS = {"max_new_tokens": 512, "batch_size": 16}


@dataclass(frozen=True)
class Question:
    """One row of the input, checked: units of the spoken question, or the written one."""

    row: int
    units: list[int] | None
    text: str
    answer_language: str | None
    voice: str | None


class Dialogue(PythonModel):
    """Answers questions.

    Input columns: `audio` (bytes of a WAV, FLAC, MP3 or Ogg file of up to 30 s, or the same in base64, as
    JSON needs it) or `text`; and, if wanted, `answer_language` (by default the question's own) and `voice` (by
    default the first of that language).
    Output columns: `question` (what was heard or given), `answer`, `units` (speech units of the answer, runs
    merged), `wav` (its sound: a WAV file in base64), `well_formed` (the answer is whole, its markers in order).

    A row that cannot be answered (silence, noise, too long, an unknown voice) does not stop the others: its
    answer says what is wrong and what is allowed, without sound, and is not well-formed.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Open the checkpoint, the speech tokenizer and the speech decoder among the version's artifacts."""
        self.languages: list[str] = list(context.model_config["languages"])
        parts = (Path(context.artifacts[name]) for name in ("model", "tokenizer", "decoder"))
        whole = Assistant.load(*parts)
        self.model, self.tokenizer, self.decoder = whole.model, whole.tokenizer, whole.decoder

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Answer every row, in words also those that are no question.

        Raises:
            ValueError: `max_new_tokens` is more than half of what the model can see, or `batch_size` is none.
        """
        options = DEFAULTS | dict(params or {})
        positions = self.model.model.config.max_position_embeddings
        if not 0 < options["max_new_tokens"] <= positions // 2:  # what is written is a prompt when it is read
            raise ValueError(
                f"max_new_tokens {options['max_new_tokens']} is not allowed; give 1 to {positions // 2}"
            )
        if options["batch_size"] < 1:
            raise ValueError(f"batch_size {options['batch_size']} is not allowed; give 1 or more")
        answers: dict[int, Any] = {}
        questions = []
        for row, cells in enumerate(_rows(model_input)):
            try:
                questions.append(self._read(row, cells))
            except NoQuestion as reason:
                answers[row] = ("", str(reason), [], "", False)
        spoken = [question for question in questions if question.units is not None]
        written = [question for question in questions if question.units is None]
        found = self._answer_spoken(spoken, options) | self._answer_written(written, options)
        for question in questions:
            heard, text, units, whole = found[question.row]
            voice = question.voice or self._voice(question.answer_language, heard or text)
            answers[question.row] = (heard, text, units, self._sound(units, voice), whole)
        return pd.DataFrame([answers[row] for row in sorted(answers)], columns=list(OUTPUTS))

    def _sound(self, units: list[int], voice: str) -> str:
        """The answer's speech as a WAV file in base64; empty if it has none."""
        return base64.b64encode(encode_wav(self.decoder.speak(units, voice))).decode() if units else ""

    def _voice(self, answer_language: str | None, question: str) -> str:
        """A voice of the answer's language, else of the question's; the first one if there are none."""
        language = answer_language or language_of(question, self.languages)
        return (self.decoder.natives(language) or self.decoder.voices)[0]

    def _read(self, row: int, cells: Mapping[str, Any]) -> Question:
        """One row, checked.

        Raises:
            NoQuestion: it cannot be answered.
        """
        audio, text, language, voice = (cells.get(name) for name in INPUTS)
        if (audio is None) == (text is None):
            found = "neither" if audio is None else "both"
            raise NoQuestion(f"{found} of audio and text given; exactly one is needed")
        if language is not None and language not in self.languages:
            known = ", ".join(self.languages)
            raise NoQuestion(f"answer_language {language!r} is unknown; allowed: {known}")
        if voice is not None and voice not in self.decoder.voices:
            known = ", ".join(self.decoder.voices)
            raise NoQuestion(f"voice {voice!r} is unknown; allowed: {known}")
        if audio is None:
            if not isinstance(text, str):
                raise NoQuestion(f"text must be a string, not {type(text).__name__}")
            check_written(text, self.model, language or language_of(text, self.languages))
            return Question(row, None, text.strip(), language, voice)
        longest = longest_s(self.model)
        units = hear(read_recording(_bytes(audio), language, longest), self.tokenizer, language, longest)
        check_spoken(units, self.model, language)
        return Question(row, units, "", language, voice)

    def _answer_spoken(self, questions: list[Question], options: Mapping[str, int]) -> dict[int, Any]:
        """Answer directly, then once more those whose question turned out to be in another language.

        The model knows "answer in English" from Chinese questions only: asked so in English it would be
        out of its depth, and only its own transcript tells the language of a recording.
        """
        builder = self.model.builder
        prompts = [builder.prompt_dialogue(question.units or [], None, None) for question in questions]
        replies = self._generate(prompts, "dialogue", options)
        foreign = [
            index
            for index, (question, ids) in enumerate(zip(questions, replies, strict=True))
            if not self._is_in(builder.parse_dialogue(ids).question, question.answer_language)
        ]
        again = [questions[index] for index in foreign]
        prompts = [builder.prompt_dialogue(q.units or [], None, q.answer_language) for q in again]
        for index, ids in zip(foreign, self._generate(prompts, "dialogue", options), strict=True):
            replies[index] = ids
        answers = {}
        for question, ids in zip(questions, replies, strict=True):
            reply = builder.parse_dialogue(ids)
            answers[question.row] = (reply.question, reply.text, reply.units, reply.well_formed)
        return answers

    def _answer_written(self, questions: list[Question], options: Mapping[str, int]) -> dict[int, Any]:
        """Answer in the question's language (for another one it is translated first), and read that aloud."""
        builder = self.model.builder
        asked = [question.text for question in questions]
        foreign = [i for i, q in enumerate(questions) if not self._is_in(q.text, q.answer_language)]
        again = [questions[index] for index in foreign]
        prompts = [builder.prompt_mt(q.text, str(q.answer_language)) for q in again]
        for index, ids in zip(foreign, self._generate(prompts, "text", options), strict=True):
            asked[index] = builder.decode(ids)
        replies = self._generate([builder.prompt_text(text) for text in asked], "text", options)
        texts = [builder.decode(ids) for ids in replies]
        prompts = [builder.prompt_tts(text) for text in texts]
        speech = self._generate(prompts, "speech", options)
        answers: dict[int, Any] = {}
        for question, ids, text, sound in zip(questions, replies, texts, speech, strict=True):
            whole = bool(text) and max(len(ids), len(sound)) < options["max_new_tokens"]
            answers[question.row] = (question.text, text, builder.parse_units(sound) if text else [], whole)
        return answers

    def _is_in(self, text: str, language: str | None) -> bool:
        """True if `text` is in `language`, or no language was asked for."""
        return language is None or language_of(text, self.languages) == language

    def _generate(self, prompts: list[list[int]], reply: Reply, options: Mapping[str, int]) -> list[list[int]]:
        return self.model.generate(prompts, reply, options["max_new_tokens"], options["batch_size"])


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of the input without their empty cells."""
    # MLflow makes one row of a dict whose columns are all lists of strings.
    listed = [name for name in frame.columns if frame[name].map(lambda cell: isinstance(cell, list)).any()]
    if listed:
        frame = frame.explode(listed, ignore_index=True)
    rows = frame.to_dict("records")
    return [{str(k): cell for k, cell in row.items() if not _is_empty(cell)} for row in rows]


def _is_empty(cell: Any) -> bool:
    return cell is None or cell is pd.NA or (isinstance(cell, float) and np.isnan(cell)) or cell in ("", b"")


def _bytes(audio: Any) -> bytes:
    if isinstance(audio, str):
        try:
            return base64.b64decode(audio, validate=True)
        except ValueError as error:  # binascii.Error, or a letter that is not ASCII
            raise NoQuestion(f"audio is a string, but not base64 ({error})") from error
    if not isinstance(audio, bytes | bytearray | memoryview):
        raise NoQuestion(f"audio must be bytes or base64, not {type(audio).__name__}")
    return bytes(audio)


mlflow.models.set_model(Dialogue())
