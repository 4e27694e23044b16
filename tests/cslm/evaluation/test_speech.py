"""Figures of speech, from judgments that the test made up; and times of answers, by a clock that it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cslm.audio import Samples, decode
from cslm.conversation import Event, Heard, Speech, Text
from cslm.evaluation.error_rates import NO_ERRORS, count_errors, error_rate
from cslm.evaluation.held_out import Dialogue, Utterance
from cslm.evaluation.judges import SecondOpinion
from cslm.evaluation.normalization import rules_for
from cslm.evaluation.speech import (
    KINDS,
    Judges,
    Listener,
    Recording,
    Sounding,
    SpokenAnswer,
    answer_metrics,
    has_words,
    speech_metrics,
)
from cslm.evaluation.streaming import answer_timing, measure_streaming
from cslm.evaluation.tasks import Answer
from cslm.sequences import Chunk, Parsed
from cslm.shards import read_rows

RULES = {language: rules_for(language) for language in ("en", "zh")}
ROOT = Path(__file__).parents[3]
SILENCE = np.zeros(16_000, np.float32)


def sounding(
    name: str, kind: str, text: str, heard: str, quality: float, angle: float, language: str = "en"
) -> Sounding:
    """The second opinion, in English, is that nothing was said."""
    vector = np.array([np.cos(angle), np.sin(angle)], np.float32)
    errors = count_errors(text, heard, RULES[language])
    second = count_errors(text, "", RULES[language]) if language == "en" else None
    return Sounding(name, kind, language, "ann", text, heard, errors, second, quality, vector, SILENCE, "ann")


def test_each_kind_is_beside_the_recordings() -> None:
    heard = []
    for name, angle in (("a", 0.0), ("b", np.pi / 3)):
        heard += [
            sounding(name, "reference", "one two three four", "one two three four", 3.0, angle),
            sounding(name, "resynthesis", "one two three four", "one two tree four", 2.5, angle),
            sounding(name, "tts", "one two three four", "one four", 2.0, angle + np.pi / 3),
        ]
    metrics = speech_metrics(heard, RULES, seed=1)
    assert metrics["tts"]["en"]["wer"] == pytest.approx(4 / 8)
    assert metrics["resynthesis"]["en"]["wer"] == pytest.approx(2 / 8)
    assert metrics["tts"]["en"]["reference_wer"] == metrics["resynthesis"]["en"]["reference_wer"] == 0
    assert metrics["tts"]["en"]["second_wer"] == metrics["tts"]["en"]["second_reference_wer"] == 1
    assert metrics["dnsmos"]["resynthesis"]["en"]["mean"] == pytest.approx(2.5)
    alike = {kind: metrics["speaker_similarity"][kind]["en"]["mean"] for kind in ("reference", "tts")}
    assert alike["reference"] == pytest.approx(0.5), "cos 60°: each against the other, never against itself"
    assert alike["tts"] == pytest.approx((1.0 - 0.5) / 2), "a is where b was, b is at 120° of a"


def test_each_voice_is_told_apart() -> None:
    heard = []
    for name, voice, read in (("a", "ann", "one two"), ("b", "ann", "one"), ("c", "bob", "")):
        for kind in KINDS:
            said = read if kind == "tts" else "one two"
            heard.append(replace(sounding(name, kind, "one two", said, 3.0, 0.0), voice=voice, speaker=voice))
    ann, bob = (speech_metrics(heard, RULES, seed=1)["voices"]["en"][voice] for voice in ("ann", "bob"))
    assert (ann["wer"], bob["wer"]) == (1 / 4, 1)
    assert ann["reference_wer"] == ann["resynthesis_wer"] == bob["reference_wer"] == 0
    assert (ann["n"], bob["n"]) == (2, 1)
    assert ann["speaker_similarity"] == pytest.approx(1)
    assert "speaker_similarity" not in bob, "there is no other recording of his"


def test_nobody_is_like_those_whose_voice_another_one_lends() -> None:
    heard = [
        replace(sounding(name, kind, "one two", "one", 3.0, angle), voice="ann", speaker=speaker)
        for speaker, angles in (("ann", (0.0, np.pi / 3)), (None, (0.0, np.pi)))
        for name, angle in zip((f"{speaker}-1", f"{speaker}-2"), angles, strict=True)
        for kind in KINDS
    ]
    metrics = speech_metrics(heard, RULES, seed=1)
    for kind in KINDS:
        alike = metrics["speaker_similarity"][kind]["en"]
        assert (alike["mean"], alike["n"]) == (pytest.approx(0.5), 2), "Ann's alone"
    assert metrics["tts"]["en"]["n"] == metrics["dnsmos"]["tts"]["en"]["n"] == 4, "all else is of everybody"
    strangers = [each for each in heard if each.speaker is None]
    assert "speaker_similarity" not in speech_metrics(strangers, RULES, seed=1)


def test_a_text_that_is_read_without_a_sound_is_heard_as_silence() -> None:
    class Silent:
        def speak(self, *_: object) -> Samples:
            return np.zeros(0, np.float32)

    judges = SimpleNamespace(
        recognizer=whisper(transcribe=lambda samples, language: "one two"),
        second=SimpleNamespace(LANGUAGE="en", transcribe=lambda samples: "dog"),
        quality=SimpleNamespace(overall=lambda samples: float(len(samples))),
        voices=SimpleNamespace(embed=lambda samples: np.ones(2, np.float32)),
    )
    listener = Listener(judges, Silent(), RULES)  # type: ignore[arg-type]
    recording = Recording(Utterance("a", "en", "one two", (1, 2)), "ann", SILENCE + 0.1)
    reference, _, read = listener.compare([recording], {"a": []})
    assert reference.errors.total == 0
    assert (read.heard, read.errors.deletions, read.dnsmos) == ("", 2, 16_000)
    assert read.second_errors == read.errors, "no recogniser dreams of words in silence"


def whisper(**answers: Any) -> SimpleNamespace:
    """A recogniser that knows English and Mandarin, and says what it is told."""
    return SimpleNamespace(knows=lambda language: language in ("en", "zh"), **answers)


class Loud:
    """A decoder that says the same to everything."""

    def speak(self, *_: object) -> Samples:
        return SILENCE + 0.1


def test_each_judge_who_is_there_measures() -> None:
    second = SimpleNamespace(LANGUAGE="zh", transcribe=lambda samples: "")
    ears = whisper(transcribe=lambda samples, language: "one", language=lambda samples, among: "en")
    dnsmos = SimpleNamespace(overall=lambda samples: 3.0)
    encoder = SimpleNamespace(embed=lambda samples: np.ones(2, np.float32))
    recordings = [
        Recording(Utterance(name, "en", "one two", (1,)), "ann", SILENCE + 0.1, "ann") for name in "ab"
    ]
    dialogue = Dialogue("d", "en", "q", "s", (1,), "en", "one two")
    parsed = Parsed("q", (Chunk("one two", (1, 2)),), True)
    answer = Answer(dialogue, parsed, count_errors("q", "q", RULES["en"]), True, 1, False, "en")
    rates = {"tts", "resynthesis"}
    for there, expected, of_answers in (
        (
            (ears, None, None),
            rates,
            {"speech_wer", "speech_ci95", "speech_off_target", "speech_off_target_ci95"},
        ),
        ((None, dnsmos, None), {"dnsmos"}, {"speech_dnsmos"}),
        ((None, None, encoder), {"speaker_similarity"}, set()),
    ):
        judges = Judges(there[0], second, there[1], there[2])  # type: ignore[arg-type]
        listener = Listener(judges, Loud(), RULES)  # type: ignore[arg-type]
        soundings = listener.compare(recordings, {"a": [1], "b": [1]})
        assert speech_metrics(soundings, RULES, seed=1).keys() == expected | {"voices"}
        heard = answer_metrics(
            listener.answers([answer, answer, answer], {"en": ["ann", "bob"]}), RULES, seed=1
        )
        assert heard["conversation"]["en"].keys() == of_answers | {"speech_n"}
        assert [heard["answer_voices"]["en"][voice]["n"] for voice in ("ann", "bob")] == [2, 1]


def test_a_language_that_the_recogniser_does_not_know_is_not_heard() -> None:
    second = SimpleNamespace(LANGUAGE="en", transcribe=lambda samples: "")
    rules = {"eo": rules_for("eo", ["unu du"])}
    listener = Listener(Judges(whisper(), second, None, None), Loud(), rules)  # type: ignore[arg-type]
    recording = Recording(Utterance("a", "eo", "unu du", (1,)), "ann", SILENCE + 0.1)
    assert [sounding.heard for sounding in listener.compare([recording], {"a": [1]})] == [None] * 3
    dialogue = Dialogue("d", "eo", "q", "s", (1,), "eo", "unu du")
    answer = Answer(dialogue, Parsed("q", (Chunk("unu du", (1,)),), True), NO_ERRORS, True, 1, False, "eo")
    [heard] = listener.answers([answer], {"eo": ["ann"]})
    assert (heard.sounding.errors, heard.heard_language) == (None, None)


@pytest.mark.parametrize(("text", "expected"), [("Far.", True), ("...", False), ("Hmm.", False), ("", False)])
def test_what_has_words(text: str, expected: bool) -> None:
    assert has_words(text, RULES["en"]) is expected


def test_without_a_second_recogniser_for_a_language_there_is_no_second_opinion() -> None:
    heard = [sounding("a", kind, "你好", "你好", 3.0, 0.0, "zh") for kind in KINDS]
    assert not [name for name in speech_metrics(heard, RULES, seed=1)["tts"]["zh"] if "second" in name]


def test_the_second_recogniser_hears_english() -> None:
    rows = read_rows(ROOT / "data/sample/speech", ["audio", "text", "language"], ["test"])
    english = list(islice((row for row in rows if row["language"] == "en"), 4))
    second, rules = SecondOpinion(), RULES["en"]
    spoken = [decode(row["audio"]) for row in english]
    errors = [
        count_errors(r["text"], second.transcribe(s), rules) for r, s in zip(english, spoken, strict=True)
    ]
    assert error_rate(errors) < 0.6
    backwards = [
        count_errors(r["text"], second.transcribe(s[::-1].copy()), rules)
        for r, s in zip(english, spoken, strict=True)
    ]
    assert error_rate(backwards) > 0.85
    assert second.transcribe(np.zeros(0, np.float32)) == ""


def test_answers_are_judged_by_their_own_text_and_by_pair() -> None:
    def answer(asked: str, wanted: str, text: str, heard: str, found: str) -> SpokenAnswer:
        dialogue = Dialogue("d", asked, "q", "s", (1,), wanted, "right answer")
        judged = Answer(
            dialogue, Parsed("q", (), True), count_errors("q", "q", RULES[asked]), True, 1, False, ""
        )
        return SpokenAnswer(judged, sounding("d", "answer", text, heard, 3.0, 0.0, wanted), found)

    metrics = answer_metrics(
        [
            answer("en", "en", "it is far", "it is far", "en"),
            answer("en", "en", "it is far", "it was far", "zh"),
            answer("en", "zh", "很远", "很近", "zh"),
        ],
        RULES,
        seed=1,
    )
    assert metrics["conversation"]["en"]["speech_wer"] == pytest.approx(1 / 6)
    assert metrics["conversation"]["en"]["speech_off_target"] == 0.5
    assert metrics["conversation"]["en"]["speech_off_target_ci95"] == pytest.approx([0.0945, 0.9055], abs=1e-4)
    assert metrics["cross_lingual"]["en_zh"]["speech_cer"] == 0.5
    assert metrics["cross_lingual"]["en_zh"]["speech_off_target"] == 0


class Scripted:
    """An assistant whose events come at given times of the test's own clock."""

    def __init__(self, scripts: dict[str, list[tuple[float, Event]]]) -> None:
        self._scripts, self.now = scripts, 0.0

    def answer(self, question: Any, language: str | None, chain: str) -> Iterator[Event]:
        begin = self.now
        for seconds, event in self._scripts[chain]:
            self.now = begin + seconds
            yield event


