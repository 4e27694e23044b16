"""Tasks and sums with a model that says what the test tells it to."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cslm.evaluation import summary
from cslm.evaluation.held_out import Dialogue, Translation, Utterance
from cslm.evaluation.normalization import rules_for
from cslm.evaluation.tasks import Evaluator
from cslm.generation import SpeechLanguageModel
from cslm.sequences import Chunk

RULES = {language: rules_for(language) for language in ("en", "zh")}


class Told:
    """Answers each prompt from a table instead of by its weights."""

    def __init__(self, model: SpeechLanguageModel) -> None:
        self.builder, self.tokenizer = model.builder, model.tokenizer
        self.replies: dict[tuple[int, ...], list[int]] = {}

    def tell(self, prompt: list[int], reply: list[int]) -> None:
        self.replies[tuple(prompt)] = reply

    def generate(
        self,
        prompts: list[list[int]],
        reply: str,
        max_new_tokens: int,
        batch_size: int,
        on_batch: Callable[[int], None],
    ) -> list[list[int]]:
        replies = [self.replies[tuple(prompt)][:max_new_tokens] for prompt in prompts]
        on_batch(len(prompts))
        return replies


@pytest.fixture
def told(model: SpeechLanguageModel) -> Told:
    return Told(model)


@pytest.fixture
def evaluator(told: Told) -> Evaluator:
    return Evaluator(told, RULES, batch_size=2)  # type: ignore[arg-type]  # stands in for the model


def _say(told: Told, dialogue: Dialogue, question: str, *chunks: Chunk) -> None:
    pair = dialogue.pair
    sequence = told.builder.dialogue(
        list(dialogue.question_units), question, list(chunks), *pair, "interleaved"
    )
    prompt = told.builder.prompt_dialogue(list(dialogue.question_units), *pair, "interleaved")
    told.tell(prompt, sequence.input_ids[len(prompt) : -1])


def test_transcripts(told: Told, evaluator: Evaluator, utterances: list[Utterance]) -> None:
    heard = ["what is the capitol of france", "Is it far?", "法国首都是哪里"]
    for utterance, text in zip(utterances, heard, strict=True):
        told.tell(told.builder.prompt_asr(list(utterance.units)), told.tokenizer.encode(text))
    metrics = summary.transcription(evaluator.transcribe(utterances), RULES, seed=1)
    assert metrics["en"]["wer"] == pytest.approx(1 / 9)
    assert (metrics["en"]["n"], metrics["en"]["words"]) == (2, 9)
    assert metrics["zh"]["cer"] == pytest.approx(1 / 8)
    assert metrics["en"]["ci95"][0] <= 1 / 9 <= metrics["en"]["ci95"][1]


def test_conversation(told: Told, evaluator: Evaluator, dialogues: list[Dialogue]) -> None:
    _say(told, dialogues[0], "What is the capital of France?", Chunk("It is ", (1,)), Chunk("Paris.", (2, 3)))
    _say(told, dialogues[1], "Is it car?", Chunk("Not far.", (4,)))
    _say(told, dialogues[2], "法国的首都是哪里？", Chunk("是里昂。", (5, 6)))
    answers = evaluator.converse(dialogues, units_per_token=3)
    metrics = summary.conversation(answers, seed=1)
    assert metrics["conversation"]["en"]["exact_match"] == 1
    assert (
        metrics["conversation"]["zh"] | {"exact_match": 0, "f1": 1 / 3, "off_target": 0, "n": 1}
        == metrics["conversation"]["zh"]
    )
    assert metrics["cross_lingual"]["en_zh"]["off_target"] == 1
    assert "zh_en" not in metrics["cross_lingual"]
    questions = summary.question_transcription(answers, RULES, seed=1)
    assert questions["en"]["wer"] == pytest.approx(1 / 9)
    assert questions["zh"]["cer"] == 0
    assert [len(c.units) for c in answers[0].parsed.chunks] == [1, 2]


def test_a_later_question_comes_behind_another_and_its_answer(
    told: Told, evaluator: Evaluator, dialogues: list[Dialogue]
) -> None:
    replies = ("It is Paris.", "Not far.", "是巴黎。")
    for dialogue, reply in zip(dialogues, replies, strict=True):
        _say(told, dialogue, dialogue.question, Chunk(reply, (1, 2)))
    answers = evaluator.converse(dialogues, units_per_token=3)
    alone = dict(told.replies)
    told.replies.clear()
    for (prompt, reply), (before, said) in zip(
        alone.items(), [*list(alone.items())[1:], next(iter(alone.items()))], strict=True
    ):
        told.tell(told.builder.next_turn([[*before, *said]], list(prompt)), reply)
    later = evaluator.converse_later(answers, units_per_token=3)
    assert [answer.parsed.text for answer in later] == [answer.parsed.text for answer in answers]
    right = sum(answer.right for answer in answers)
    assert summary.later_turn(later)["exact_match"] == pytest.approx(right / 3)


def test_a_question_asked_twice_is_one_utterance(
    told: Told, evaluator: Evaluator, dialogues: list[Dialogue]
) -> None:
    _say(told, dialogues[0], "What is the capital of France?", Chunk("It is Paris.", (1,)))
    answers = evaluator.converse([dialogues[0], dialogues[0]], units_per_token=3)
    assert summary.question_transcription(answers, RULES, seed=1)["en"] == {
        "wer": 0.0,
        "n": 1,
        "words": 12,
        "ci95": [0.0, 0.0],
    }


def test_written_tasks(
    told: Told, evaluator: Evaluator, dialogues: list[Dialogue], translations: list[Translation]
) -> None:
    told.tell(told.builder.prompt_text(dialogues[0].question), told.tokenizer.encode("it is paris"))
    told.tell(told.builder.prompt_text(dialogues[2].question), told.tokenizer.encode("不知道"))
    metrics = summary.text_instruction(evaluator.answer_written([dialogues[0], dialogues[2]]))
    assert (metrics["en"]["exact_match"], metrics["zh"]["exact_match"]) == (1, 0)
    item = translations[0]
    told.tell(told.builder.prompt_mt(item.source, "zh"), told.tokenizer.encode(item.target))
    assert summary.translation(evaluator.translate(translations), RULES)["en_zh"] == {
        "bleu": pytest.approx(100),
        "n": 1,
    }


def test_a_runaway_answer_is_cut(told: Told, evaluator: Evaluator, utterances: list[Utterance]) -> None:
    utterance = utterances[1]
    told.tell(told.builder.prompt_asr(list(utterance.units)), told.tokenizer.encode("far " * 500))
    (transcript,) = evaluator.transcribe([utterance])
    assert len(transcript.text.split()) < 40
