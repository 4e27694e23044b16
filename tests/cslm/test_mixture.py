"""The mixture takes each item as often as its weight says, and only what is for training."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cslm.aligned import AlignedUtterances
from cslm.mixture import Mixture, Variation
from cslm.sequences import SequenceBuilder
from cslm.tables import DIALOGUE, TRANSLATION
from cslm.written import WrittenTasks

PLAIN = Variation(
    answer_noise=0.0,
    misheard=0.0,
    unit_dropout=0.0,
    question_noise=0.0,
    splice=0.0,
    excerpt=0.0,
    listening=False,
    earlier_turns=0.0,
)
PHASE_1 = {"asr": 1.0, "tts": 1.0, "mt": 1.0, "text": 1.0, "repeat": 1.0}
NOTHING = dict.fromkeys(PHASE_1, 0.0)
PHASE_2 = {
    "interleaved": 1.0,
    "cross_lingual": 1.0,
    "full_chain": 1.0,
    "text": 1.0,
    "mt": 1.0,
    "asr": 0.0,
    "tts": 0.0,
    "repeat": 0.0,
}


def utterance(name: str, language: str, split: str = "train", speed: float = 1.0) -> dict[str, object]:
    """Four units in two chunks."""
    return {
        "id": name,
        "language": language,
        "split": split,
        "speaker": "voice",
        "speed": speed,
        "text": f"text of {name}",
        "units": [1, 2, 3, 4],
        "spoken": [0, 5, 8, 8],
        "words": [
            {"text": "text ", "first": 0, "last": 1},
            {"text": "of ", "first": 1, "last": 2},
            {"text": name, "first": 2, "last": 4},
        ],
        "chunks": [
            {"text": "text of ", "first": 0, "last": 2},
            {"text": name, "first": 2, "last": 4},
        ],
    }


def dialogue(
    name: str, asked: str, answered: str, question: str, answer: str, split: str = "train"
) -> dict[str, str]:
    """A dialogue; `question` and `answer` name utterances."""
    texts = f"question {name}", f"answer {name}"
    return dict(
        zip(DIALOGUE.names, (name, split, asked, texts[0], question, answered, texts[1], answer), strict=True)
    )


@pytest.fixture(params=[PLAIN])
def mixture(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Mixture]:
    (tmp_path / "aligned").mkdir()
    speech = [utterance("q", "en"), utterance("a", "en"), utterance("b", "zh"), utterance("t", "en", "test")]
    pq.write_table(pa.Table.from_pylist(speech), tmp_path / "aligned" / "shard-00000.parquet")
    rows = [
        dialogue("1", "en", "en", "q", "a"),
        dialogue("2", "en", "zh", "q", "b"),
        dialogue("3", "en", "en", "q", "gone"),
        dialogue("4", "en", "en", "", ""),
        dialogue("5", "en", "en", "t", "a", "test"),
        dialogue("6", "en", "zh", "", ""),
    ]
    pq.write_table(pa.Table.from_pylist(rows, DIALOGUE), tmp_path / "dialogues.parquet")
    translation = dict(zip(TRANSLATION.names, ("1", "train", "en", "hello", "zh", "你好"), strict=True))
    pq.write_table(pa.Table.from_pylist([translation], TRANSLATION), tmp_path / "translations.parquet")
    with AlignedUtterances(tmp_path / "aligned", tmp_path / "index.db") as index:
        yield Mixture(SequenceBuilder(tiny[1]), index, tmp_path, request.param, 512, seed=1)


def count(sequences: Iterator[object]) -> Counter[str]:
    return Counter(f"{s.task}.{s.language}" for s in sequences)  # type: ignore[attr-defined]


def test_phase_1_takes_every_training_item_once(mixture: Mixture) -> None:
    assert count(mixture.pretrain(PHASE_1)) == {
        "asr.en": 2,
        "asr.zh": 1,
        "tts.en": 2,
        "tts.zh": 1,
        "mt.zh": 1,
        "text.en": 3,
        "repeat.en": 3,
    }


def test_phase_2_takes_spoken_dialogues_and_counts_those_without_speech(mixture: Mixture) -> None:
    assert count(mixture.finetune(PHASE_2)) == {
        "dialogue.en": 1,
        "cross_lingual.zh": 1,
        "full_chain.en": 1,
        "full_chain.zh": 1,
        "text.en": 3,
        "mt.zh": 1,
    }
    assert mixture.skipped == {"dialogue_without_speech": 1, "written_dialogue_across_languages": 1}


@pytest.mark.parametrize("mixture", [dataclasses.replace(PLAIN, earlier_turns=0.5)], indirect=True)
def test_questions_come_behind_other_turns_and_none_is_lost(mixture: Mixture) -> None:
    builder, alone, behind = mixture._builder, Counter[str](), Counter[str]()
    weights = {**PHASE_2, "interleaved": 100.0, "cross_lingual": 100.0, "text": 100.0, "full_chain": 5.0}
    for sequence in mixture.finetune(weights):
        assert len(sequence.input_ids) <= 512
        turns = builder.tokenizer.decode(sequence.input_ids).count("<|start_header_id|>user")
        assert turns == 1 or sequence.input_ids[-1] == builder.end_id
        (behind if turns > 1 else alone)[sequence.task] += 1
    assert alone + behind == {"dialogue": 100, "cross_lingual": 100, "text": 300, "full_chain": 10, "mt": 1}
    assert set(behind) == {"dialogue", "cross_lingual", "text"}
    assert sum(behind.values()) == pytest.approx(250, abs=60)


def test_a_weight_is_a_number_of_passes(mixture: Mixture) -> None:
    assert count(mixture.pretrain(NOTHING)) == {}
    assert count(mixture.pretrain({**NOTHING, "asr": 3.0})) == {"asr.en": 6, "asr.zh": 3}
    half = [sum(count(mixture.pretrain({**NOTHING, "tts": 0.5})).values()) for _ in range(200)]
    assert sum(half) / 200 == pytest.approx(1.5, abs=0.25)


@pytest.mark.parametrize("mixture", [dataclasses.replace(PLAIN, unit_dropout=0.25)], indirect=True)
def test_dropout_thins_what_is_heard_and_never_what_is_spoken(
    mixture: Mixture, tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]
) -> None:
    units = SequenceBuilder(tiny[1]).parse_units
    passes = list(mixture.pretrain({**NOTHING, "asr": 400.0, "tts": 50.0}))
    heard = [units(sequence.input_ids) for sequence in passes if sequence.task == "asr"]
    assert sum(map(len, heard)) / len(heard) == pytest.approx(3.0, abs=0.1)
    assert all(row and row == sorted(row) for row in heard)
    assert all(units(sequence.input_ids) == [1, 2, 3, 4] for sequence in passes if sequence.task == "tts")


@pytest.mark.parametrize("mixture", [dataclasses.replace(PLAIN, splice=0.5, excerpt=0.5)], indirect=True)
def test_spliced_words_and_excerpts_keep_text_and_units_together(
    mixture: Mixture, tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]
) -> None:
    builder = SequenceBuilder(tiny[1])
    spoken = {"text": [1], "of": [2], "q": [3, 4], "a": [3, 4], "b": [3, 4]}
    heard: set[str] = set()
    for sequence in mixture.pretrain({**NOTHING, "asr": 200.0}):
        text = builder.decode([token for token in sequence.labels if token >= 0])
        expected = [unit for word in text.split() for unit in spoken[word]]
        assert builder.parse_units(sequence.input_ids) == expected, text
        heard.add(f"{sequence.language}: {text}")
    assert {"en: text of q", "en: text text a", "en: of", "en: q"} <= heard
    assert not any("b" in words for words in heard if words.startswith("en")), "a word of the other language"


@pytest.mark.parametrize("mixture", [dataclasses.replace(PLAIN, question_noise=0.3)], indirect=True)
def test_a_disturbed_question_says_what_is_heard_and_gets_the_whole_answer(
    mixture: Mixture, tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]
) -> None:
    builder = SequenceBuilder(tiny[1])
    spoken = {"text": [1], "of": [2], "q": [3, 4], "a": [3, 4]}
    asked = set()
    only = {**dict.fromkeys(PHASE_2, 0.0), "interleaved": 300.0}
    for sequence in mixture.finetune(only):
        answered = builder.parse_dialogue([token for token in sequence.labels if token >= 0])
        assert answered.text == "text of a" and answered.units == [1, 2, 3, 4]
        heard = builder.parse_units(sequence.input_ids)[:-4]
        assert heard == [unit for word in answered.question.split() for unit in spoken[word]]
        asked.add(answered.question)
    assert {"text of q", "of q", "text q", "text text of q", "text of text of q"} <= asked


@pytest.mark.parametrize("mixture", [dataclasses.replace(PLAIN, listening=True)], indirect=True)
def test_what_is_heard_and_what_is_read_is_to_be_understood(
    mixture: Mixture, tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]
) -> None:
    builder = SequenceBuilder(tiny[1])
    for sequence in [*mixture.pretrain(PHASE_1), *mixture.finetune(PHASE_2)]:
        text = builder.decode(sequence.understood.values())
        if sequence.task in ("asr", "dialogue", "cross_lingual", "full_chain"):
            heard = [sequence.input_ids[place - 1] for place in sequence.understood]
            assert builder.parse_units(heard) == [1, 2, 3, 4], sequence.task
            assert text.replace(" ", "").startswith("t"), text
        else:
            assert text and text in builder.decode(sequence.input_ids), sequence.task


def test_a_misheard_question_is_answered_by_its_text(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    (tmp_path / "aligned").mkdir()
    units = {"q": [1, 2, 3, 4], "r": [5, 6, 7, 8], "a": [9, 9, 9, 10], "b": [11, 11, 11, 12]}
    speech = [utterance(name, "en") | {"units": said} for name, said in units.items()]
    pq.write_table(pa.Table.from_pylist(speech), tmp_path / "aligned" / "shard-00000.parquet")
    rows = [
        dialogue("spoken", "en", "en", "q", "a"),
        dialogue("too", "en", "en", "r", "a"),
        dialogue("unspoken", "en", "en", "gone", "b"),
    ]
    pq.write_table(pa.Table.from_pylist(rows, DIALOGUE), tmp_path / "dialogues.parquet")
    pq.write_table(pa.Table.from_pylist([], TRANSLATION), tmp_path / "translations.parquet")
    builder = SequenceBuilder(tiny[1])
    seen: Counter[str] = Counter()
    with AlignedUtterances(tmp_path / "aligned", tmp_path / "index.db") as index:
        mixture = Mixture(builder, index, tmp_path, dataclasses.replace(PLAIN, misheard=0.5), 512, seed=1)
        for sequence in mixture.finetune({**dict.fromkeys(PHASE_2, 0.0), "interleaved": 100.0}):
            reply = sequence.input_ids[sequence.input_ids.index(builder.question_id) :]
            said, learned = builder.parse_dialogue(reply), [token for token in sequence.labels if token >= 0]
            heard = tuple(builder.parse_units(sequence.input_ids)[:4])
            own = {"text of q": (1, 2, 3, 4), "text of r": (5, 6, 7, 8)}.get(said.question)
            assert (said.text, said.units) == (
                ("text of b", units["b"]) if "unspoken" in said.question else ("text of a", units["a"])
            )
            assert builder.parse_dialogue(learned).text == said.text, "the answer is learned"
            question = builder.decode(learned[: learned.index(builder.answer_id)])
            if own:
                assert (heard, question) == (own, said.question)
            else:
                assert heard in ((1, 2, 3, 4), (5, 6, 7, 8)) and not question
            seen["right" if own else said.question] += 1
    assert seen["right"] == pytest.approx(100, abs=25)
    assert seen["question unspoken"] == 100 and not mixture.skipped
    assert seen["question spoken"] == pytest.approx(50, abs=20)


def test_every_speed_of_a_recording_is_heard_and_the_recording_is_spoken(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    (tmp_path / "aligned").mkdir()
    slow = utterance("q", "en", speed=0.9) | {"units": [5, 6, 7, 8]}
    speech = [
        utterance("q", "en"),
        slow,
        utterance("a", "en"),
        utterance("a", "en", speed=0.9) | {"units": [9] * 4},
    ]
    pq.write_table(pa.Table.from_pylist(speech), tmp_path / "aligned" / "shard-00000.parquet")
    rows = [dialogue("1", "en", "en", "q", "a")]
    pq.write_table(pa.Table.from_pylist(rows, DIALOGUE), tmp_path / "dialogues.parquet")
    pq.write_table(pa.Table.from_pylist([], TRANSLATION), tmp_path / "translations.parquet")
    builder = SequenceBuilder(tiny[1])
    with AlignedUtterances(tmp_path / "aligned", tmp_path / "index.db") as index:
        mixture = Mixture(builder, index, tmp_path, PLAIN, 512, seed=1)
        only = dict.fromkeys(PHASE_2, 0.0)
        answers = [builder.parse_units(s.input_ids) for s in mixture.finetune({**only, "interleaved": 40.0})]
        read = [builder.parse_units(s.input_ids) for s in mixture.finetune({**only, "tts": 4.0})]
        heard = [tuple(builder.parse_units(s.input_ids)) for s in mixture.finetune({**only, "asr": 40.0})]
    assert {tuple(units[:4]) for units in answers} == {(1, 2, 3, 4), (5, 6, 7, 8)}
    assert all(units[4:] == [1, 2, 3, 4] for units in answers)
    assert read == [[1, 2, 3, 4]] * 8
    assert set(heard) == {(1, 2, 3, 4), (5, 6, 7, 8), (9, 9, 9, 9)}


def test_written_questions_of_every_language_are_used_however_many_come_first(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cslm.written.KEPT", 2)
    rows = [dialogue(str(n), "en", "en", "", "") for n in range(5)] + [dialogue("last", "zh", "zh", "", "")]
    pq.write_table(pa.Table.from_pylist(rows, DIALOGUE), tmp_path / "dialogues.parquet")
    written = WrittenTasks(SequenceBuilder(tiny[1]), tmp_path, noise=0.15, seed=1)
    assert count(written.instructions(1.0)) == {"text.en": 5, "text.zh": 1}
    assert count(written.repetitions(1.0)) == {"repeat.en": 5, "repeat.zh": 1}
