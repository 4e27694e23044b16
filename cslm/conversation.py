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

from cslm.audio import Samples
from cslm.decoder import SpeechDecoder
from cslm.generation import Sampling, SpeechLanguageModel
from cslm.languages import language_of
from cslm.limits import check_spoken, check_written, longest_s
from cslm.questions import NoQuestion, hear
from cslm.sequences import Chain
from cslm.tokenizer import Tokenizer, open_tokenizer

PIECE_UNITS = 16
"""Units (about 0.6 s) that the decoder gets at once."""
PIECE_TOKENS = 8
"""Tokens of a written answer that are told at once."""
MAX_NEW_TOKENS = 768
"""Of an answer, or as many as the rows that the model was trained on have, if those are longer."""
CUT = "…"
"""What an answer ends with that is longer."""
HALF = "\ufffd"
"""What the end of a text is decoded to where the rest of a character is in a token to come."""
REMEMBERED_TOKENS = 256
"""Of earlier turns, by default: half of what the sample model has learnt to read at once."""


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
    """Sound of the answer that follows the last: samples at 16 kHz, and its units (runs merged)."""

    samples: Samples
    units: tuple[int, ...] = ()


@dataclass(frozen=True)
class Refused:
    """Why there is no answer, in words for the person who asked."""

    text: str


Event = Heard | Text | Speech | Refused


@dataclass
class History:
    """The earlier turns of one talk, as tokens; the oldest are forgotten where they are more than `longest`.

    The last one stays, however long it is: an answer has room for what fits (`fitting`).
    """

    longest: int = REMEMBERED_TOKENS
    turns: list[list[int]] = field(default_factory=list)

    def add(self, turn: list[int]) -> None:
        """Remember a question with its answer."""
        self.turns.append(turn)
        while len(self.turns) > 1 and sum(map(len, self.turns)) > self.longest:
            self.turns.pop(0)

    def fitting(self, room: int) -> list[list[int]]:
        """The latest turns that have `room` tokens at most."""
        first, left = len(self.turns), room
        while first and len(self.turns[first - 1]) <= left:
            first -= 1
            left -= len(self.turns[first])
        return self.turns[first:]


class UnknownLanguage(ValueError):
    """A language that the model does not answer in; the message lists those it does."""


