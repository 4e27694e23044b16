"""From judged items to the numbers of `metrics/evaluation.json`: rates as fractions, each with its `n`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from cslm.evaluation.confidence import bootstrap, wilson
from cslm.evaluation.error_rates import NO_ERRORS, Errors, error_rate
from cslm.evaluation.held_out import Utterance, grouped, place_of
from cslm.evaluation.normalization import LanguageRules
from cslm.evaluation.perplexity import perplexity
from cslm.evaluation.similarity import Similarity
from cslm.evaluation.tasks import Answer, Transcript, Translated, WrittenAnswer
from cslm.evaluation.translation import bleu

Rules = Mapping[str, LanguageRules]
Metrics = dict[str, Any]


def transcription(transcripts: Iterable[Transcript], rules: Rules, seed: int) -> Metrics:
    """`{language: {wer or cer, n, words or characters, ci95}}`."""
    return {
        language: _rate([item.errors for item in group], rules[language], seed)
        for language, group in grouped(transcripts, lambda item: item.utterance.language).items()
    }


def question_transcription(answers: Iterable[Answer], rules: Rules, seed: int) -> Metrics:
    """Errors of the questions as the dialogues wrote them down. A question asked twice is resampled as one."""
    metrics = {}
    for language, group in grouped(answers, lambda answer: answer.dialogue.question_language).items():
        questions = grouped(group, lambda answer: answer.dialogue.question_speech)
        errors = [sum((a.question_errors for a in same), NO_ERRORS) for same in questions.values()]
        metrics[language] = _rate(errors, rules[language], seed)
    return metrics


def _rate(errors: Sequence[Errors], rules: LanguageRules, seed: int) -> Metrics:
    counts: Metrics = {"n": len(errors), rules.unit: sum(e.length for e in errors)}
    if not counts[rules.unit]:
        return counts
    interval = bootstrap([e.total for e in errors], [e.length for e in errors], seed)
    return {rules.metric: error_rate(errors), **counts, "ci95": interval}


def conversation(answers: Iterable[Answer], seed: int) -> Metrics:
    """`{conversation: {language: ...}, cross_lingual: {asked_wanted: ...}}` for the pairs that are there."""
    metrics: Metrics = {}
    for (asked, wanted), group in grouped(answers, lambda answer: answer.dialogue.pair).items():
        n = len(group)
        right = sum(answer.right for answer in group)
        lost = sum(answer.off_target for answer in group)
        scores = {
            "exact_match": right / n,
            "f1": mean(answer.f1 for answer in group),
            "off_target": lost / n,
            "well_formed": sum(answer.parsed.well_formed for answer in group) / n,
            "n": n,
            "ci95": wilson(right, n),
            "f1_ci95": bootstrap([answer.f1 for answer in group], [1.0] * n, seed),
            "off_target_ci95": wilson(lost, n),
        }
        kind, key = place_of(asked, wanted)
        metrics.setdefault(kind, {})[key] = scores
    return metrics


def later_turn(answers: Sequence[Answer]) -> Metrics:
    """`{exact_match, n, ci95}` of all pairs of languages together."""
    right = sum(answer.right for answer in answers)
    return {"exact_match": right / len(answers), "n": len(answers), "ci95": wilson(right, len(answers))}


def text_instruction(answers: Iterable[WrittenAnswer]) -> Metrics:
    """`{language: {exact_match, n, ci95}}`."""
    metrics = {}
    for language, group in grouped(answers, lambda answer: answer.dialogue.answer_language).items():
        right = sum(answer.right for answer in group)
        metrics[language] = {
            "exact_match": right / len(group),
            "n": len(group),
            "ci95": wilson(right, len(group)),
        }
    return metrics


def translation(translated: Iterable[Translated], rules: Rules) -> Metrics:
    """`{source_target: {bleu, n}}`, BLEU from 0 to 100."""
    pairs = grouped(
        translated, lambda item: (item.translation.source_language, item.translation.target_language)
    )
    return {
        f"{source}_{target}": {
            "bleu": bleu(
                [item.text for item in group], [item.translation.target for item in group], rules[target]
            ),
            "n": len(group),
        }
        for (source, target), group in pairs.items()
    }


def unit_perplexity(utterances: Sequence[Utterance], losses: Sequence[tuple[float, int]]) -> Metrics:
    """`{language: {perplexity, n, units}}`."""
    pairs = list(zip(utterances, losses, strict=True))
    return {
        language: {
            "perplexity": perplexity(loss for _, loss in group),
            "n": len(group),
            "units": sum(count for _, (_, count) in group),
        }
        for language, group in grouped(pairs, lambda pair: pair[0].language).items()
    }


def alignment(similarities: Mapping[str, Similarity]) -> Metrics:
    """All pairs of all languages at the top (weighted by pairs), and each language below."""
    total = sum(s.n for s in similarities.values())
    if not total:
        return {}
    languages = {language: _similarity(s) for language, s in similarities.items()}
    shared = [name for name in next(iter(languages.values())) if all(name in v for v in languages.values())]
    overall = {name: sum(v[name] * v["n"] for v in languages.values()) / total for name in shared}
    return {**overall, "n": total, **languages}


def _similarity(similarity: Similarity) -> Metrics:
    metrics: Metrics = {
        "similarity": similarity.similarity,
        "centered_similarity": similarity.centered,
        "mismatched_similarity": similarity.mismatched,
        "retrieval_accuracy": similarity.retrieval_accuracy,
        "retrieval_speech_to_text": similarity.speech_to_text,
        "retrieval_text_to_speech": similarity.text_to_speech,
        "n": similarity.n,
    }
    return {name: value for name, value in metrics.items() if value is not None}


def merge(metrics: Metrics, more: Mapping[str, Any]) -> Metrics:
    """Both trees of figures in one."""
    merged = dict(metrics)
    for name, value in more.items():
        known = merged.get(name)
        merged[name] = merge(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return merged
