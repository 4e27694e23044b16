"""Spoken answers as they come into being: text and sound of each piece as soon as it is known.

    for event in Assistant.load(model, tokenizer, decoder).answer(samples, "zh", "zf_xiaoxiao"):
        ...                                      # Heard, Text, Speech, Text, Speech, ...

The language model writes in the caller's thread; the speech decoder works beside it, a dozen units at a time,
so the first sound is there before the first chunk is whole, and while the next one is being written.

Give the same `History` with each question of a talk, and the model sees what was said before. Closing the
iterator interrupts an answer; of it, the history keeps the chunks that were finished.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cslm.audio import SAMPLE_RATE, Samples
from cslm.decoder import SpeechDecoder
from cslm.generation import Sampling, SpeechLanguageModel
from cslm.languages import language_of
from cslm.sequences import Chain
from cslm.tokenizer import Tokenizer, open_tokenizer
from cslm.units import merge_runs

PIECE_UNITS = 16
"""Units (about 0.6 s) that the decoder gets at once."""
MAX_NEW_TOKENS = 768
LONGEST_TOKENS = 150
"""Tokens of a written question."""
SHORTEST_S, LONGEST_S = 0.3, 30.0
REMEMBERED_TOKENS = 256
"""Of earlier turns, by default: with a question and its answer they fill the 512 of the sample model."""
QUIETEST_DB = -50.0
FEWEST_SOUNDS_PER_SECOND = 1.5
"""Speech has 8 to 15 phones, or initials and finals, a second; noise and tones have hardly any."""

REFUSALS = {
    "en": {
        "empty": "I heard nothing: the recording is empty or shorter than 0.3 seconds.",
        "long": "The recording is too long for me: please ask in at most 30 seconds.",
        "silent": "I heard only silence. Is the microphone on?",
        "noise": "I heard sound, but no speech. Please ask again.",
        "unwritten": "Please write a question, of at most a hundred words.",
    },
    "zh": {
        "empty": "我什么都没听到，录音是空的，或者不到零点三秒。",
        "long": "录音太长了，请在三十秒之内提问。",
        "silent": "我只听到一片寂静，麦克风打开了吗？",
        "noise": "我听到了声音，但没有听到人说话，请再说一遍。",
        "unwritten": "请写一个问题，最多一百个词。",
    },
}


@dataclass(frozen=True)
class Heard:
    """The text of the question."""

    text: str


@dataclass(frozen=True)
class Text:
    """A chunk of the answer."""

    text: str


@dataclass(frozen=True)
class Speech:
    """Sound of the answer that follows the last: samples at 16 kHz."""

    samples: Samples


@dataclass(frozen=True)
class Refused:
    """Why there is no answer, in words for the person who asked."""

    text: str


Event = Heard | Text | Speech | Refused


@dataclass
class History:
    """The earlier turns of one talk, as tokens; the oldest are forgotten where they are more than `longest`."""

    longest: int = REMEMBERED_TOKENS
    turns: list[list[int]] = field(default_factory=list)

    def add(self, turn: list[int]) -> None:
        """Remember a question with its answer."""
        self.turns.append(turn)
        while sum(map(len, self.turns)) > self.longest:
            self.turns.pop(0)


class UnknownLanguage(ValueError):
    """A language that the model does not answer in; the message lists those it does."""


class Assistant:
    """A language model with ears and a mouth."""

    def __init__(self, model: SpeechLanguageModel, tokenizer: Tokenizer, decoder: SpeechDecoder) -> None:
        self.model, self.tokenizer, self.decoder = model, tokenizer, decoder
        self.languages = sorted(set(decoder.config.voices.values()))

    @classmethod
    def load(cls, model: Path, tokenizer: Path, decoder: Path) -> Assistant:
        """Open the three parts from their folders."""
        return cls(SpeechLanguageModel.load(model), open_tokenizer(tokenizer), SpeechDecoder.load(decoder))

    def voices(self, language: str) -> list[str]:
        """Names of the voices that speak a language by birth; any voice can speak any."""
        return [name for name, native in self.decoder.config.voices.items() if native == language]

    def check(self, answer_language: str | None, voice: str | None) -> None:
        """Refuse names that do not exist.

        Raises:
            UnknownLanguage, UnknownVoice: the message lists what exists.
        """
        if answer_language is not None and answer_language not in self.languages:
            known = ", ".join(self.languages)
            raise UnknownLanguage(f"answer language {answer_language!r} is unknown; allowed: {known}")
        if voice is not None:
            self.decoder.voice_of(voice)

    def answer(
        self,
        question: Samples,
        answer_language: str | None = None,
        voice: str | None = None,
        chain: Chain = "interleaved",
        history: History | None = None,
        sampling: Sampling | None = None,
    ) -> Iterator[Event]:
        """Answer spoken samples at 16 kHz, in the question's language if none is given.

        Close the iterator to stop the answer. A recording without speech gets one `Refused`. Without `history`
        nothing was said before; without `sampling` the most probable answer is given.

        Raises:
            UnknownLanguage, UnknownVoice: a name that does not exist.
        """
        self.check(answer_language, voice)
        problem = self._problem(question)
        units: list[int] = []
        if problem is None:
            [frames] = self.tokenizer.encode([question])
            units, _ = merge_runs(frames)
            sounds = self.tokenizer.transcribe(self.tokenizer.log_probs([frames])[0])
            if len(sounds) < FEWEST_SOUNDS_PER_SECOND * len(question) / SAMPLE_RATE:
                problem = "noise"
        if problem is not None:
            yield Refused(REFUSALS.get(answer_language or "en", REFUSALS["en"])[problem])
            return
        yield from self._spoken_answer(units, answer_language, voice, chain, history or History(), sampling)

    def _problem(self, question: Samples) -> str | None:
        if len(question) < SHORTEST_S * SAMPLE_RATE:
            return "empty"
        if len(question) > LONGEST_S * SAMPLE_RATE:
            return "long"
        power = float(np.square(question, dtype=np.float64).mean())
        return "silent" if power <= 10 ** (QUIETEST_DB / 10) else None

    def _spoken_answer(
        self,
        units: list[int],
        answer_language: str | None,
        voice: str | None,
        chain: Chain,
        history: History,
        sampling: Sampling | None,
    ) -> Iterator[Event]:
        builder = self.model.builder
        earlier = list(history.turns)
        prompt = builder.prompt_dialogue(units, None, None, chain)
        heard = self._question(builder.next_turn(earlier, prompt))
        text = builder.decode(heard)
        yield Heard(text)
        asked = self.language_of(text)
        wanted = answer_language or asked
        if wanted != asked:
            prompt = builder.prompt_dialogue(units, asked, wanted, chain)
        begun = [*prompt, builder.question_id, *heard, builder.answer_id]
        tokens = self.model.stream(builder.next_turn(earlier, begun), "answer", MAX_NEW_TOKENS, sampling)
        said: list[int] = []
        try:
            yield from self._voiced(tokens, voice or self.voices(wanted)[0], said.append)
        finally:
            if whole := _finished(said, builder.speech_end_id):
                history.add(begun + whole)

    def answer_written(
        self,
        question: str,
        answer_language: str | None = None,
        voice: str | None = None,
        history: History | None = None,
        sampling: Sampling | None = None,
    ) -> Iterator[Event]:
        """Answer a written question, in its own language if none is given, and read the answer aloud.

        Raises:
            UnknownLanguage, UnknownVoice: a name that does not exist.
        """
        self.check(answer_language, voice)
        builder = self.model.builder
        asked = self.language_of(question)
        wanted = answer_language or asked
        if not builder.text_ids(question.strip()) or len(builder.text_ids(question)) > LONGEST_TOKENS:
            yield Refused(REFUSALS.get(wanted, REFUSALS["en"])["unwritten"])
            return
        yield Heard(question)
        if wanted != asked:
            translated = self.model.stream(builder.prompt_mt(question, asked, wanted), "text", MAX_NEW_TOKENS)
            question = builder.decode(translated)
        history = history or History()
        prompt = builder.prompt_text(question, wanted)
        told = builder.next_turn(history.turns, prompt)
        written = list(self.model.stream(told, "text", MAX_NEW_TOKENS, sampling))
        answer = builder.decode(written)
        history.add(prompt + written)
        yield Text(answer)
        tokens = self.model.stream(builder.prompt_tts(answer, wanted), "speech", MAX_NEW_TOKENS, sampling)
        yield from self._voiced(tokens, voice or self.voices(wanted)[0])

    def _question(self, prompt: list[int]) -> list[int]:
        """Tokens of the question's text, as the model hears it."""
        heard: list[int] = []
        for token in self.model.stream(prompt, "dialogue", MAX_NEW_TOKENS):
            if token == self.model.builder.answer_id:
                break
            heard.append(token)
        return heard[1:]

    def _voiced(
        self, tokens: Iterator[int], voice: str, on_token: Callable[[int], None] = lambda token: None
    ) -> Iterator[Text | Speech]:
        """Text and speech of an answer: each text as it is written, its sound as it is made."""
        builder = self.model.builder
        stream = self.decoder.stream(voice)
        text: list[int] = []
        units: list[int] = []
        making: deque[Future[Samples]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="speech decoder") as mouth:
            try:
                for token in tokens:
                    on_token(token)
                    if builder.is_unit(token):
                        units += builder.parse_units([token])
                    elif token == builder.speech_start_id:
                        if text:
                            yield Text(builder.decode(text))
                        text = []
                    elif token != builder.speech_end_id:
                        text.append(token)
                    if len(units) == PIECE_UNITS or (units and token == builder.speech_end_id):
                        making.append(mouth.submit(stream.push, units))
                        units = []
                    while making and making[0].done():
                        yield from _sound(making.popleft())
                if text:
                    yield Text(builder.decode(text))
                making.append(mouth.submit(stream.push, units))
                making.append(mouth.submit(stream.finish))
                while making:
                    yield from _sound(making.popleft())
            finally:
                mouth.shutdown(cancel_futures=True)

    def language_of(self, text: str) -> str:
        """The language of a text, out of those that the voices speak; the first if it is none of them."""
        return language_of(text, self.languages) or self.languages[0]


def _finished(said: list[int], speech_end: int) -> list[int]:
    """The chunks of an answer that are whole, text and speech."""
    return said[: len(said) - said[::-1].index(speech_end)] if speech_end in said else []


def _sound(made: Future[Samples]) -> Iterator[Speech]:
    if len(samples := made.result()):
        yield Speech(samples)