class Assistant:
    """A language model with ears and a mouth."""

    def __init__(self, model: SpeechLanguageModel, tokenizer: Tokenizer, decoder: SpeechDecoder) -> None:
        self.model, self.tokenizer, self.decoder = model, tokenizer, decoder
        self.languages = sorted(set(decoder.config.voices.values()))

    @classmethod
    def load(cls, model: Path, tokenizer: Path, decoder: Path) -> Assistant:
        """Open the three parts from their folders.

        Raises:
            FileNotFoundError: one of them is not there.
            ValueError: the decoder speaks the units of another tokenizer.
        """
        hearing, speaking = open_tokenizer(tokenizer), SpeechDecoder.load(decoder)
        if speaking.config.tokenizer != hearing.fingerprint:
            raise ValueError(
                f"the decoder in {decoder} speaks the units of another tokenizer than {tokenizer}: take the "
                "two that were trained together"
            )
        return cls(SpeechLanguageModel.load(model), hearing, speaking)

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
        try:
            units = hear(question, self.tokenizer, answer_language, longest_s(self.model))
            check_spoken(units, self.model, answer_language)
        except NoQuestion as reason:
            yield Refused(str(reason))
            return
        yield from self._spoken_answer(units, answer_language, voice, chain, history or History(), sampling)

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
        prompt = builder.prompt_dialogue(units, None, None, chain)
        earlier = self._earlier(history, prompt)
        heard = self._question(builder.next_turn(earlier, prompt))
        text = builder.decode(heard)
        yield Heard(text)
        asked = self.language_of(text)
        wanted = answer_language or asked
        if wanted != asked:
            prompt = builder.prompt_dialogue(units, asked, wanted, chain)
        begun = [*prompt, builder.question_id, *heard, builder.answer_id]
        tokens = self.model.stream(builder.next_turn(earlier, begun), "answer", self._most, sampling)
        said: list[int] = []
        try:
            yield from self._voiced(tokens, voice or self.decoder.natives(wanted)[0], said.append)
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
        try:
            check_written(question, self.model, wanted)
        except NoQuestion as reason:
            yield Refused(str(reason))
            return
        yield Heard(question)
        if wanted != asked:
            translated = self.model.stream(builder.prompt_mt(question, wanted), "text", self._most)
            question = builder.decode(translated)
        history = history or History()
        prompt = builder.prompt_text(question)
        told = builder.next_turn(self._earlier(history, prompt), prompt)
        written: list[int] = []
        yield from self._told(self.model.stream(told, "text", self._most, sampling), written)
        history.add(prompt + written)
        answer = builder.decode(written)
        if not answer.strip():
            return
        tokens = self.model.stream(builder.prompt_tts(answer), "speech", self._most, sampling)
        yield from self._voiced(tokens, voice or self.decoder.natives(wanted)[0])

    def _earlier(self, history: History, prompt: list[int]) -> list[list[int]]:
        """Turns to be put before a prompt: with it and a reply as long, no more than the model has learnt."""
        return history.fitting(self.model.longest - 2 * len(prompt))

    @property
    def _most(self) -> int:
        return max(MAX_NEW_TOKENS, self.model.longest)

    def _question(self, prompt: list[int]) -> list[int]:
        """Tokens of the question's text, as the model hears it."""
        heard: list[int] = []
        for token in self.model.stream(prompt, "dialogue", self._most):
            if token == self.model.builder.answer_id:
                break
            heard.append(token)
        return heard[1:]

    def _told(self, tokens: Iterator[int], written: list[int]) -> Iterator[Text]:
        """Text of a written answer, a few tokens at a time, which are `written` then.

        No piece ends within a character.
        """
        builder = self.model.builder
        told = 0
        for token in tokens:
            written.append(token)
            if len(written) - told < PIECE_TOKENS or (text := builder.decode(written[told:])).endswith(HALF):
                continue
            yield Text(text)
            told = len(written)
        cut = CUT if len(written) == self._most else ""
        if told < len(written) or cut or not written:
            yield Text(builder.decode(written[told:]) + cut)

    def _voiced(
        self, tokens: Iterator[int], voice: str, on_token: Callable[[int], None] = lambda token: None
    ) -> Iterator[Text | Speech]:
        """Text and speech of an answer: each text as it is written, its sound as it is made."""
        builder = self.model.builder
        stream = self.decoder.stream(voice)
        text: list[int] = []
        units: list[int] = []
        given: list[int] = []  # to the decoder, and not heard yet
        cut = False
        making: deque[Future[Speech]] = deque()

        def speak(piece: list[int], last: bool = False) -> Speech:
            given.extend(piece)
            samples = stream.finish() if last else stream.push(piece)
            heard = tuple(given) if len(samples) else ()
            del given[: len(heard)]
            return Speech(samples, heard)

        with ThreadPoolExecutor(1, thread_name_prefix="speech decoder") as mouth:
            try:
                for count, token in enumerate(tokens, start=1):
                    on_token(token)
                    cut = count == self._most
                    if builder.is_unit(token):
                        units += builder.parse_units([token])
                    elif token == builder.speech_start_id:
                        if text:
                            yield Text(builder.decode(text))
                        text = []
                    elif token != builder.speech_end_id:
                        text.append(token)
                    if len(units) == PIECE_UNITS or (units and token == builder.speech_end_id):
                        making.append(mouth.submit(speak, units))
                        units = []
                    while making and making[0].done():
                        yield from _sound(making.popleft())
                if text or cut:
                    yield Text(builder.decode(text) + (CUT if cut else ""))
                making.append(mouth.submit(speak, units))
                making.append(mouth.submit(speak, [], last=True))
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


def _sound(made: Future[Speech]) -> Iterator[Speech]:
    speech = made.result()
    if len(speech.samples):
        yield speech
