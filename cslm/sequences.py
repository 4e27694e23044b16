"""Chat sequences of every task, and what generated ones mean.

A sequence is one user turn and one assistant turn in the chat template of Llama 3, or several of both (a talk).
Speech is `<sosp> units <eosp>`. The interleaved chain of modality answers a spoken question with

    [question] TQ [answer] TA1 <sosp> SA1 <eosp> TA2 <sosp> SA2 <eosp> ...

(text of the question; then text chunk, speech chunk, ...), the full chain with all text before all speech.
Loss is on the assistant's tokens only (paper, section 3.2).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from cslm.prompts import (
    ANSWER_PROMPT,
    ANSWER_PROMPTS,
    ASR_PROMPT,
    DIRECT_PROMPT,
    FULL_CHAIN_PROMPT,
    INPUT_PROMPT,
    LANGUAGE_NAMES,
    MT_PROMPT,
    REPEAT_PROMPT,
    TTS_PROMPT,
)
from cslm.vocabulary import ANSWER, QUESTION, SPEECH_END, SPEECH_START, unit_token

IGNORE = -100
MARK = "\x1a"
"""Stands for the words of a message, to find what the chat template puts around them."""
DATE = "26 Jul 2024"
"""For chat templates that name the day (Llama 3.1): what they say where there is no clock. So a prompt is the
same in training and later."""
LISTENING_DELAY = 1
Chain = Literal["interleaved", "full"]


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer: text, and the merged units that speak it."""

    text: str
    units: tuple[int, ...]


@dataclass(frozen=True)
class Sequence:
    """Token ids and labels (what is to be written there, else -100), equally long."""

    input_ids: list[int]
    labels: list[int]
    task: str
    language: str
    item: str = ""
    """Id of the utterance or row that it was made of."""
    understood: dict[int, int] = dataclasses.field(default_factory=dict)
    """Position in the user's turn -> the token of text that the model should know there, in its middle."""

    def of(self, item: str) -> Sequence:
        """The same sequence, made of `item`."""
        return dataclasses.replace(self, item=item)


@dataclass(frozen=True)
class Parsed:
    """A generated dialogue answer; `well_formed` if its markers open and close in legal order."""

    question: str
    chunks: tuple[Chunk, ...]
    well_formed: bool

    @property
    def text(self) -> str:
        """Text of the whole answer."""
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def units(self) -> list[int]:
        """Units of the whole answer."""
        return [unit for chunk in self.chunks for unit in chunk.units]


