"""Speech as others hear it: what the model reads aloud and answers, beside recordings of the same.

Three kinds of speech are judged alike (paper, section 4.2: ASR error of the speech, and its quality):

    reference      the recording itself: what the judges make of perfect speech
    resynthesis    recording -> units -> speech, in the same voice: what units and decoder lose
    tts            text -> units by the model -> speech, in the voice of the recording

and the spoken answers of the model, beside their own text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

from cslm.audio import SAMPLE_RATE, Samples
from cslm.decoder import SpeechDecoder
from cslm.evaluation.confidence import Interval, bootstrap, wilson
from cslm.evaluation.error_rates import Errors, count_errors, error_rate
from cslm.evaluation.held_out import Utterance, grouped
from cslm.evaluation.judges import Dnsmos, Recognizer, SecondOpinion, SpeakerEncoder, Vector
from cslm.evaluation.normalization import LanguageRules
from cslm.evaluation.tasks import Answer

KINDS = ("reference", "resynthesis", "tts")


@dataclass(frozen=True)
class Judges:
    """All who listen."""

    recognizer: Recognizer
    second: SecondOpinion
    quality: Dnsmos
    voices: SpeakerEncoder


@dataclass(frozen=True)
class Recording:
    """A held-out utterance with its sound, by a speaker whose voice the decoder has."""

    utterance: Utterance
    speaker: str
    samples: Samples


@dataclass(frozen=True)
class Sounding:
    """One piece of speech, and what the judges say of it."""

    id: str
    kind: str
    language: str
    voice: str
    text: str
    heard: str
    errors: Errors
    second_errors: Errors | None
    """Of the second recogniser, in the language that it knows."""
    dnsmos: float
    vector: Vector
    samples: Samples


@dataclass(frozen=True)
class SpokenAnswer:
    """An answer as sound; `heard_language` is what the recogniser takes it for."""

    answer: Answer
    sounding: Sounding
    heard_language: str


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
                "resynthesis": self._decoder.speak(utterance.units, each.speaker),
                "tts": self._decoder.speak(read[utterance.id], each.speaker),
            }
            for kind in KINDS:
                soundings.append(
                    self._hear(
                        utterance.id, kind, utterance.language, each.speaker, utterance.text, spoken[kind]
                    )
                )
            self._on_item()
        return soundings

    def answers(self, answers: Iterable[Answer], voices: Mapping[str, str]) -> list[SpokenAnswer]:
        """Each answer in the voice of its language."""
        heard = []
        for answer in answers:
            language = answer.dialogue.answer_language
            samples = self._decoder.speak(answer.parsed.units, voices[language])
            sounding = self._hear(
                answer.dialogue.id, "answer", language, voices[language], answer.parsed.text, samples
            )
            found = self._judges.recognizer.language(samples, list(self._rules))
            heard.append(SpokenAnswer(answer, sounding, found))
            self._on_item()
        return heard

    def _hear(self, id: str, kind: str, language: str, voice: str, text: str, samples: Samples) -> Sounding:
        """What the judges say of speech; where there is none, nothing is heard, and it sounds as silence."""
        silent = not len(samples)
        heard = "" if silent else self._judges.recognizer.transcribe(samples, language)
        second = None
        if language == self._judges.second.LANGUAGE:
            guessed = "" if silent else self._judges.second.transcribe(samples)
            second = count_errors(text, guessed, self._rules[language])
        samples = np.zeros(SAMPLE_RATE, np.float32) if silent else samples
        return Sounding(
            id=id,
            kind=kind,
            language=language,
            voice=voice,
            text=text,
            heard=heard,
            errors=count_errors(text, heard, self._rules[language]),
            second_errors=second,
            dnsmos=self._judges.quality.overall(np.clip(samples, -1, 1)),
            vector=self._judges.voices.embed(samples),
            samples=samples,
        )


def has_words(text: str, rules: LanguageRules) -> bool:
    """True if there is something in a text that a recogniser could hear: "Hmm..." is no word."""
    return count_errors(text, "", rules).length > 0


def speech_metrics(
    soundings: Sequence[Sounding], rules: Mapping[str, LanguageRules], seed: int
) -> dict[str, Any]:
    """`tts`, `resynthesis` (error rates beside the recordings'), `dnsmos`, `speaker_similarity`, `voices`."""
    names = ("tts", "resynthesis", "dnsmos", "speaker_similarity", "voices")
    metrics: dict[str, Any] = {name: {} for name in names}
    for language, group in grouped(soundings, lambda each: each.language).items():
        kinds = grouped(group, lambda each: each.kind)
        metric = rules[language].metric
        reference = _rate(kinds["reference"], seed)
        for kind in ("resynthesis", "tts"):
            rate = _rate(kinds[kind], seed)
            metrics[kind][language] = {
                metric: rate[0],
                "ci95": rate[1],
                f"reference_{metric}": reference[0],
                "reference_ci95": reference[1],
                "n": len(kinds[kind]),
                **_second(kinds[kind], metric),
                **_second(kinds["reference"], f"reference_{metric}"),
            }
        for kind in KINDS:
            scores = [each.dnsmos for each in kinds[kind]]
            metrics["dnsmos"].setdefault(kind, {})[language] = _mean(scores, seed)
            alike = _similarities(kinds[kind], kinds["reference"])
            if alike:
                metrics["speaker_similarity"].setdefault(kind, {})[language] = _mean(alike, seed)
        for voice, of_voice in grouped(group, lambda each: each.voice).items():
            metrics["voices"].setdefault(language, {})[voice] = _voice(of_voice, metric)
    return metrics


def _voice(soundings: Sequence[Sounding], metric: str) -> dict[str, Any]:
    """Error rates of a voice's recordings, units spoken again and texts read aloud, and how these sound."""
    kinds = grouped(soundings, lambda each: each.kind)
    alike = _similarities(kinds["tts"], kinds["reference"])
    return {
        f"reference_{metric}": error_rate(each.errors for each in kinds["reference"]),
        f"resynthesis_{metric}": error_rate(each.errors for each in kinds["resynthesis"]),
        metric: error_rate(each.errors for each in kinds["tts"]),
        "dnsmos": mean(each.dnsmos for each in kinds["tts"]),
        "n": len(kinds["tts"]),
        **({"speaker_similarity": mean(alike)} if alike else {}),
    }


def answer_metrics(
    answers: Sequence[SpokenAnswer], rules: Mapping[str, LanguageRules], seed: int
) -> dict[str, Any]:
    """Of `conversation` and `cross_lingual`: error of speech against its own text, language of the sound."""
    metrics: dict[str, Any] = {}
    for (asked, wanted), group in grouped(answers, lambda each: each.answer.dialogue.pair).items():
        rate, interval = _rate([each.sounding for each in group], seed)
        lost = sum(each.heard_language != wanted for each in group)
        numbers = {
            f"speech_{rules[wanted].metric}": rate,
            "speech_ci95": interval,
            "speech_off_target": lost / len(group),
            "speech_off_target_ci95": wilson(lost, len(group)),
            "speech_n": len(group),
        }
        kind, key = ("conversation", asked) if asked == wanted else ("cross_lingual", f"{asked}_{wanted}")
        metrics.setdefault(kind, {})[key] = numbers
        metrics[kind][key]["speech_dnsmos"] = mean(each.sounding.dnsmos for each in group)
    return metrics


def _rate(soundings: Sequence[Sounding], seed: int) -> tuple[float, Interval]:
    errors = [each.errors for each in soundings]
    return error_rate(errors), bootstrap([e.total for e in errors], [e.length for e in errors], seed)


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
        others = [other.vector for other in references if other.voice == each.voice and other.id != each.id]
        if others:
            center = np.mean(others, axis=0)
            alike.append(float(each.vector @ center / np.linalg.norm(center)))
    return alike
