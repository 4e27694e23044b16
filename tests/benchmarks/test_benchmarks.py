"""Each benchmark runs at a tiny size, does on both sides what it says, and writes rows that can be read."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import (
    corpus,
    documents,
    first_sound,
    from_scratch,
    generation,
    padded_training,
    speaking,
    speech_units,
    training_step,
)
from benchmarks.results import BEGIN, END, RESULTS, Measured, by_turns, reached, record, table
from components.ingest.__main__ import ingest
from components.settings import Corpus
from components.validate.__main__ import limits_of, measure_all
from cslm.audio import decode
from cslm.conversation import Assistant, Text
from cslm.decoder import SpeechDecoder
from cslm.generation import SpeechLanguageModel
from cslm.packing import PackedRows, pack
from cslm.scratch import scratch_database
from cslm.sequences import Sequence, SequenceBuilder
from cslm.shards import read_rows
from cslm.tokenizer.speech_tokenizer import SpeechTokenizer, TokenizerConfig
from tests import tiny as tiny_model

Tiny = tuple[Any, Any]


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return tiny_model.make()


@pytest.fixture(scope="module")
def sequences(tiny: Tiny) -> list[Sequence]:
    builder = SequenceBuilder(tiny[1])
    return [builder.asr([(n * i) % 16 for i in range(3 + n % 7)], "What is", "en") for n in range(300)]


@pytest.fixture(scope="module")
def rows(tiny: Tiny, sequences: list[Sequence], tmp_path_factory: pytest.TempPathFactory) -> PackedRows:
    folder = tmp_path_factory.mktemp("rows")
    pack(iter(sequences), folder, documents.LENGTH, tiny[1].eos_token_id, seed=1)
    return PackedRows(folder)


def test_documents_are_those_that_were_packed(sequences: list[Sequence], rows: PackedRows) -> None:
    trained, held_out = documents.split(rows, steps=10**6, seed=1)
    assert len(held_out) == documents.HELD_OUT
    there = Counter(tuple(document.input_ids) for document in [*trained, *held_out])
    assert there == Counter(tuple(sequence.input_ids) for sequence in sequences)
    few, _ = documents.split(rows, steps=1, seed=1)
    room = documents.ROWS_PER_STEP * documents.LENGTH
    assert room - 100 < sum(len(document.input_ids) for document in few) <= room


def test_training_is_compared_with_padding(tiny: Tiny, rows: PackedRows) -> None:
    before = {name: weight.clone() for name, weight in tiny[0].state_dict().items()}
    found = padded_training.compare("pretrain", *tiny, rows, steps=1, turns=1)
    assert set(found) == {"training.pretrain", "training.pretrain.whole_batch", "training.pretrain.loss"}
    loss = found["training.pretrain.loss"]
    assert loss.ours == pytest.approx(loss.baseline, rel=0.05), "the same documents, steps and schedule"
    assert all(torch.equal(weight, before[name]) for name, weight in tiny[0].state_dict().items())


def test_one_step_of_the_bare_loop_and_of_the_trainer_is_the_same(tiny: Tiny, rows: PackedRows) -> None:
    found = training_step.compare(tiny[0], rows, steps=1, turns=1)
    assert found["training.step"].unit == "tokens/s" and found["training.step"].ours > 0


def test_speech_units_are_made_three_ways() -> None:
    tokenizer = SpeechTokenizer(TokenizerConfig(16, 1, [4, 4], ["a"]))
    tokenizer.network.eval()
    some = list(corpus.rows(8))
    found = speech_units.compare(tokenizer, some, turns=1) | speech_units.compare_large(tokenizer, some, 1)
    assert set(found) == {"tokenize.encoder", "tokenize.large_encoder", "tokenize.single"}
    assert found["tokenize.encoder"].ratio < 1.05, "the encoder alone has less to do"


def test_a_first_sound_comes_before_the_last() -> None:
    decoder = SpeechDecoder.load(RESULTS.parents[1] / "models/decoder")
    units = [n * 7 % 512 for n in range(80)]
    found = speaking.compare(decoder, [speaking.Spoken(units, units[:64], "af_heart")] * 3)
    assert found["decoder.first_sound"].ratio < 1
    assert 2 < found["decoder.work"].baseline < 6, "80 units are 3.2 s, if each lasts one frame"
    assert found["decoder.work"].n == 3


def test_an_answer_in_chunks_sounds_before_all_of_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_sound, "WORDS", (8, 60))
    models = RESULTS.parents[1] / "models"
    model = first_sound.Told.load(models / "cslm")
    tokenizer, decoder = SpeechTokenizer.load(models / "tokenizer"), SpeechDecoder.load(models / "decoder")
    speech = read_rows(RESULTS.parents[1] / "data/sample/speech", ["audio", "language"], ["dev"])
    question = next(decode(row["audio"]) for row in speech if row["language"] == "en")
    said = {"text": "It is four in the morning.", "first": 0, "last": 60}
    aligned = [{"chunks": [said], "units": [n * 7 % 512 for n in range(60)]}]
    [chunk, _] = first_sound.answer_of(8, aligned)
    assert chunk.text == "It is four in the morning. "
    assistant = Assistant(model, tokenizer, decoder)
    found = first_sound.compare(assistant, model, aligned, [question] * 3)
    assert set(found) == {"first_sound.8_words", "first_sound.60_words"}
    assert found["first_sound.60_words"].ratio < found["first_sound.8_words"].ratio
    model.script = first_sound.script(model.builder, [chunk] * 3, "full")
    events = list(assistant.answer(question))
    assert [event.text for event in events if isinstance(event, Text)] == [chunk.text * 3], (
        "it says what it is told"
    )


def test_answers_are_generated_both_ways(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "MAX_NEW_TOKENS", 8)
    model = SpeechLanguageModel(*tiny)
    prompts = [model.builder.prompt_dialogue(list(range(n)), "en", "en") for n in (3, 5, 9)]
    found = generation.stream(model, prompts, 1) | generation.batches(model, prompts, 1)
    assert {name: row.unit for name, row in found.items()} == {
        "generation.stream": "tokens/s",
        "generation.batch": "tokens/s",
    }


def test_all_rows_of_the_made_up_corpus_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.settings import load_settings

    corpus.make_corpus(tmp_path, 300)
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    intake = ingest("bench", settings.corpora["bench"], tmp_path / "work/corpora/bench")
    assert isinstance(settings.corpora["bench"], Corpus) and intake.rejected.rows == 0
    with scratch_database(tmp_path) as database:
        measured, _ = measure_all({"bench": tmp_path / "work/corpora/bench"}, limits_of(settings), database)
        assert (measured["utterances"].rows, measured["utterances"].refused) == (300, 0)
    sounds = [row["audio"] for row in islice(corpus.rows(corpus.LEVELS + 1), 0, None, corpus.LEVELS)]
    assert sounds[0] != sounds[1], "the levels begin anew, with another length"


def test_growth_is_told_between_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, sizes = [0.0], [10, 110, 1110]

    def component(command: str, folder: Path) -> float:
        count = sum(1 for _ in (folder / "corpus").rglob("*.parquet")) and made[-1]
        clock[0] += 5 + count / 100 * (2 if count == 1110 else 1)  # twice as slow a row at the largest size
        return 400.0 + count

    made: list[int] = []
    make = corpus.make_corpus
    monkeypatch.setenv("CSLM_HOME", str(tmp_path))
    monkeypatch.setattr(corpus, "make_corpus", lambda folder, size: (made.append(size), make(folder, 1)))
    monkeypatch.setattr(corpus, "component", component)
    monkeypatch.setattr(corpus.time, "perf_counter", lambda: clock[0])
    found = corpus.compare(sizes)
    assert found["ingest.1110.rows"].baseline == pytest.approx(100)
    assert found["ingest.1110.rows"].ours == pytest.approx(1000 / (22.2 - 1.1))
    assert found["validate.1110.memory"].ratio == pytest.approx(1510 / 410)


def test_two_ways_to_a_model_are_compared_by_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(
        name: str, scale: int, last: str = "finished", state: str = "ran", profile: str = "from-scratch"
    ) -> Path:
        events = [
            {
                "time": 1000,
                "stage": "",
                "state": "prepared",
                "run": name,
                "commit": "0123456789",
                "profile": profile,
            },
            {"time": 1060, "stage": "pretrain", "state": state, "seconds": 60 * scale},
            {"time": 1000 + 90 * scale, "stage": "", "state": last},
        ]
        folder = tmp_path / name
        folder.mkdir()
        (folder / "events.jsonl").write_text("\n".join(map(json.dumps, events)) + "\n", "utf-8")
        return folder

    now, before = run("now", 2), run("before", 5)
    from_scratch.main(now, before, tmp_path / "results.json")
    [row] = json.loads((tmp_path / "results.json").read_text("utf-8")).values()
    assert (row["ours"], row["baseline"], row["ratio"]) == (3.0, 7.5, 0.4)
    assert "run before of commit 0123456" in row["against"]
    assert "pretrain              2.0    5.0 min" in capsys.readouterr().out
    for wrong, why in (
        (run("cut", 1, last="started"), "has not come to its end"),
        (run("cached", 1, state="cached"), "from the cache, so without their time: pretrain"),
        (run("demo", 1, profile="sample"), "of the profile sample, which begins with trained models"),
        (tmp_path / "nothing", "is not there: give the folder"),
    ):
        with pytest.raises(SystemExit, match=why):
            from_scratch.main(wrong, before, tmp_path / "results.json")


def test_turns_alternate_and_the_median_counts() -> None:
    order: list[str] = []
    ours = lambda turn: (order.append("ours"), [1.0, 90.0, 2.0][turn])[1]  # noqa: E731
    baseline = lambda turn: (order.append("baseline"), [8.0, 4.0, -50.0][turn])[1]  # noqa: E731
    assert by_turns(ours, baseline, 3) == (2.0, 4.0)
    assert order == ["ours", "baseline"] * 3


def test_rows_are_kept_by_name_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, page = tmp_path / "results.json", tmp_path / "speed.md"
    page.write_text(f"# Speed\n\nBefore.\n\n{BEGIN}old\n{END}\nBehind.\n", "utf-8")
    record({"a": Measured("A", "B", 3.0, 2.0, "tokens/s", 5, "ratio >= 1.5")}, path)
    record({"b": Measured("C", "D", 6.0, 3.0, "s a stage", 1, "ours <= 5")}, path)
    known = json.loads(path.read_text("utf-8"))
    assert set(known) == {"a", "b"}
    wanted = {"ratio", "ours", "baseline", "unit", "n", "date", "cpu", "what", "against", "target"}
    assert set(known["a"]) == wanted | {"commit", "command"}
    assert known["a"]["ratio"] == 1.5 and reached(known["a"]) and not reached(known["b"])
    text = page.read_text("utf-8")
    assert text.startswith("# Speed\n\nBefore.\n") and text.endswith(f"{END}\nBehind.\n") and "old" not in text
    assert "| A | B | 3 tokens/s | 2 tokens/s | **1.50** | ratio ≥ 1.5: ok | 5 |" in text
    assert "ours ≤ 5: MISSED" in text
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["results.json", "speed.md"]


def test_the_page_shows_the_results_that_are_there() -> None:
    known = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    shown = RESULTS.with_name("speed.md").read_text("utf-8").partition(BEGIN)[2].partition(END)[0]
    assert shown == (table(known) if known else "")