class ChatBuilder:
    """Written tasks, for any tokenizer with a chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.end_id: int = tokenizer.eos_token_id

    def mt(self, source: str, target: str, target_language: str) -> Sequence:
        """Text -> text of another language."""
        prompt = self.prompt_mt(source, target_language)
        return self._sequence(prompt, self.text_ids(target), "mt", target_language)

    def prompt_mt(self, source: str, target_language: str) -> list[int]:
        """Everything before the translation."""
        name = LANGUAGE_NAMES.get(target_language, target_language)
        return self._turn([MT_PROMPT.format(language=name) + source])

    def repeat(self, text: str, language: str) -> Sequence:
        """Text -> the same text."""
        prompt = self._turn([REPEAT_PROMPT + text])
        return self._sequence(prompt, self.text_ids(text), "repeat", language)

    def text(self, question: str, answer: str, language: str) -> Sequence:
        """Written question -> written answer."""
        return self._sequence(self.prompt_text(question), self.text_ids(answer), "text", language)

    def prompt_text(self, question: str) -> list[int]:
        """Everything before the written answer."""
        return self._turn([question])

    def text_ids(self, text: str) -> list[int]:
        """Tokens of `text`, without special tokens. Text that looks like a marker stays text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    def next_turn(self, turns: Iterable[SequenceOf[int]], prompt: SequenceOf[int]) -> list[int]:
        """`prompt` behind earlier turns; each is a prompt and its reply, without the end token."""
        talk = list(prompt)
        for turn in reversed(list(turns)):
            talk = [*turn, self.end_id, *self._header, *talk[len(self._template[0]) :]]
        return talk

    def joined(self, earlier: Sequence, later: Sequence) -> Sequence:
        """Two sequences as one talk; both replies are learned, and it is named after the later one."""
        ids = self.next_turn([earlier.input_ids[:-1]], later.input_ids)
        shift = len(ids) - len(later.input_ids)
        kept = len(ids) - len(earlier.input_ids) - len(self._header)
        labels = [*earlier.labels, *[IGNORE] * len(self._header), *later.labels[-kept:]]
        understood = earlier.understood | {place + shift: token for place, token in later.understood.items()}
        return dataclasses.replace(later, input_ids=ids, labels=labels, understood=understood)

    def _turn(self, parts: SequenceOf[str | SequenceOf[int]]) -> list[int]:
        """The user's turn and the header of the assistant's; a part is text or tokens."""
        body: list[int] = []
        for part in parts:
            body += self.text_ids(part) if isinstance(part, str) else part
        before, after = self._template
        return [*before, *body, *after]

    @functools.cached_property
    def _template(self) -> tuple[list[int], list[int]]:
        """Tokens of the chat template before and behind the user's words."""
        before, after = self._around({"role": "user", "content": MARK}, reply=True)
        return before, after

    @functools.cached_property
    def _header(self) -> list[int]:
        """Tokens of the chat template between the end token of a reply and the user's next words."""
        words = {"role": "user", "content": MARK}
        _, _, between, _ = self._around(words, {"role": "assistant", "content": MARK}, words)
        return between[between[0] == self.end_id :]

    def _around(self, *messages: dict[str, str], reply: bool = False) -> list[list[int]]:
        """Tokens of the chat template around the marks in the messages."""
        rendered = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=reply, date_string=DATE
        )
        parts = str(rendered).split(MARK)
        return [self.tokenizer.encode(part, add_special_tokens=False) for part in parts]

    def _sequence(self, prompt: list[int], reply: list[int], task: str, language: str) -> Sequence:
        reply = [*reply, self.end_id]
        return Sequence(prompt + reply, [IGNORE] * len(prompt) + reply, task, language)


