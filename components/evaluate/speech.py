"""The part of the evaluation that listens: recordings and judges in, figures and sounds out.

The judges' weights are declared in models.yaml and fetched once, into `$CSLM_HOME/models`. Where those of one
cannot be had nothing is made up: its figures are missing, and the report says "not measured".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from components.fetch.__main__ import fetch
from components.fetch.catalog import load_catalog
from components.fetch.packages import FetchFailed
from components.settings import Settings
from components.stage import home
from cslm.audio import Samples, decode
from cslm.conversation import Assistant
from cslm.decoder import SpeechDecoder
from cslm.decoder.voices import voice_for
from cslm.evaluation.held_out import Dialogue, HeldOut, Utterance, grouped, spread
from cslm.evaluation.judges import Dnsmos, Recognizer, SecondOpinion, SpeakerEncoder
from cslm.evaluation.labels import answer_errors, reading_errors
from cslm.evaluation.normalization import LanguageRules
from cslm.evaluation.speech import (
    Judges,
    Listener,
    Recording,
    Sounding,
    SpokenAnswer,
    answer_metrics,
    has_words,
    speech_metrics,
)
from cslm.evaluation.streaming import Timing, measure_streaming
from cslm.evaluation.summary import merge
from cslm.evaluation.tasks import Answer, Evaluator
from cslm.shards import UNKNOWN_SPEAKER, read_rows
from cslm.tokenizer import Tokenizer

UTTERANCES = Path("work/accepted/utterances")
CATALOG = Path("models.yaml")
JUDGES = {
    "whisper-base-ct2": "Error rate and language of the sound (Whisper)",
    "dnsmos": "Sound quality (DNSMOS)",
    "resemblyzer": "Likeness of the voice (Resemblyzer)",
}
"""Name in models.yaml -> what it judges."""


@dataclass(frozen=True)
class SpeechResults:
    """What was heard."""

    soundings: list[Sounding] = field(default_factory=list)
    answers: list[SpokenAnswer] = field(default_factory=list)
    recordings: Mapping[str, Samples] = field(default_factory=dict)
    """Id of an utterance -> its recording: spoken questions, and right answers where there is one."""
    timings: Sequence[Timing] = ()
    """How the timed answers came, piece by piece."""
    voiceless: Mapping[str, int] = field(default_factory=dict)
    """Language that no voice of the decoder speaks -> answers in it, which have no sound."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Judge that was not at hand (a key of `JUDGES`) -> why."""


def evaluate_speech(
    evaluator: Evaluator,
    decoder: SpeechDecoder,
    tokenizer: Tokenizer,
    items: HeldOut,
    answers: Sequence[Answer],
    settings: Settings,
) -> tuple[dict[str, Any], SpeechResults]:
    """Figures of the speech of one split, and the sounds they are of."""
    seed = settings.evaluate.seed
    sentences = [u for u in items.utterances if has_words(u.text, evaluator.rules[u.language])]
    texts = _of_each_language(sentences, settings.evaluate.read_texts, seed)
    judged = _of_each_language(texts, settings.evaluate.judged_recordings, seed)
    assistant = Assistant(evaluator.model, tokenizer, decoder)
    voices = {language: decoder.natives(language) for language in assistant.languages}
    spoken = [
        answer
        for (_, wanted), group in grouped(answers, lambda answer: answer.dialogue.pair).items()
        if wanted in voices
        for answer in spread(_audible(group, evaluator.rules), settings.evaluate.judged_answers, seed)
    ]
    voiced = [dialogue for dialogue in items.spoken if dialogue.answer_language in voices]
    asked_for = Counter(answer.dialogue.answer_language for answer in answers)
    voiceless = {language: n for language, n in asked_for.items() if language not in voices}
    for language, n in voiceless.items():
        why = "the decoder has no voice of that language"
        print(f"note: {n} answers in {language} are neither heard nor timed: {why}", flush=True)
    timed = spread(voiced, settings.evaluate.latency_questions, seed)
    needed = {u.id for u in judged}
    needed |= {name for a in spoken for name in (a.dialogue.question_speech, a.dialogue.answer_speech)}
    sounds = _sounds(needed | {dialogue.question_speech for dialogue in timed})
    streaming, timings = _streaming(evaluator, assistant, timed, sounds)
    read = evaluator.read_aloud(texts)
    metrics = merge(
        {"latency": streaming},
        merge(reading_errors(tokenizer, texts, read, seed), answer_errors(tokenizer, answers, seed)),
    )
    judges, missing = open_judges()
    for name, reason in missing.items():
        print(f"note: {JUDGES[name]} is not measured: {reason}", flush=True)
    recordings = _recordings(judged, sounds, decoder)
    if left_out := len(judged) - len(recordings):
        print(f"note: {left_out} recordings are in languages that no voice of the decoder speaks", flush=True)
    if lent := sum(each.speaker is None for each in recordings):
        print(f"note: {lent} recordings are spoken again in another voice, as theirs is unknown", flush=True)
    total = len(recordings) + len(spoken)
    done = iter(range(1, total + 1))
    listener = Listener(
        judges, decoder, evaluator.rules, lambda: evaluator.progress("speech", next(done), total)
    )
    soundings = listener.compare(recordings, read)
    heard = listener.answers(spoken, voices)
    metrics = merge(metrics, speech_metrics(soundings, evaluator.rules, seed))
    metrics = merge(metrics, answer_metrics(heard, evaluator.rules, seed))
    return metrics, SpeechResults(
        soundings,
        heard,
        {name: sound for name, (sound, _) in sounds.items()},
        timings,
        voiceless,
        missing,
    )


