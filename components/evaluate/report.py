"""The report of an evaluation: one self-contained page, and what the model said as JSON lines."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components.evaluate import plots
from components.evaluate.figures import TARGETS, Headline, headlines
from components.evaluate.players import player
from components.evaluate.speech import JUDGES, SpeechResults
from components.settings import Settings
from cslm.evaluation.held_out import grouped, spread
from cslm.evaluation.normalization import LanguageRules
from cslm.evaluation.streaming import Timing
from cslm.evaluation.tasks import Answer, Transcript
from cslm.prompts import LANGUAGE_NAMES

SAMPLES = 20
READ_ALOUD = 6
WRONG_ANSWERS = 30
WORST_TRANSCRIPTS = 15
MOST_INTENTS = 0.5
"""Of the answers: with more, ids do not tell what kind of question it is."""
SPLIT_NAMES = {"test": "test", "dev": "dev", "heldout_voice": "held-out voice"}
LABELS = {
    "asr": "Speech recognition",
    "tq": "Question transcription",
    "conversation": "Spoken answers",
    "cross_lingual": "Cross-lingual answers",
    "later_turn": "Spoken answers to a second question",
    "text_instruction": "Written answers",
    "mt": "Translation",
    "alignment": "Speech and text",
    "latency": "First speech",
    "tts": "Reading aloud",
    "resynthesis": "Speaking units again",
    "dnsmos": "Sound quality",
    "speaker_similarity": "Likeness of the voice",
}
METRIC_LABELS = {
    "wer": "word error rate",
    "cer": "character error rate",
    "exact_match": "exact match",
    "off_target": "wrong language",
    "bleu": "BLEU",
    "similarity": "cosine of parallel utterances",
    "retrieval_accuracy": "retrieval accuracy",
    "speedup_over_full_chain": "speed-up over the full chain",
    "audio_speedup": "sound, speed-up over the full chain",
    "first_audio_ms": "first sound after the question",
    "rtf": "seconds of work for a second of sound",
    "underruns": "answers that run dry",
    "reference_wer": "word error rate of the recordings",
    "reference_cer": "character error rate of the recordings",
    "second_wer": "word error rate, second opinion",
    "second_reference_wer": "word error rate of the recordings, second opinion",
    "judge_score": "mark of a language model (1 to 5)",
    "speech_wer": "word error rate of the sound",
    "speech_cer": "character error rate of the sound",
    "speech_off_target": "wrong language of the sound",
    "mean": "mean",
}
SOUND_NAMES = {
    "reference": "recording",
    "resynthesis": "its units, spoken again",
    "tts": "its text, read aloud by the model",
}
PLAIN = {
    "bleu": "{:.1f}",
    "speedup_over_full_chain": "{:.2f}x",
    "audio_speedup": "{:.2f}x",
    "first_audio_ms": "{:.0f} ms",
    "rtf": "{:.2f}",
    "judge_score": "{:.2f}",
    "mean": "{:.2f}",
}
"""Figures that are no fractions; the others are shown in percent."""
NOT_MEASURED = {"value": "not measured", "interval": "", "paper": "", "target": ""}


@dataclass(frozen=True)
class SplitResults:
    """What the model said on one split."""

    transcripts: list[Transcript]
    answers: list[Answer]


def write_report(
    folder: Path,
    metrics: Mapping[str, Any],
    results: Mapping[str, SplitResults],
    speech: SpeechResults,
    rules: Mapping[str, LanguageRules],
    settings: Settings,
) -> None:
    """Write `index.html`, `headlines.json`, `dialogues.jsonl` and `transcripts.jsonl` into `folder`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"percent": percent, "language": language_name}
    test = results["test"]
    by_split = {name: metrics if name == "test" else metrics.get(name, {}) for name in results}
    first = [(label(h.name), _headline_cells(h), h.reached) for h in headlines(metrics)]
    first += [(JUDGES[judge], NOT_MEASURED, None) for judge in speech.missing]
    page = environment.get_template("report.html.j2").render(
        settings=settings,
        metrics=metrics,
        splits={name: label for name, label in SPLIT_NAMES.items() if name in results},
        by_split=by_split,
        headlines=first,
        rates_plot=_rates_plot(by_split, rules),
        latency_plot=plots.latency(metrics["latency"]) if metrics.get("latency", {}).get("n") else None,
        speech=speech,
        heard=spread(speech.answers, SAMPLES, settings.evaluate.seed),
        read=spread([s for s in speech.soundings if s.kind == "tts"], READ_ALOUD, settings.evaluate.seed),
        sound={(s.id, s.kind): s.samples for s in speech.soundings},
        player=player,
        sound_names=SOUND_NAMES,
        spectrograms=_spectrograms(speech, settings.evaluate.seed),
        waterfall=plots.waterfall(_typical(speech.timings)) if speech.timings else None,
        written=confusion(rules, ((a.dialogue.answer_language, a.language) for a in test.answers)),
        judges=JUDGES,
        sounding=confusion(
            rules, ((s.sounding.language, s.heard_language) for s in speech.answers if s.heard_language)
        ),
        intents=intents(test.answers),
        samples=spread(test.answers, SAMPLES, settings.evaluate.seed),
        wrong=[answer for answer in test.answers if not answer.right],
        wrong_shown=WRONG_ANSWERS,
        worst=worst(test.transcripts, rules),
        pair_name=pair_name,
        rules=rules,
    )
    (folder / "index.html").write_text(page, "utf-8")
    rows = [{"title": title, **cells, "reached": reached} for title, cells, reached in first]
    (folder / "headlines.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", "utf-8")
    _write_lines(folder / "dialogues.jsonl", (_answer_row(s, a) for s, r in results.items() for a in r.answers))
    _write_lines(
        folder / "transcripts.jsonl", (_transcript_row(s, t) for s, r in results.items() for t in r.transcripts)
    )


