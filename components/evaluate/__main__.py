"""Evaluate the model on everything held out, and write the report.

Run:  python -m components.evaluate

Reads `work/model` (checkpoint), `work/tokenizer` and `work/decoder`, `work/aligned` (utterances with units) and
`work/accepted` (recordings, dialogues, translations). Writes `metrics/evaluation.json` (the test split at the
top, `dev` and `heldout_voice` below) and `report/evaluation`: `index.html`, its first table as
`headlines.json` (which `make demo` prints), and what the model said as `dialogues.jsonl` and
`transcripts.jsonl`. `evaluate.limit` in params.yaml takes only so many items of each kind and language.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import typer

from components.evaluate.llm_judge import JudgeFailed, judge_answers
from components.evaluate.report import SplitResults, write_report
from components.evaluate.speech import evaluate_speech
from components.settings import Settings
from components.stage import Stage, StageFailed
from cslm.decoder import SpeechDecoder
from cslm.evaluation import summary
from cslm.evaluation.held_out import Dialogue, HeldOut, Translation, Utterance, grouped, read_held_out, spread
from cslm.evaluation.latency import compare_chains
from cslm.evaluation.normalization import LanguageRules, rules_for
from cslm.evaluation.perplexity import unit_losses
from cslm.evaluation.similarity import Similarity, compare
from cslm.evaluation.tasks import Answer, Evaluator
from cslm.generation import SpeechLanguageModel
from cslm.shards import read_rows
from cslm.tokenizer import open_tokenizer

MODEL, ALIGNED, ACCEPTED = Path("work/model"), Path("work/aligned"), Path("work/accepted")
TOKENIZER, DECODER = Path("work/tokenizer"), Path("work/decoder")
REPORT = Path("report/evaluation")
SPLITS = ("test", "dev", "heldout_voice")
VOICE_ONLY = ("heldout_voice",)
"""Splits that differ from test by their voice: no written tasks, no latency."""
UNASKED = ("units", "question_units", "answer_speech")
"""What is known of an item, but neither asked nor judged: another tokenizer does not make another test."""
PROGRESS_EVERY_S = 2.0


def main() -> None:
    """Evaluate work/model on the held-out splits of work/aligned and work/accepted (params.yaml: evaluate)."""
    with Stage("evaluate", metrics="evaluation") as stage:
        settings = stage.settings
        try:
            splits = {split: read_split(split, settings) for split in SPLITS}
        except FileNotFoundError as error:
            raise StageFailed(f"{error}; run the stages before this one (make demo)") from error
        if not splits["test"].utterances and not splits["test"].dialogues:
            raise StageFailed(
                f"no utterance of {ALIGNED} and no dialogue of {ACCEPTED} is of split 'test' and of the "
                f"languages {', '.join(settings.languages)}; give the corpus a test split"
            )
        if not (MODEL / "config.json").is_file():
            raise StageFailed(f"{MODEL} is no checkpoint (no config.json); run the finetune stage first")
        rules = _rules(list(splits.values()), settings.languages)
        model, options = SpeechLanguageModel.load(MODEL), settings.evaluate
        evaluator = Evaluator(model, rules, options.batch_size, _Progress(), options.chain)
        sounds = recording_hashes(splits["test"])
        metrics: dict[str, Any] = {
            "test_set": fingerprint(splits["test"], sounds),
            "test_parts": parts(splits["test"], sounds),
        }
        results: dict[str, SplitResults] = {}
        for split, items in splits.items():
            numbers, results[split] = evaluate(evaluator, items, settings)
            metrics |= numbers if split == "test" else {split: numbers}
        heard, speech = evaluate_speech(
            evaluator,
            SpeechDecoder.load(DECODER),
            open_tokenizer(TOKENIZER),
            splits["test"],
            results["test"].answers,
            settings,
        )
        marks = _marks(evaluator, results["test"].answers, settings)
        metrics = summary.merge(summary.merge(metrics, heard), marks)
        stage.log_metrics(metrics)  # first: a report that cannot be written does not cost them
        with stage.output(REPORT) as folder:
            write_report(folder, metrics, results, speech, rules, settings)
        mlflow.log_artifacts(str(REPORT), "evaluation")


def recording_hashes(items: HeldOut) -> dict[str, str]:
    """SHA-256 of the recording of each utterance, by id."""
    ids = [utterance.id for utterance in items.utterances]
    rows = read_rows(ACCEPTED / "utterances", ["id", "audio"], [items.split], ids)
    return {row["id"]: hashlib.sha256(row["audio"]).hexdigest() for row in rows}


def parts(items: HeldOut, sounds: Mapping[str, str]) -> dict[str, str]:
    """Fingerprint of each language and pair of languages: one that is added leaves those of the others."""
    split = items.split
    utterances = grouped(items.utterances, lambda item: item.language)
    dialogues = grouped(items.dialogues, lambda item: item.pair)
    translations = grouped(items.translations, lambda item: (item.source_language, item.target_language))
    alone = {language: HeldOut(split, group, [], []) for language, group in utterances.items()}
    together = {
        "_".join(pair): HeldOut(split, [], dialogues.get(pair, []), translations.get(pair, []))
        for pair in sorted({*dialogues, *translations})
    }
    return {name: fingerprint(part, sounds) for name, part in (alone | together).items()}


def fingerprint(items: HeldOut, sounds: Mapping[str, str]) -> str:
    """SHA-256 of all that the model is asked and should answer: figures of equal ones can be compared.

    Args:
        sounds: what `recording_hashes` says of these items, or of more.
    """
    asked = {utterance.id for utterance in items.utterances}
    digest = hashlib.sha256()
    everything: list[Utterance | Dialogue | Translation]
    everything = [*items.utterances, *items.dialogues, *items.translations]
    for item in everything:
        facts = {name: value for name, value in asdict(item).items() if name not in UNASKED}
        digest.update(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode())
    for sound in sorted(sounds[name] for name in asked & sounds.keys()):
        digest.update(sound.encode())
    return digest.hexdigest()


def _marks(evaluator: Evaluator, answers: list[Answer], settings: Settings) -> dict[str, Any]:
    """What a language model makes of the answers, if there is one to ask."""
    judge = settings.evaluate.llm_judge
    if judge is None:
        return {}
    try:
        progress = functools.partial(evaluator.progress, "marks")
        return judge_answers(answers, judge, settings.evaluate.seed, progress)
    except JudgeFailed as reason:
        print(f"note: answers are not marked: {reason}", flush=True)
        return {}


def evaluate(evaluator: Evaluator, items: HeldOut, settings: Settings) -> tuple[dict[str, Any], SplitResults]:
    """All figures of one split, and what the model said."""
    seed = settings.evaluate.seed
    pace = evaluator.units_per_token(items.utterances)
    transcripts = evaluator.transcribe(items.utterances)
    answers = evaluator.converse(items.spoken, pace)
    metrics: dict[str, Any] = {
        "asr": summary.transcription(transcripts, evaluator.rules, seed),
        "tq": summary.question_transcription(answers, evaluator.rules, seed),
        **summary.conversation(answers, seed),
    }
    if items.split not in VOICE_ONLY:
        metrics["mt"] = summary.translation(evaluator.translate(items.translations), evaluator.rules)
        metrics["text_instruction"] = summary.text_instruction(evaluator.answer_written(items.written))
        metrics |= _representation(evaluator, items)
        if items.split == "test":
            metrics["later_turn"] = _later_turn(evaluator, answers, settings, pace)
            metrics["latency"] = _latency(evaluator, items, settings, pace)
    return {name: value for name, value in metrics.items() if value}, SplitResults(transcripts, answers)


def _representation(evaluator: Evaluator, items: HeldOut) -> dict[str, Any]:
    """Unit perplexity, and similarity of parallel speech and text: at the middle layer, cosines at all."""
    layers = _similarities(evaluator, items)
    layer = len(layers) // 2
    losses = unit_losses(evaluator.model, items.utterances, evaluator.batch_size)
    metrics: dict[str, Any] = {"units": summary.unit_perplexity(items.utterances, losses)}
    if layers[layer]:
        cosines = [summary.alignment(languages)["similarity"] for languages in layers]
        metrics["alignment"] = {**summary.alignment(layers[layer]), "layer": layer, "by_layer": cosines}
    return metrics


def _similarities(evaluator: Evaluator, items: HeldOut) -> list[dict[str, Similarity]]:
    """Similarity of parallel speech and text for each layer, embeddings first, and language."""
    model, size = evaluator.model, evaluator.batch_size
    layers: list[dict[str, Similarity]] = [{} for _ in range(model.model.config.num_hidden_layers + 1)]
    for language, group in grouped(items.utterances, lambda utterance: utterance.language).items():
        evaluator.progress(f"similarity {language}", 0, len(group))
        speech = model.mean_hidden([model.builder.heard(list(u.units)) for u in group], size)
        text = model.mean_hidden([model.builder.read(u.text) for u in group], size)
        for figures, spoken, written in zip(layers, speech, text, strict=True):
            figures[language] = compare(spoken, written, [u.text for u in group])
        evaluator.progress(f"similarity {language}", len(group), len(group))
    return layers


def _later_turn(evaluator: Evaluator, answers: list[Answer], settings: Settings, pace: float) -> dict[str, Any]:
    """Exact answers to questions of all pairs of languages that are the second of a talk."""
    chosen = spread(answers, settings.evaluate.later_questions, settings.evaluate.seed)
    return summary.later_turn(evaluator.converse_later(chosen, pace)) if len(chosen) > 1 else {}


def _latency(evaluator: Evaluator, items: HeldOut, settings: Settings, pace: float) -> dict[str, object]:
    questions = spread(items.spoken, settings.evaluate.latency_questions, settings.evaluate.seed)
    if not questions:
        return {}
    room = evaluator.dialogue_room(questions, pace)
    return compare_chains(
        evaluator.model,
        questions,
        room,
        lambda done: evaluator.progress("latency", done, len(questions)),
    ).metrics()


def read_split(split: str, settings: Settings) -> HeldOut:
    """The items of a split, each kind and language (pair) cut to `evaluate.limit`."""
    items = read_held_out(ALIGNED, ACCEPTED, split, settings.languages)
    silent = sum(bool(d.question_speech) and not d.question_units for d in items.dialogues)
    if silent:
        print(f"note: {split}: {silent} questions are not asked, as their speech is not there", flush=True)
    limit, seed = settings.evaluate.limit, settings.evaluate.seed
    utterances = grouped(items.utterances, lambda item: item.language)
    dialogues = grouped(items.dialogues, lambda item: (*item.pair, bool(item.question_units)))
    translations = grouped(items.translations, lambda item: (item.source_language, item.target_language))
    return HeldOut(
        split,
        [item for group in utterances.values() for item in spread(group, limit, seed)],
        [item for group in dialogues.values() for item in spread(group, limit, seed)],
        [item for group in translations.values() for item in spread(group, limit, seed)],
    )


def _rules(splits: list[HeldOut], languages: list[str]) -> dict[str, LanguageRules]:
    """How to compare texts of each language; the texts themselves show the script of an unknown one."""
    texts: dict[str, list[str]] = {language: [] for language in languages}
    for items in splits:
        for utterance in items.utterances:
            texts[utterance.language].append(utterance.text)
        for dialogue in items.dialogues:
            texts[dialogue.answer_language].append(dialogue.answer)
    return {language: rules_for(language, references) for language, references in texts.items()}


class _Progress:
    """Prints `progress: NAME done/total`, at most every few seconds and at the end of each task."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def __call__(self, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - self._last >= PROGRESS_EVERY_S:
            print(f"progress: {name} {done}/{total}", flush=True)
            self._last = now


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
