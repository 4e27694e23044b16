"""The report of an evaluation, on answers that the test made up."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.evaluate.figures import headlines
from components.evaluate.plots import played
from components.evaluate.report import SplitResults, confusion, intents, label, percent, write_report
from components.evaluate.speech import SpeechResults
from components.settings import Settings
from cslm.evaluation.error_rates import count_errors
from cslm.evaluation.held_out import Dialogue, Utterance
from cslm.evaluation.normalization import rules_for
from cslm.evaluation.speech import KINDS, Sounding, SpokenAnswer
from cslm.evaluation.streaming import Timing
from cslm.evaluation.tasks import Answer, Transcript
from cslm.sequences import Chunk, Parsed
from tests.components.test_evaluate import PARAMS
from tests.recordings import question

RULES = {language: rules_for(language) for language in ("en", "zh")}


def _answer(name: str, languages: tuple[str, str], text: str, right: bool) -> Answer:
    asked, answered = languages
    dialogue = Dialogue(name, asked, "Is it <far>?", f"{name}-q", (1,), answered, "It is not far.")
    parsed = Parsed("is it far", (Chunk(text, (1, 2, 3)),), True)
    errors = count_errors("Is it far?", "is it far", RULES["en"])
    return Answer(dialogue, parsed, errors, right, 0.5, False, "en")


def test_the_report_shows_what_was_said_and_escapes_it(tmp_path: Path) -> None:
    utterance = Utterance("u1", "en", "The weather is fine", (1, 2))
    transcripts = [
        Transcript(
            utterance, "the whether is fine", count_errors(utterance.text, "the whether is fine", RULES["en"])
        )
    ]
    results = {"test": SplitResults(transcripts, [_answer("far-0", ("en", "en"), "It is <b>near</b>.", False)])}
    write_report(tmp_path, {}, results, SpeechResults(), RULES, Settings.model_validate(PARAMS))
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "<del>weather</del>" in page
    assert "<ins>whether</ins>" in page
    assert "It is &lt;b&gt;near&lt;/b&gt;." in page
    assert "<b>near" not in page
    assert "3 units" in page
    assert "It is not far." in page


def test_the_first_unit_is_timed_where_nothing_can_be_heard(tmp_path: Path) -> None:
    chain = {"tokens": 1.0, "seconds": 1.0, "chunk_seconds": 1.0}
    ratios = dict.fromkeys(("speedup_over_full_chain", "token_speedup", "chunk_speedup"), 2.0)
    latency = {"n": 2, "silent": 0, "interleaved": chain, "full_chain": chain, **ratios}
    results = {"test": SplitResults([], [_answer("far-0", ("en", "en"), "It is far.", True)])}
    settings = Settings.model_validate(PARAMS)
    write_report(tmp_path, {"latency": latency}, results, SpeechResults(), RULES, settings)
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "<strong>2.00 times</strong> sooner" in page
    assert "left out of the figures of sound" not in page


def test_the_right_answer_is_heard_beside_that_of_the_model(tmp_path: Path) -> None:
    errors = count_errors("Is it far?", "is it far", RULES["en"])
    heard = []
    for name, recorded in (("far-0", "far-0-a"), ("far-1", "")):
        answer = _answer(name, ("en", "en"), "It is far.", True)
        answer = replace(answer, dialogue=replace(answer.dialogue, answer_speech=recorded))
        vector = np.ones(1, np.float32)
        sounding = Sounding(
            name, "answer", "en", "ann", "It is far.", "is it far", errors, None, 3.0, vector, question()
        )
        heard.append(SpokenAnswer(answer, sounding, "zh" if recorded else "en"))
    recordings = dict.fromkeys(("far-0-q", "far-1-q", "far-0-a"), question())
    speech = SpeechResults([heard[0].sounding], heard, recordings)
    speech = replace(speech, soundings=[replace(heard[0].sounding, kind=kind) for kind in KINDS])
    came = (("heard", 0.1, 0.0), ("text", 0.1, 0.0), ("speech", 0.2, 0.5), ("speech", 0.4, 0.5))
    speech = replace(speech, timings=[Timing(0.1, 0.2, 0.9, 1.0, False, came)])
    results = {"test": SplitResults([], [each.answer for each in heard])}
    times = ("first_audio_ms", "full_chain_first_audio_ms", "underruns", "rtf", "audio_n")
    metrics: dict[str, Any] = {"resynthesis": {}, "voices": {}, "latency": dict.fromkeys(times, 1.0)}
    write_report(tmp_path, metrics, results, speech, RULES, Settings.model_validate(PARAMS))
    page = (tmp_path / "index.html").read_text("utf-8")
    for picture in ("Spectrograms of a recording", "When text and sound of one answer came"):
        assert re.search(rf'<img src="data:image/svg[^"]+" alt="{picture}', page)
    answers = page.partition("<h2>Spoken answers</h2>")[2].split('<dl class="dialogue">')[1:3]
    assert [each.partition("</dl>")[0].count("<audio") for each in answers] == [3, 2]
    assert all("It is not far." in each.partition("<dt>expected</dt>")[2] for each in answers)
    sounds = page.partition("takes it for.</p>")[2].partition("</table>")[0]
    assert re.findall(r"sounds like (\w+)", sounds) == ["English", "Chinese"]
    assert re.findall(r">(\d+)</span>", sounds) == ["1", "1"]


def test_answers_are_heard_where_no_recording_is_by_a_known_voice(tmp_path: Path) -> None:
    answer = _answer("far-0", ("en", "en"), "It is far.", True)
    errors = count_errors("It is far.", "it is far", RULES["en"])
    vector = np.ones(1, np.float32)
    sounding = Sounding(
        "far-0", "answer", "en", "ann", "It is far.", "it is far", errors, None, 3.0, vector, question()
    )
    speech = SpeechResults([], [SpokenAnswer(answer, sounding, "en")], {"far-0-q": question()})
    results = {"test": SplitResults([], [answer])}
    write_report(tmp_path, {}, results, speech, RULES, Settings.model_validate(PARAMS))
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "no recording in a language that the decoder speaks" in page
    players = re.findall(r"<audio[^>]*", page.partition("<h2>Spoken answers</h2>")[2])
    assert len(players) == 2
    assert all(re.search(r'aria-label="(question|answer to) far-0"', each) for each in players)
    assert '<dd lang="en">It is far.<br>' in page


def test_intents_are_sorted_weakest_first() -> None:
    answers = [
        _answer("add-0-q-en", ("en", "en"), "x", True),
        _answer("add-1-q-en", ("en", "zh"), "x", False),
        _answer("color-0-q-en", ("en", "en"), "x", True),
        *(_answer(f"body-{i}-q-en", ("en", "en"), "x", i < 2) for i in range(3)),
        _answer("unnamed", ("en", "en"), "x", True),
    ]
    table = intents(answers)
    assert table["pairs"] == [("en", "en"), ("en", "zh")]
    assert table["rows"] == [
        ("add", [(1, 1), (0, 1)], 0.5, 2),
        ("body", [(2, 3), (0, 0)], pytest.approx(2 / 3), 3),
    ]
    assert table["perfect"] == ["color"]


def test_ids_that_are_all_different_tell_no_intent() -> None:
    answers = [_answer(f"{number:08x}-77aa", ("en", "en"), "x", number % 2 == 0) for number in range(200)]
    assert intents(answers) == {"pairs": [], "rows": [], "perfect": []}


def test_confusion_counts_languages_of_each_asked_language() -> None:
    pairs = [("en", "en"), ("es", "en"), ("es", "es"), ("es", "es")]
    assert confusion(["en", "zh", "es"], pairs) == {
        "en": {"en": 1, "zh": 0, "es": 0},
        "es": {"en": 1, "zh": 0, "es": 2},
    }
    assert confusion(["en"], [("en", "")]) == {"en": {"en": 0, "": 1}}


def test_headlines_judge_by_direction() -> None:
    metrics: dict[str, Any] = {
        "asr": {"en": {"wer": 0.05, "n": 9, "ci95": [0.01, 0.1]}, "zh": {"cer": 0.0501, "n": 9}},
        "conversation": {"en": {"exact_match": 0.9}},
        "cross_lingual": {"en_zh": {"exact_match": 0.84, "off_target": 0.01, "ci95": [0.8, 0.9]}},
        "mt": {"en_zh": {"bleu": 50.0}},
        "heldout_voice": {"asr": {"en": {"wer": 0.2}}},
    }
    metrics["tts"] = {"zh": {"cer": 0.09, "reference_cer": 0.06}}  # at most 3.8 points above
    metrics["dnsmos"] = {"tts": {"en": {"mean": 2.9}}, "reference": {"en": {"mean": 3.3}}}
    metrics["latency"] = {"first_audio_ms": 700.0, "rtf": 0.31, "underruns": 0.0, "audio_n": 30}
    metrics["latency"]["underruns_ci95"] = [0.0, 0.1135]
    metrics["cross_lingual"]["en_zh"] |= {"speech_off_target": 0.01, "speech_n": 100}
    found = {h.name: h for h in headlines(metrics)}
    assert {name: h.reached for name, h in found.items()} == {
        "asr.en.wer": True,
        "asr.zh.cer": False,
        "conversation.en.exact_match": True,
        "cross_lingual.en_zh.exact_match": False,
        "cross_lingual.en_zh.off_target": False,  # must stay below 1 %
        "mt.en_zh.bleu": None,
        "tts.zh.cer": True,
        "tts.zh.reference_cer": None,
        "dnsmos.tts.en.mean": False,
        "dnsmos.reference.en.mean": None,
        "latency.first_audio_ms": True,
        "latency.rtf": False,
        "latency.underruns": True,
        "cross_lingual.en_zh.speech_off_target": False,  # must stay below 1 %
        "heldout_voice.asr.en.wer": False,
    }
    assert found["asr.en.wer"].paper == 0.098
    assert found["asr.en.wer"].ci95 == (0.01, 0.1)
    assert found["latency.underruns"].ci95 == (0.0, 0.1135)
    assert (found["latency.underruns"].n, found["cross_lingual.en_zh.speech_off_target"].n) == (30, 100)
    assert found["cross_lingual.en_zh.off_target"].ci95 is None, "the interval of another figure"


def test_figures_have_names_people_read() -> None:
    assert label("heldout_voice.asr.en.wer") == "Speech recognition, English, held-out voice: word error rate"
    assert label("cross_lingual.zh_en.exact_match") == "Cross-lingual answers, Chinese to English: exact match"
    assert (percent(0.0), percent(0.0312), percent(0.004)) == ("0.0 %", "3.1 %", "0.40 %")


def test_sound_that_comes_late_is_played_when_it_is_there() -> None:
    came = (
        ("heard", 0.1, 0.0),
        ("text", 0.2, 0.0),
        ("speech", 0.5, 1.0),
        ("speech", 0.9, 0.5),
        ("speech", 2.6, 0.4),
    )
    timing = Timing(0.2, 0.5, 2.6, 1.9, True, came)
    assert [time for piece in played(timing) for time in piece] == pytest.approx([0.5, 1.5, 1.5, 2.0, 2.6, 3.0])
