"""Chat sequences of every task, and what generated ones mean.

A sequence is one user turn and one assistant turn in the chat template of Llama 3. Speech is
`<sosp> units <eosp>`. The interleaved chain of modality answers a spoken question with

    [question] TQ [answer] TA1 <sosp> SA1 <eosp> TA2 <sosp> SA2 <eosp> ...

(text of the question; then text chunk, speech chunk, ...), the full chain with all text before all speech.
Loss is on the assistant's tokens only (paper, section 3.2). Prompts are those of github.com/ictnlp/CSLM.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from cslm.vocabulary import ANSWER, QUESTION, SPEECH_END, SPEECH_START, unit_token

IGNORE = -100
LISTENING_DELAY = 1
Chain = Literal["interleaved", "full"]

LANGUAGE_NAMES = {"en": "English", "zh": "Chinese"}
ASR_PROMPT = "Please transcribe the speech to text. This is input: "
TTS_PROMPT = "Please read the text aloud. This is input: "
REPEAT_PROMPT = "Please repeat the text. This is input: "
MT_PROMPT = "Please translate the text to {language}. This is input: "
DIRECT_PROMPT = "Please directly answer the questions in the user's speech."
ANSWER_PROMPT = "Please answer the questions in the user's speech in {language}."
ANSWER_PROMPTS = {"zh": "用中文回答用户语音中的问题。"}
FULL_CHAIN_PROMPT = " Write the whole answer before you speak."
INPUT_PROMPT = " This is input: "
PROMPTS = (
    ASR_PROMPT,
    TTS_PROMPT,
    REPEAT_PROMPT,
    *(MT_PROMPT.format(language=name) for name in LANGUAGE_NAMES.values()),
    DIRECT_PROMPT,
    *(ANSWER_PROMPT.format(language=name) for name in LANGUAGE_NAMES.values()),
    *ANSWER_PROMPTS.values(),
    FULL_CHAIN_PROMPT,
    INPUT_PROMPT,
)
"""The pieces that prompts are made of, for a tokenizer that gives each a token of its own."""


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer: text, and the merged units that speak it."""

    text: str
    units: tuple[int, ...]


@dataclass(frozen=True)
class Sequence:
    """Token ids and labels (the id where there is loss, else -100), equally long."""

    input_ids: list[int]
    labels: list[int]
    task: str
    language: str
    item: str = ""
    """Id of the utterance or row that it was made of."""

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

    def mt(self, source: str, target: str, source_language: str, target_language: str) -> Sequence:
        """Text -> text of another language."""
        prompt = self.prompt_mt(source, source_language, target_language)
        return self._sequence(prompt, self.text_ids(target), "mt", target_language)

    def prompt_mt(self, source: str, source_language: str, target_language: str) -> list[int]:
        """Everything before the translation."""
        name = LANGUAGE_NAMES.get(target_language, target_language)
        return self._turn([MT_PROMPT.format(language=name) + source])

    def repeat(self, text: str, language: str) -> Sequence:
        """Text -> the same text."""
        prompt = self._turn([REPEAT_PROMPT + text])
        return self._sequence(prompt, self.text_ids(text), "repeat", language)

    def text(self, question: str, answer: str, language: str) -> Sequence:
        """Written question -> written answer."""
        return self._sequence(self.prompt_text(question, language), self.text_ids(answer), "text", language)

    def prompt_text(self, question: str, language: str | None) -> list[int]:
        """Everything before the written answer."""
        return self._turn([question])

    def text_ids(self, text: str) -> list[int]:
        """Tokens of `text`, without special tokens. Text that looks like a marker stays text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

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
        mark = "\x1a"
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
        )
        before, after = str(rendered).split(mark)
        encode = functools.partial(self.tokenizer.encode, add_special_tokens=False)
        return encode(before), encode(after)

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
        self._character_labels: dict[str, int] = {}

    def asr(self, units: SequenceOf[int], text: str, language: str, spoken: SequenceOf[str] = ()) -> Sequence:
        """Speech -> its text. `spoken`: see `_listening`."""
        sequence = self._sequence(self.prompt_asr(units, language), self.text_ids(text), "asr", language)
        return self._listening(sequence, spoken)

    def prompt_asr(self, units: SequenceOf[int], language: str) -> list[int]:
        """Everything before the transcript."""
        return self._turn([ASR_PROMPT, self.speech_ids(units)])

    def tts(self, text: str, units: SequenceOf[int], language: str) -> Sequence:
        """Text -> its speech."""
        return self._sequence(self.prompt_tts(text, language), self.speech_ids(units), "tts", language)

    def prompt_tts(self, text: str, language: str) -> list[int]:
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
        spoken: SequenceOf[str] = (),
    ) -> Sequence:
        """Spoken question -> its text, then the answer in text and speech. `spoken`: see `_listening`."""
        prompt = self.prompt_dialogue(question_units, question_language, answer_language, chain)
        if chain == "full":
            chunks = [Chunk("".join(c.text for c in chunks), tuple(u for c in chunks for u in c.units))]
        reply = [self.question_id, *self.text_ids(question), self.answer_id]
        for chunk in chunks:
            reply += self.text_ids(chunk.text) + self.speech_ids(chunk.units)
        task = "cross_lingual" if question_language != answer_language else "dialogue"
        name = task if chain == "interleaved" else "full_chain"
        return self._listening(self._sequence(prompt, reply, name, answer_language), spoken)

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

    def _listening(self, sequence: Sequence, spoken: SequenceOf[str]) -> Sequence:
        """Label the user's units with the characters that they speak: one a unit, empty if unknown, or none.

        The paper trains on the assistant's tokens only, and on 77,000 hours. From few hours a model does not
        find out by itself which units make which letters; the alignment tells it (benchmarks/log.md). A unit's
        label comes `LISTENING_DELAY` units after it: what follows a sound tells it apart.
        """
        if not spoken:
            return sequence
        labels = list(sequence.labels)
        first = sequence.input_ids.index(self.speech_start_id) + 1 + LISTENING_DELAY + 1
        for position, character in enumerate(spoken[: len(spoken) - LISTENING_DELAY], first):
            labels[position] = self._character_label(character)
        return dataclasses.replace(sequence, labels=labels)

    def _character_label(self, character: str) -> int:
        """The token of a character; no label if it takes several."""
        if character not in self._character_labels:
            ids = self.text_ids(character.lower())
            self._character_labels[character] = ids[0] if len(ids) == 1 else IGNORE
        return self._character_labels[character]

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

    def parse_text(self, ids: SequenceOf[int]) -> str:
        """Written text of generated ids, without speech and markers."""
        return self.decode(ids)

    def parse_units(self, ids: SequenceOf[int]) -> list[int]:
        """Units of generated ids, without everything else."""
        return [self._unit_of_id[token] for token in ids if token in self._unit_of_id]

    def is_unit(self, token: int) -> bool:
        """True for the token of a speech unit."""
        return token in self._unit_of_id

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the tokens that are text."""
        special = {self.speech_start_id, self.speech_end_id, self.question_id, self.answer_id}
        text = [token for token in ids if token not in special and token not in self._unit_of_id]
        return str(self.tokenizer.decode(text, skip_special_tokens=True))

    def speech_ids(self, units: SequenceOf[int]) -> list[int]:
        """`<sosp>`, the units, `<eosp>`."""
        return [self.speech_start_id, *(self.unit_ids[unit] for unit in units), self.speech_end_id]