def sound(seconds: float) -> Speech:
    return Speech(np.zeros(int(16_000 * seconds), np.float32))


@pytest.mark.parametrize(("late", "dry"), [(1.4, False), (1.6, True)])
def test_an_answer_runs_dry_if_its_sound_ends_before_more_is_there(late: float, dry: bool) -> None:
    script = [(0.1, Heard("q")), (0.3, Text("a")), (0.5, sound(1.0)), (late, sound(0.5))]
    assistant = Scripted({"interleaved": script})
    timing = answer_timing(assistant, SILENCE, "en", "interleaved", lambda: assistant.now)  # type: ignore[arg-type]
    assert timing is not None
    assert (timing.first_text, timing.first_audio, timing.sounding) == pytest.approx((0.3, 0.5, 1.5))
    assert timing.ran_dry == dry


def test_only_questions_that_both_chains_speak_to_are_compared() -> None:
    spoken: list[tuple[float, Event]] = [(0.1, Text("a")), (0.2, sound(1.0))]
    both = SimpleNamespace(answer=Scripted({"interleaved": spoken, "full": spoken}).answer)
    one = SimpleNamespace(answer=Scripted({"interleaved": spoken, "full": [(0.1, Text("a"))]}).answer)
    figures, timings = measure_streaming(both, [(SILENCE, "en")] * 3)  # type: ignore[arg-type]
    assert (figures["audio_n"], figures["audio_silent"], figures["underruns"], len(timings)) == (3, 0, 0, 3)
    assert figures["underruns_ci95"] == pytest.approx([0, 0.5615], abs=1e-4), "three answers tell little"
    assert measure_streaming(one, [(SILENCE, "en")] * 3) == ({"audio_silent": 3}, [])  # type: ignore[arg-type]
