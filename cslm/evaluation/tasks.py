"""The model's tasks on held-out items: what it was given, what it said, and how right that was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from cslm.evaluation.answers import exact_match, off_target, token_f1, written_language
from cslm.evaluation.error_rates import Errors, count_errors
from cslm.evaluation.held_out import Dialogue, Translation, Utterance, grouped
from cslm.evaluation.normalization import LanguageRules
from cslm.generation import SpeechLanguageModel
from cslm.grammar import Reply
from cslm.sequences import Chain, Parsed

Progress = Callable[[str, int, int], None]
"""Called as progress("asr en", done, total)."""

ROOM = 2
"""An answer may take so many times the tokens of the longest reference before it is cut off."""
SPARE_TOKENS = 16
UNITS_PER_TOKEN = 10.0
"""Speech units per text token where there is no speech to learn it from."""


@dataclass(frozen=True)
class Transcript:
    """An utterance as the model wrote it down."""

    utterance: Utterance
    text: str
    errors: Errors


@dataclass(frozen=True)
class Answer:
    """The answer to a spoken question, and its judgment."""

    dialogue: Dialogue
    parsed: Parsed
    question_errors: Errors
    right: bool
    f1: float
    off_target: bool
    language: str
    """That it is written in, out of those of the evaluation; empty if it is none of them."""


@dataclass(frozen=True)
class WrittenAnswer:
    """The answer to a written question."""

    dialogue: Dialogue
    text: str
    right: bool


@dataclass(frozen=True)
class Translated:
    """A translation by the model."""

    translation: Translation
    text: str


class Evaluator:
    """Runs one model on held-out items, greedily and in batches."""

    def __init__(
        self,
        model: SpeechLanguageModel,
        rules: Mapping[str, LanguageRules],
        batch_size: int,
        progress: Progress = lambda name, done, total: None,
        chain: Chain = "interleaved",
    ) -> None:
        self.model, self.rules, self.batch_size, self.progress = model, rules, batch_size, progress
        self.chain = chain

    def transcribe(self, utterances: Iterable[Utterance]) -> list[Transcript]:
        """Speech to text."""
        transcripts = []
        for language, group in grouped(utterances, lambda utterance: utterance.language).items():
            prompts = [self.model.builder.prompt_asr(list(u.units)) for u in group]
            room = self._room(self._tokens(u.text) for u in group)
            for utterance, ids in zip(group, self._run(f"asr {language}", prompts, "text", room), strict=True):
                text = self.model.builder.decode(ids)
                errors = count_errors(utterance.text, text, self.rules[language])
                transcripts.append(Transcript(utterance, text, errors))
        return transcripts

    def converse(
        self,
        dialogues: Iterable[Dialogue],
        units_per_token: float,
        earlier: Mapping[str, list[int]] = MappingProxyType({}),
    ) -> list[Answer]:
        """Spoken questions to text and speech; `earlier` has a turn that comes before, by id."""
        answers = []
        for (asked, wanted), group in grouped(dialogues, lambda dialogue: dialogue.pair).items():
            prompts = [self._asked(d, [earlier[d.id]] if d.id in earlier else []) for d in group]
            room = self.dialogue_room(group, units_per_token)
            name = f"conversation {asked} to {wanted}"
            for dialogue, ids in zip(group, self._run(name, prompts, "dialogue", room), strict=True):
                answers.append(self._judge(dialogue, self.model.builder.parse_dialogue(ids)))
        return answers

    def converse_later(self, answers: Sequence[Answer], units_per_token: float) -> list[Answer]:
        """The same questions, each behind another one of them and what the model answered to that."""
        builder = self.model.builder
        told = [
            self._asked(answer.dialogue, [])
            + [builder.question_id, *builder.text_ids(answer.parsed.question), builder.answer_id]
            + [token for chunk in answer.parsed.chunks for token in builder.chunk_ids(chunk)]
            for answer in answers
        ]
        shift = max(1, len(answers) // 2 - 1)  # mostly another language, and never the same words
        others = told[shift:] + told[:shift]
        earlier = {answer.dialogue.id: turn for answer, turn in zip(answers, others, strict=True)}
        return self.converse([answer.dialogue for answer in answers], units_per_token, earlier)

    def _asked(self, dialogue: Dialogue, earlier: list[list[int]]) -> list[int]:
        builder = self.model.builder
        prompt = builder.prompt_dialogue(list(dialogue.question_units), *dialogue.pair, self.chain)
        return builder.next_turn(earlier, prompt)

    def _judge(self, dialogue: Dialogue, parsed: Parsed) -> Answer:
        asked, wanted = (self.rules[language] for language in dialogue.pair)
        return Answer(
            dialogue,
            parsed,
            count_errors(dialogue.question, parsed.question, asked),
            exact_match(dialogue.answer, parsed.text, wanted),
            token_f1(dialogue.answer, parsed.text, wanted),
            off_target(parsed.text, wanted, list(self.rules)),
            written_language(parsed.text, list(self.rules)),
        )

    def answer_written(self, dialogues: Iterable[Dialogue]) -> list[WrittenAnswer]:
        """Written questions to written answers in the same language."""
        answers = []
        for language, group in grouped(dialogues, lambda dialogue: dialogue.question_language).items():
            prompts = [self.model.builder.prompt_text(d.question) for d in group]
            room = self._room(self._tokens(d.answer) for d in group)
            for dialogue, ids in zip(group, self._run(f"text {language}", prompts, "text", room), strict=True):
                text = self.model.builder.decode(ids)
                right = exact_match(dialogue.answer, text, self.rules[language])
                answers.append(WrittenAnswer(dialogue, text, right))
        return answers

    def translate(self, translations: Iterable[Translation]) -> list[Translated]:
        """Text to text of another language."""
        done = []
        pairs = grouped(translations, lambda t: (t.source_language, t.target_language))
        for (source, target), group in pairs.items():
            prompts = [self.model.builder.prompt_mt(t.source, target) for t in group]
            room = self._room(self._tokens(t.target) for t in group)
            for item, ids in zip(
                group, self._run(f"mt {source} to {target}", prompts, "text", room), strict=True
            ):
                done.append(Translated(item, self.model.builder.decode(ids)))
        return done

    def read_aloud(self, utterances: Sequence[Utterance]) -> dict[str, list[int]]:
        """Text to speech: id of each utterance -> the units that the model reads its text with."""
        read: dict[str, list[int]] = {}
        for language, group in grouped(utterances, lambda utterance: utterance.language).items():
            prompts = [self.model.builder.prompt_tts(u.text) for u in group]
            room = self._room(len(u.units) for u in group)
            for utterance, ids in zip(
                group, self._run(f"tts {language}", prompts, "speech", room), strict=True
            ):
                read[utterance.id] = self.model.builder.parse_units(ids)
        return read

    def units_per_token(self, utterances: Sequence[Utterance]) -> float:
        """Speech units that a text token takes."""
        units = sum(len(utterance.units) for utterance in utterances)
        return units / sum(self._tokens(u.text) for u in utterances) if units else UNITS_PER_TOKEN

    def dialogue_room(self, dialogues: Iterable[Dialogue], units_per_token: float) -> int:
        """Tokens that a spoken answer with the text of its question may take."""
        return self._room(
            self._tokens(d.question) + int(self._tokens(d.answer) * (1 + units_per_token)) for d in dialogues
        )

    def _room(self, lengths: Iterable[int]) -> int:
        return ROOM * max(lengths) + SPARE_TOKENS

    def _tokens(self, text: str) -> int:
        return len(self.model.tokenizer.encode(text, add_special_tokens=False))

    def _run(self, name: str, prompts: list[list[int]], reply: Reply, max_new_tokens: int) -> list[list[int]]:
        total = len(prompts)
        self.progress(name, 0, total)
        return self.model.generate(
            prompts, reply, max_new_tokens, self.batch_size, lambda done: self.progress(name, done, total)
        )
