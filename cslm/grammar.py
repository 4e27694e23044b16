"""Which tokens a reply may go on with, so that no reply is ever unparseable.

A written reply is text. A dialogue reply is

    [question] TQ [answer] TA1 <sosp> SA1 <eosp> TA2 <sosp> SA2 <eosp> ... <end>

with at least one chunk, in which text comes before speech (the full chain has just one); what is read aloud is
`<sosp> units <eosp> <end>`, and an `answer` is what comes behind [answer]. A model that was
trained on such sequences keeps to them nearly always; where it would not, its most probable legal token is
taken instead (constrained decoding). Nor does a reply go round in circles: what was said `REPEATS` times in a
row is not begun again, and a text that shuffles the same few words is brought to its end. Text of a dialogue is
spoken before it gets long, and speech has at least one unit, and no more than its text can need. The phrases
that instructions are made of are no text of a reply.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

import torch
from torch import Tensor

from cslm.prompts import LANGUAGE_NAMES, prompts
from cslm.sequences import SequenceBuilder

Reply = Literal["text", "dialogue", "answer", "speech"]

UNITS_PER_TOKEN, MORE_UNITS = 20, 30
"""A stretch of speech has at most 20 units (0.8 s and more) for each token of its text, and 30 units.
In the sample corpus 99.9 % have at most 8.8 a token (English) or 5.5 (Chinese)."""

LONGEST_TEXT = 150
"""Tokens of a question's text, or of a chunk's: then the answer begins, or its speech. A chunk of seven words
has some 40 at most, spelled in bytes; the full chain has its whole answer in one."""

LONGEST_CYCLE, REPEATS = 16, 3
"""No cycle of up to 16 tokens of text, or of units in a stretch, is gone through more than three times; but a
number may have as many equal digits as it likes."""
BLANKS = "\u0120\u2581 "
"""How tokenizers write the blank before a word."""

RAMBLING, DIFFERENT = 64, 16
"""A text of which the last 64 tokens are 16 at most goes on no more. Prose has twice as many, and lists too."""

Pick = Callable[[Tensor], Tensor]
"""Scores (n, V) of the tokens that may come next, -inf where they may not -> the token of each row (n,)."""


class Kind(IntEnum):
    """What a token is to the grammar."""

    TEXT = 0
    QUESTION = 1
    ANSWER = 2
    SPEECH_START = 3
    UNIT = 4
    SPEECH_END = 5
    END = 6
    NEVER = 7


class State(IntEnum):
    """Where in a reply."""

    WRITTEN = 0  # a written reply, anywhere
    BEGIN = 1  # a dialogue reply, before its first token
    ASKED = 2  # in TQ
    ANSWERED = 3  # behind [answer]: no text yet
    CHUNK = 4  # in TA
    SPEAKING = 5  # in SA
    PAUSE = 6  # behind <eosp>
    SILENT = 7  # a spoken reply, before its first token
    READING = 8  # in its speech
    READ = 9  # behind its <eosp>


RULES: dict[State, dict[Kind, State]] = {
    State.WRITTEN: {Kind.TEXT: State.WRITTEN, Kind.END: State.WRITTEN},
    State.BEGIN: {Kind.QUESTION: State.ASKED},
    State.ASKED: {Kind.TEXT: State.ASKED, Kind.ANSWER: State.ANSWERED},
    State.ANSWERED: {Kind.TEXT: State.CHUNK},
    State.CHUNK: {Kind.TEXT: State.CHUNK, Kind.SPEECH_START: State.SPEAKING},
    State.SPEAKING: {Kind.UNIT: State.SPEAKING, Kind.SPEECH_END: State.PAUSE},
    State.PAUSE: {Kind.TEXT: State.CHUNK, Kind.END: State.PAUSE},
    State.SILENT: {Kind.SPEECH_START: State.READING},
    State.READING: {Kind.UNIT: State.READING, Kind.SPEECH_END: State.READ},
    State.READ: {Kind.END: State.READ},
}


BEGINNINGS: dict[Reply, State] = {
    "text": State.WRITTEN,
    "dialogue": State.BEGIN,
    "answer": State.ANSWERED,
    "speech": State.SILENT,
}


@dataclass
class Position:
    """One reply so far: its state, text tokens of TQ, of the chunk or of what is read, all its text, and the
    stretch of speech."""

    state: State
    tokens: int = 0
    text: list[int] = field(default_factory=list)
    speech: list[int] = field(default_factory=list)


class Grammar:
    """The rules for the tokens of one vocabulary of `size` rows."""

    def __init__(self, builder: SequenceBuilder, size: int) -> None:
        kinds = [Kind.TEXT] * len(builder.tokenizer) + [Kind.NEVER] * (size - len(builder.tokenizer))
        for token, added in builder.tokenizer.added_tokens_decoder.items():
            if added.special:
                kinds[token] = Kind.NEVER
        for phrase in prompts(LANGUAGE_NAMES):
            if len(tokens := builder.text_ids(phrase)) == 1:  # a tokenizer of our own has one for each
                kinds[tokens[0]] = Kind.NEVER
        for token in builder.unit_ids:
            kinds[token] = Kind.UNIT
        kinds[builder.question_id], kinds[builder.answer_id] = Kind.QUESTION, Kind.ANSWER
        kinds[builder.speech_start_id], kinds[builder.speech_end_id] = Kind.SPEECH_START, Kind.SPEECH_END
        kinds[builder.end_id] = Kind.END
        self._kinds, self._speech_end = kinds, builder.speech_end_id
        known = builder.tokenizer.get_vocab().items()
        self._digits = {token for text, token in known if text.strip(BLANKS).isdigit()}
        self._instruction = len(builder.prompt_tts(""))
        self._text = torch.tensor([kind == Kind.TEXT for kind in kinds])
        self._units = torch.tensor([kind == Kind.UNIT for kind in kinds])
        self._illegal = torch.tensor([[kind not in RULES[state] for kind in kinds] for state in State])

    def begin(self, reply: Reply, prompt: SequenceOf[int]) -> Position:
        """A reply of which nothing is there yet; the text of what is read aloud stands in its prompt."""
        tokens = len(prompt) - self._instruction if reply == "speech" else 0
        return Position(BEGINNINGS[reply], max(0, tokens))

    def choose(self, logits: Tensor, positions: list[Position], pick: Pick) -> list[int]:
        """A legal token for each row of `logits` (n, V), as `pick` prefers; `positions` move on behind it."""
        illegal = self._illegal[[position.state for position in positions]]
        for row, position in enumerate(positions):
            for token in (circling(position.text) - self._digits) | circling(position.speech):
                illegal[row, token] = True
            long = position.state in (State.ASKED, State.CHUNK) and position.tokens >= LONGEST_TEXT
            if long or (rambling(position.text) and position.state != State.ANSWERED):
                illegal[row] |= self._text
            if len(position.speech) >= UNITS_PER_TOKEN * position.tokens + MORE_UNITS:
                illegal[row] |= self._units
            if not position.speech:
                illegal[row, self._speech_end] = True
        tokens: list[int] = pick(logits.masked_fill(illegal.to(logits.device), float("-inf"))).tolist()
        for position, token in zip(positions, tokens, strict=True):
            self._advance(position, token)
        return tokens

    def _advance(self, position: Position, token: int) -> None:
        kind = self._kinds[token]
        position.state = RULES[position.state][kind]
        if kind in (Kind.ANSWER, Kind.SPEECH_END):
            position.tokens, position.speech = 0, []
        if kind == Kind.TEXT:
            position.tokens += 1
            position.text.append(token)
        if kind == Kind.UNIT:
            position.speech.append(token)


def greedy(scores: Tensor) -> Tensor:
    """The most probable token of each row."""
    return scores.argmax(-1)


def rambling(tokens: SequenceOf[int]) -> bool:
    """Whether `tokens` end in few that come again and again, in whatever order."""
    return len(tokens) >= RAMBLING and len(set(tokens[-RAMBLING:])) <= DIFFERENT


def circling(tokens: SequenceOf[int]) -> set[int]:
    """What would go on with a cycle that `tokens` have just gone through `REPEATS` times."""
    found = set()
    for length in range(1, min(LONGEST_CYCLE, len(tokens) // REPEATS) + 1):
        cycle = tokens[-length:]
        if tokens[-REPEATS * length :] == [*cycle] * REPEATS:
            found.add(cycle[0])
    return found