class SequenceBuilder(ChatBuilder):
    """Builds and reads sequences for a tokenizer that was extended by `cslm.vocabulary.extend`.

    Raises:
        ValueError: the tokenizer has no speech tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        vocabulary = tokenizer.get_vocab()
        if SPEECH_START not in vocabulary:
            raise ValueError(f"the tokenizer has no {SPEECH_START}: extend it with cslm.vocabulary.extend")
        super().__init__(tokenizer)
        self.speech_start_id: int = vocabulary[SPEECH_START]
        self.speech_end_id: int = vocabulary[SPEECH_END]
        self.question_id: int = vocabulary[QUESTION]
        self.answer_id: int = vocabulary[ANSWER]
        self.units = next(unit for unit in itertools.count() if unit_token(unit) not in vocabulary)
        self.unit_ids = [vocabulary[unit_token(unit)] for unit in range(self.units)]
        self._unit_of_id = {token: unit for unit, token in enumerate(self.unit_ids)}

    def asr(
        self, units: SequenceOf[int], text: str, language: str, spoken: SequenceOf[int | None] = ()
    ) -> Sequence:
        """Speech -> its text. `spoken`: see `_listening`."""
        sequence = self._sequence(self.prompt_asr(units), self.text_ids(text), "asr", language)
        return self._listening(sequence, text, spoken)

    def prompt_asr(self, units: SequenceOf[int]) -> list[int]:
        """Everything before the transcript."""
        return self._turn([ASR_PROMPT, self.speech_ids(units)])

    def heard(self, units: SequenceOf[int]) -> tuple[list[int], slice]:
        """`prompt_asr`, and where in it the units are."""
        prompt = self.prompt_asr(units)
        first = prompt.index(self.speech_start_id) + 1
        return prompt, slice(first, first + len(units))

    def read(self, text: str) -> tuple[list[int], slice]:
        """`prompt_tts`, and where in it the text is."""
        prompt, empty = self.prompt_tts(text), self.prompt_tts("")
        _, after = self._template
        pairs = zip(prompt, empty[: -len(after)], strict=False)
        instruction = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
        return prompt, slice(len(list(instruction)), len(prompt) - len(after))

    def tts(self, text: str, units: SequenceOf[int], language: str) -> Sequence:
        """Text -> its speech."""
        return self._sequence(self.prompt_tts(text), self.speech_ids(units), "tts", language)

    def prompt_tts(self, text: str) -> list[int]:
        """Everything before the speech."""
        return self._turn([TTS_PROMPT + text])

    def dialogue(
        self,
        question_units: SequenceOf[int],
        question: str,
        chunks: SequenceOf[Chunk],
        question_language: str,
        answer_language: str,
        chain: Chain = "interleaved",
        spoken: SequenceOf[int | None] = (),
    ) -> Sequence:
        """Spoken question -> its text, then the answer in text and speech. `spoken`: see `_listening`."""
        prompt = self.prompt_dialogue(question_units, question_language, answer_language, chain)
        if chain == "full":
            chunks = [Chunk("".join(c.text for c in chunks), tuple(u for c in chunks for u in c.units))]
        reply = [self.question_id, *self.text_ids(question), self.answer_id]
        for chunk in chunks:
            reply += self.chunk_ids(chunk)
        task = "cross_lingual" if question_language != answer_language else "dialogue"
        name = task if chain == "interleaved" else "full_chain"
        return self._listening(self._sequence(prompt, reply, name, answer_language), question, spoken)

    def prompt_dialogue(
        self,
        question_units: SequenceOf[int],
        question_language: str | None,
        answer_language: str | None,
        chain: Chain = "interleaved",
    ) -> list[int]:
        """Everything before `[question]`. Equal languages ask for a direct answer, others for the language."""
        if question_language == answer_language:
            instruction = DIRECT_PROMPT
        else:
            language = str(answer_language)
            name = LANGUAGE_NAMES.get(language, language)
            instruction = ANSWER_PROMPTS.get(language, ANSWER_PROMPT.format(language=name))
        order = FULL_CHAIN_PROMPT if chain == "full" else ""
        return self._turn([instruction + order + INPUT_PROMPT, self.speech_ids(question_units)])

    def _listening(self, sequence: Sequence, text: str, spoken: SequenceOf[int | None]) -> Sequence:
        """Tell at the user's units which token of `text` they speak; `spoken` has a character of it for each.

        The paper trains on the assistant's tokens only, and on 77,000 hours. From few hours a model does not
        find out by itself which units make which words; the alignment tells it (benchmarks/log.md). A unit's
        token comes `LISTENING_DELAY` units after it: what follows a sound tells it apart.
        """
        if not spoken:
            return sequence
        tokens = self._tokens_of_characters(text)
        first = sequence.input_ids.index(self.speech_start_id) + 1 + LISTENING_DELAY
        heard = {
            position: tokens[character]
            for position, character in enumerate(spoken, first)
            if character is not None and character in tokens
        }
        return dataclasses.replace(sequence, understood=heard)

    def _tokens_of_characters(self, text: str) -> dict[int, int]:
        """Index of each character of `text` -> its token (the first, if it takes several)."""
        encoding = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        tokens: dict[int, int] = {}
        for token, (first, last) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
            for character in range(first, last):
                tokens.setdefault(character, token)
        return tokens

    def reading(self, sequence: Sequence) -> Sequence:
        """Tell at the user's words that they are themselves: read or heard, the model's middle has the same."""
        before, after = self._template
        reply = next(position for position, label in enumerate(sequence.labels) if label != IGNORE)
        words = range(len(before), reply - len(after))
        return dataclasses.replace(sequence, understood={place: sequence.input_ids[place] for place in words})

    def misheard(self, sequence: Sequence) -> Sequence:
        """The same dialogue without loss on the question's text: the speech before it says something else."""
        first, last = (sequence.input_ids.index(marker) for marker in (self.question_id, self.answer_id))
        labels = [IGNORE if first < place < last else label for place, label in enumerate(sequence.labels)]
        return dataclasses.replace(sequence, labels=labels)

    def misspoken(
        self, sequence: Sequence, share: float, others: deque[list[int]], rng: random.Random
    ) -> Sequence:
        """Make the model's own speech in `sequence` as poor as it may turn out to be.

        Of its stretches, `share` become one of `others`, without loss; in the rest `share` of units are read
        as any other, while the right ones stay to be written. `others` gets each stretch as it was.
        """
        ids: list[int] = []
        labels: list[int] = []
        stretch: list[int] = []
        writing = False
        for token, label in zip(sequence.input_ids, sequence.labels, strict=True):
            writing |= label != IGNORE
            if writing and token in self._unit_of_id:
                stretch.append(token)
                continue
            if stretch:
                if others and rng.random() < share:
                    wrong = rng.choice(others)
                    ids += wrong
                    labels += [IGNORE] * len(wrong)
                    label = IGNORE  # where it ends says nothing either
                else:
                    ids += [rng.choice(self.unit_ids) if rng.random() < share else unit for unit in stretch]
                    labels += stretch
                others.append(stretch)
                stretch = []
            ids.append(token)
            labels.append(label)
        return dataclasses.replace(sequence, input_ids=ids, labels=labels)

    def parse_dialogue(self, ids: SequenceOf[int]) -> Parsed:
        """Meaning of a generated answer; anything illegal is kept as text where it stands."""
        ids = [token for token in ids if token != self.end_id]
        legal = ids[:1] == [self.question_id]
        legal &= ids.count(self.question_id) == ids.count(self.answer_id) == 1
        split = ids.index(self.answer_id) if self.answer_id in ids else len(ids)
        question = self.decode(ids[:split])
        chunks: list[Chunk] = []
        text: list[int] = []
        units: list[int] = []
        speaking = False
        for token in ids[split + 1 :]:
            if token == self.speech_start_id:
                legal &= not speaking
                speaking = True
            elif token == self.speech_end_id:
                legal &= speaking
                chunks.append(Chunk(self.decode(text), tuple(units)))
                text, units, speaking = [], [], False
            elif token in self._unit_of_id:
                legal &= speaking
                units.append(self._unit_of_id[token])
            else:
                legal &= not speaking
                text.append(token)
        if text or units or speaking:
            legal = False
            chunks.append(Chunk(self.decode(text), tuple(units)))
        return Parsed(question, tuple(chunks), legal and bool(chunks))

    def parse_units(self, ids: SequenceOf[int]) -> list[int]:
        """Units of generated ids, without everything else."""
        return [self._unit_of_id[token] for token in ids if token in self._unit_of_id]

    def is_unit(self, token: int) -> bool:
        """True for the token of a speech unit."""
        return token in self._unit_of_id

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the tokens that are text, without speech and markers."""
        special = {self.speech_start_id, self.speech_end_id, self.question_id, self.answer_id}
        text = [token for token in ids if token not in special and token not in self._unit_of_id]
        return str(self.tokenizer.decode(text, skip_special_tokens=True))

    def chunk_ids(self, chunk: Chunk) -> list[int]:
        """Text of the chunk, then its speech."""
        return self.text_ids(chunk.text) + self.speech_ids(chunk.units)

    def speech_ids(self, units: SequenceOf[int]) -> list[int]:
        """`<sosp>`, the units, `<eosp>`."""
        return [self.speech_start_id, *(self.unit_ids[unit] for unit in units), self.speech_end_id]