def _audible(answers: Iterable[Answer], rules: Mapping[str, LanguageRules]) -> list[Answer]:
    """Those that have a sound, and words to be heard in it."""
    return [
        answer
        for answer in answers
        if answer.parsed.units and has_words(answer.parsed.text, rules[answer.dialogue.answer_language])
    ]


def _of_each_language(utterances: Sequence[Utterance], count: int, seed: int) -> list[Utterance]:
    groups = grouped(utterances, lambda utterance: utterance.language).values()
    return [utterance for group in groups for utterance in spread(group, count, seed)]


def open_judges() -> tuple[Judges, dict[str, str]]:
    """The judges, fetched if they are not here yet, and why the others cannot be had."""
    catalog = load_catalog(CATALOG)
    folders: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for name in JUDGES:
        try:
            fetch(name, catalog[name], home() / "models" / name)
            folders[name] = home() / "models" / name
        except FetchFailed as reason:
            missing[name] = " ".join(str(reason).split())
    recognizer, quality, voices = map(folders.get, JUDGES)
    judges = Judges(
        Recognizer(recognizer) if recognizer else None,
        SecondOpinion(),
        Dnsmos(quality) if quality else None,
        SpeakerEncoder(voices).eval() if voices else None,
    )
    return judges, missing


def _sounds(wanted: Iterable[str]) -> dict[str, tuple[Samples, str]]:
    """Recording and speaker of each utterance id."""
    rows = read_rows(UTTERANCES, ["id", "audio", "speaker"], ids=wanted)
    return {row["id"]: (decode(row["audio"]), row["speaker"]) for row in rows}


def _recordings(
    utterances: Iterable[Utterance], sounds: Mapping[str, tuple[Samples, str]], decoder: SpeechDecoder
) -> list[Recording]:
    """Those in a language that the decoder speaks; whose voice it lacks, by its other voices in turn."""
    turns = {language: cycle(decoder.natives(language)) for language in set(decoder.config.voices.values())}
    found = []
    for utterance in utterances:
        samples, speaker = sounds[utterance.id]
        voice = voice_for(speaker, utterance.language, decoder.config.voices)
        named = voice is not None and speaker != UNKNOWN_SPEAKER  # all strangers are one voice, and nobody's
        if voice or utterance.language in turns:
            chosen = voice or next(turns[utterance.language])
            found.append(Recording(utterance, chosen, samples, speaker if named else None))
    return found


def _streaming(
    evaluator: Evaluator,
    assistant: Assistant,
    questions: Sequence[Dialogue],
    sounds: Mapping[str, tuple[Samples, str]],
) -> tuple[dict[str, Any], list[Timing]]:
    asked = [(sounds[d.question_speech][0], d.answer_language) for d in questions]
    return measure_streaming(
        assistant, asked, lambda done: evaluator.progress("streaming", done, len(questions))
    )
