"""Speech as others hear it: what the model reads aloud and answers, beside recordings of the same.

Three kinds of speech are judged alike (paper, section 4.2: ASR error of the speech, and its quality):

    reference      the recording itself: what the judges make of perfect speech
    resynthesis    recording -> units -> speech, in the same voice: what units and decoder lose
    tts            text -> units by the model -> speech, in the voice of the recording

and the spoken answers of the model, beside their own text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import numpy as np

from cslm.audio import SAMPLE_RATE, Samples
from cslm.decoder import SpeechDecoder
from cslm.evaluation.confidence import bootstrap, wilson
from cslm.evaluation.error_rates import Errors, count_errors, error_rate
from cslm.evaluation.held_out import Utterance, grouped, place_of
from cslm.evaluation.judges import Dnsmos, Recognizer, SecondOpinion, SpeakerEncoder, Vector
from cslm.evaluation.normalization import LanguageRules
from cslm.evaluation.tasks import Answer

KINDS = ("reference", "resynthesis", "tts")


@dataclass(frozen=True)
class Judges:
    """All who listen; what one who is not at hand would say is not measured."""

    recognizer: Recognizer | None
    second: SecondOpinion
    quality: Dnsmos | None
    voices: SpeakerEncoder | None


@dataclass(frozen=True)
class Recording:
    """A held-out utterance with its sound, and the voice of the decoder that speaks it again."""

    utterance: Utterance
    voice: str
    samples: Samples
    speaker: str | None = None
    """Whose voice that is, if it is the one that was recorded."""


@dataclass(frozen=True)
class Sounding:
    """One piece of speech, and what the judges say of it: None where one was not at hand."""

    id: str
    kind: str
    language: str
    voice: str
    text: str
    heard: str | None
    errors: Errors | None
    second_errors: Errors | None
    """Of the second recogniser, in the language that it knows."""
    dnsmos: float | None
    vector: Vector | None
    samples: Samples
    speaker: str | None = None
    """Who should be heard, where recordings tell how that sounds."""


@dataclass(frozen=True)
class SpokenAnswer:
    """An answer as sound; `heard_language` is what the recogniser takes it for."""

    answer: Answer
    sounding: Sounding
    heard_language: str | None


class Listener:
    """Lets all judges hear speech."""

    def __init__(
        self,
        judges: Judges,
        decoder: SpeechDecoder,
        rules: Mapping[str, LanguageRules],
        on_item: Callable[[], None] = lambda: None,
    ) -> None:
        self._judges, self._decoder, self._rules, self._on_item = judges, decoder, rules, on_item

    def compare(self, recordings: Iterable[Recording], read: Mapping[str, Sequence[int]]) -> list[Sounding]:
        """Each recording in all three kinds; `read` has the units that the model reads its text with, by id."""
        soundings = []
        for each in recordings:
            utterance = each.utterance
            spoken = {
                "reference": each.samples,
                "resynthesis": self._decoder.speak(utterance.units, each.voice),
                "tts": self._decoder.speak(read[utterance.id], each.voice),
            }
            for kind in KINDS:
                heard = self._hear(
                    utterance.id, kind, utterance.language, each.voice, utterance.text, spoken[kind]
                )
                soundings.append(replace(heard, speaker=each.speaker))
            self._on_item()
        return soundings

    def answers(self, answers: Iterable[Answer], voices: Mapping[str, Sequence[str]]) -> list[SpokenAnswer]:
        """Each answer in a voice of its language, which take turns."""
        turns = {language: itertools.cycle(names) for language, names in voices.items()}
        heard = []
        for answer in answers:
            language = answer.dialogue.answer_language
            voice = next(turns[language])
            samples = self._decoder.speak(answer.parsed.units, voice)
            sounding = self._hear(answer.dialogue.id, "answer", language, voice, answer.parsed.text, samples)
            judge = self._judges.recognizer
            known = judge is not None and judge.knows(language)
            found = judge.language(samples, list(self._rules)) if judge and known else None
            heard.append(SpokenAnswer(answer, sounding, found))
            self._on_item()
        return heard

    def _hear(self, id: str, kind: str, language: str, voice: str, text: str, samples: Samples) -> Sounding:
        """What the judges say of speech; where there is none, nothing is heard, and it sounds as silence."""
        judges, rules, silent = self._judges, self._rules[language], not len(samples)
        heard: str | None = None
        second: Errors | None = None
        if judges.recognizer and judges.recognizer.knows(language):
            heard = "" if silent else judges.recognizer.transcribe(samples, language)
        if language == judges.second.LANGUAGE:
            guessed = "" if silent else judges.second.transcribe(samples)
            second = count_errors(text, guessed, rules)
        samples = np.zeros(SAMPLE_RATE, np.float32) if silent else samples
        return Sounding(
            id=id,
            kind=kind,
            language=language,
            voice=voice,
            text=text,
            heard=heard,
            errors=None if heard is None else count_errors(text, heard, rules),
            second_errors=second,
            dnsmos=judges.quality.overall(np.clip(samples, -1, 1)) if judges.quality else None,
            vector=judges.voices.embed(samples) if judges.voices else None,
            samples=samples,
        )


def has_words(text: str, rules: LanguageRules) -> bool:
    """True if there is something in a text that a recogniser could hear: "Hmm..." is no word."""
    return count_errors(text, "", rules).length > 0


def speech_metrics(
    soundings: Sequence[Sounding], rules: Mapping[str, LanguageRules], seed: int
) -> dict[str, Any]:
    """`tts`, `resynthesis` (error rates beside the recordings'), `dnsmos`, `speaker_similarity`, `voices`.

    Only what a judge was at hand for.
    """
    names = ("tts", "resynthesis", "dnsmos", "speaker_similarity", "voices")
    metrics: dict[str, Any] = {name: {} for name in names}
    for language, group in grouped(soundings, lambda each: each.language).items():
        kinds = grouped(group, lambda each: each.kind)
        metric = rules[language].metric
        for kind in ("resynthesis", "tts"):
            figures = {
                **_rate(kinds[kind], metric, "ci95", seed),
                **_rate(kinds["reference"], f"reference_{metric}", "reference_ci95", seed),
                **_second(kinds[kind], metric),
                **_second(kinds["reference"], f"reference_{metric}"),
            }
            if figures:
                metrics[kind][language] = {**figures, "n": len(kinds[kind])}
        for kind in KINDS:
            scores = [each.dnsmos for each in kinds[kind] if each.dnsmos is not None]
            if scores:
                metrics["dnsmos"].setdefault(kind, {})[language] = _mean(scores, seed)
            alike = _similarities(kinds[kind], kinds["reference"])
            if alike:
                metrics["speaker_similarity"].setdefault(kind, {})[language] = _mean(alike, seed)
        for voice, of_voice in grouped(group, lambda each: each.voice).items():
            metrics["voices"].setdefault(language, {})[voice] = _voice(of_voice, metric)
    return {name: figures for name, figures in metrics.items() if figures}


def _voice(soundings: Sequence[Sounding], metric: str) -> dict[str, Any]:
    """Error rates of a voice's recordings, units spoken again and texts read aloud, and how these sound."""
    kinds = grouped(soundings, lambda each: each.kind)
    figures: dict[str, Any] = {"n": len(kinds["tts"])}
    for kind, name in (
        ("reference", f"reference_{metric}"),
        ("resynthesis", f"resynthesis_{metric}"),
        ("tts", metric),
    ):
        if errors := [each.errors for each in kinds[kind] if each.errors is not None]:
            figures[name] = error_rate(errors)
    if scores := [each.dnsmos for each in kinds["tts"] if each.dnsmos is not None]:
        figures["dnsmos"] = mean(scores)
    if alike := _similarities(kinds["tts"], kinds["reference"]):
        figures["speaker_similarity"] = mean(alike)
    return figures


def answer_metrics(
    answers: Sequence[SpokenAnswer], rules: Mapping[str, LanguageRules], seed: int
) -> dict[str, Any]:
    """Of `conversation` and `cross_lingual`, and of each voice: error of speech against its own text; language
    of the sound."""
    metrics: dict[str, Any] = {}
    for (asked, wanted), group in grouped(answers, lambda each: each.answer.dialogue.pair).items():
        soundings = [each.sounding for each in group]
        numbers: dict[str, Any] = {"speech_n": len(group)}
        numbers |= _rate(soundings, f"speech_{rules[wanted].metric}", "speech_ci95", seed)
        if found := [each.heard_language for each in group if each.heard_language is not None]:
            lost = sum(language != wanted for language in found)
            numbers["speech_off_target"] = lost / len(found)
            numbers["speech_off_target_ci95"] = wilson(lost, len(found))
        if scores := [each.dnsmos for each in soundings if each.dnsmos is not None]:
            numbers["speech_dnsmos"] = mean(scores)
        kind, key = place_of(asked, wanted)
        metrics.setdefault(kind, {})[key] = numbers
    for language, of_language in grouped(answers, lambda each: each.sounding.language).items():
        for voice, of_voice in grouped(of_language, lambda each: each.sounding.voice).items():
            errors = [each.sounding.errors for each in of_voice if each.sounding.errors is not None]
            figures: dict[str, float] = {"n": len(of_voice)}
            if errors:
                figures[rules[language].metric] = error_rate(errors)
            metrics.setdefault("answer_voices", {}).setdefault(language, {})[voice] = figures
    return metrics


def _rate(soundings: Sequence[Sounding], name: str, interval: str, seed: int) -> dict[str, Any]:
    """Error rate and its interval by these names, if the recogniser was at hand."""
    errors = [each.errors for each in soundings if each.errors is not None]
    if not errors:
        return {}
    limits = bootstrap([e.total for e in errors], [e.length for e in errors], seed)
    return {name: error_rate(errors), interval: limits}


def _second(soundings: Sequence[Sounding], name: str) -> dict[str, float]:
    """What the second recogniser makes of the same speech, where it knows the language."""
    errors = [each.second_errors for each in soundings if each.second_errors]
    return {f"second_{name}": error_rate(errors)} if errors else {}


def _mean(values: Sequence[float], seed: int) -> dict[str, Any]:
    return {"mean": mean(values), "ci95": bootstrap(values, [1.0] * len(values), seed), "n": len(values)}


def _similarities(soundings: Sequence[Sounding], references: Sequence[Sounding]) -> list[float]:
    """Cosine of each voice to the mean of the other recordings of the same speaker, where there are any."""
    alike = []
    for each in soundings:
        if each.speaker is None:
            continue
        others = [
            other.vector
            for other in references
            if other.vector is not None and other.speaker == each.speaker and other.id != each.id
        ]
        if others and each.vector is not None:
            center = np.mean(others, axis=0)
            alike.append(float(each.vector @ center / np.linalg.norm(center)))
    return alike