def _typical(timings: Sequence[Timing]) -> Timing:
    """The answer whose first sound came neither early nor late."""
    return sorted(timings, key=lambda timing: timing.first_audio)[len(timings) // 2]


def _spectrograms(speech: SpeechResults, seed: int) -> str | None:
    """One recording, its units spoken again, and its text read aloud."""
    kinds = grouped(speech.soundings, lambda sounding: sounding.id)
    if not kinds:
        return None
    [chosen] = spread(list(kinds.values()), 1, seed)
    return plots.spectrograms({SOUND_NAMES[sounding.kind]: sounding.samples for sounding in chosen})


def percent(value: float) -> str:
    """0.0312 -> `3.1 %`; more decimals where they matter."""
    return f"{100 * value:.2f} %" if 0 < abs(value) < 0.01 else f"{100 * value:.1f} %"


def language_name(code: str) -> str:
    """`en` -> English; the code itself where no name is known."""
    return LANGUAGE_NAMES.get(code, code)


def pair_name(asked: str, answered: str) -> str:
    """`en`, `zh` -> `English to Chinese`."""
    return language_name(asked) if asked == answered else f"{language_name(asked)} to {language_name(answered)}"


def label(name: str) -> str:
    """`heldout_voice.asr.en.wer` -> `Speech recognition, English, held-out voice: word error rate`."""
    split = next((split for split in SPLIT_NAMES if name.startswith(f"{split}.")), "")
    kind, *languages, metric = name.removeprefix(f"{split}.").split(".")
    parts = [LABELS.get(kind, kind)]
    parts += [pair_name(*key.split("_")) if "_" in key else language_name(key) for key in languages]
    parts += [SPLIT_NAMES[split]] if split else []
    return f"{', '.join(parts)}: {METRIC_LABELS.get(metric, metric.replace('_', ' '))}"


def _headline_cells(headline: Headline) -> dict[str, str]:
    form = PLAIN.get(headline.name.rsplit(".", 1)[-1])

    def show(value: float | None) -> str:
        return "" if value is None else form.format(value) if form else percent(value)

    sign = ("≤" if headline.lower_is_better else "≥") if headline.target is not None else ""
    sign = "<" if headline.name.endswith("off_target") and sign else sign
    interval = f"{show(headline.ci95[0])} to {show(headline.ci95[1])}" if headline.ci95 else ""
    interval += f" (n = {headline.n})" if headline.n else ""
    return {
        "value": show(headline.value),
        "interval": interval,
        "paper": show(headline.paper),
        "target": f"{sign} {show(headline.target)}".strip(),
    }


def _rates_plot(by_split: Mapping[str, Mapping[str, Any]], rules: Mapping[str, LanguageRules]) -> str | None:
    points: list[plots.Rate] = []
    targets: dict[str, float] = {}
    for kind in ("asr", "tq"):
        for language, rule in rules.items():
            row = f"{LABELS[kind]}, {language_name(language)} ({rule.metric.upper()})"
            target = TARGETS.get(f"{kind}.{language}.{rule.metric}")
            targets |= {} if target is None else {row: target}
            for split, metrics in by_split.items():
                numbers = metrics.get(kind, {}).get(language, {})
                if rule.metric in numbers:
                    low, high = numbers["ci95"]
                    points.append(plots.Rate(row, SPLIT_NAMES[split], numbers[rule.metric], (low, high)))
    return plots.rates(points, targets) if points else None


def confusion(languages: Iterable[str], pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """(language asked for, language found) -> how often, by both; what is in no language is under ""."""
    counts: dict[str, Counter[str]] = {}
    for asked, found in pairs:
        counts.setdefault(asked, Counter())[found] += 1
    columns = [*languages, *([""] if any(row[""] for row in counts.values()) else [])]
    return {asked: {found: counts[asked][found] for found in columns} for asked in columns if asked in counts}


def intents(answers: Iterable[Answer]) -> dict[str, Any]:
    """Exact match by intent (what the id says before its first `-`) and pair of languages, worst first.

    Ids of other corpora say something else there: with more than `MOST_INTENTS` there are none.

    Returns:
        `{pairs, rows: [(intent, [(right, n) of each pair], share, n)], perfect: [intents all right]}`
    """
    named = [answer for answer in answers if "-" in answer.dialogue.id]
    pairs = sorted({answer.dialogue.pair for answer in named}, key=lambda pair: (pair[0] != pair[1], pair))
    rows = []
    groups = grouped(named, lambda answer: answer.dialogue.id.split("-")[0])
    if len(groups) > MOST_INTENTS * len(named):
        return {"pairs": [], "rows": [], "perfect": []}
    for intent, group in groups.items():
        by_pair = grouped(group, lambda answer: answer.dialogue.pair)
        cells = [(sum(a.right for a in by_pair.get(pair, [])), len(by_pair.get(pair, []))) for pair in pairs]
        rows.append((intent, cells, sum(a.right for a in group) / len(group), len(group)))
    rows.sort(key=lambda row: (row[2], row[0]))
    perfect = sorted(row[0] for row in rows if row[2] == 1)
    return {"pairs": pairs, "rows": [row for row in rows if row[2] < 1], "perfect": perfect}


def worst(transcripts: Iterable[Transcript], rules: Mapping[str, LanguageRules]) -> list[dict[str, Any]]:
    """The utterances with the highest error rates, as pieces of text that are kept, missing or added."""
    wrong = [t for t in transcripts if t.errors.total]
    wrong.sort(key=lambda t: (-t.errors.total / max(t.errors.length, 1), t.utterance.id))
    return [
        {
            "id": t.utterance.id,
            "language": t.utterance.language,
            "reference": t.utterance.text,
            "text": t.text,
            "rate": t.errors.total / max(t.errors.length, 1),
            "pieces": _pieces(t, rules[t.utterance.language]),
        }
        for t in wrong[:WORST_TRANSCRIPTS]
    ]


def _pieces(transcript: Transcript, rules: LanguageRules) -> list[tuple[str, str]]:
    """[("keep" | "missing" | "added", text)]: normalized reference turned into the transcript."""
    blank = "" if rules.by_character else " "
    expected, heard = rules.tokens(transcript.utterance.text, transcript.text)
    pieces: list[tuple[str, str]] = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, expected, heard, autojunk=False).get_opcodes():
        if tag == "equal":
            pieces.append(("keep", blank.join(expected[a:b])))
            continue
        pieces += [("missing", blank.join(expected[a:b]))] if b > a else []
        pieces += [("added", blank.join(heard[c:d]))] if d > c else []
    return pieces


def _answer_row(split: str, answer: Answer) -> dict[str, Any]:
    dialogue = answer.dialogue
    return {
        "id": dialogue.id,
        "split": split,
        "question_language": dialogue.question_language,
        "question": dialogue.question,
        "transcript": answer.parsed.question,
        "answer_language": dialogue.answer_language,
        "reference": dialogue.answer,
        "answer": answer.parsed.text,
        "chunks": [{"text": chunk.text, "units": len(chunk.units)} for chunk in answer.parsed.chunks],
        "exact_match": answer.right,
        "f1": answer.f1,
        "off_target": answer.off_target,
        "well_formed": answer.parsed.well_formed,
    }


def _transcript_row(split: str, transcript: Transcript) -> dict[str, Any]:
    utterance = transcript.utterance
    return {
        "id": utterance.id,
        "split": split,
        "language": utterance.language,
        "reference": utterance.text,
        "transcript": transcript.text,
        **asdict(transcript.errors),
    }


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
