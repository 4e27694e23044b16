"""An optional judge of answers: a language model behind any OpenAI-compatible endpoint (paper, section 4.2).

Off unless params.yaml says `evaluate.llm_judge: {url: https://host/v1, model: name}`; the key, if one is
needed, is in the environment variable CSLM_JUDGE_API_KEY. What it is asked is llm_judge.txt.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import httpx

from components.settings import LlmJudge
from cslm.evaluation.confidence import bootstrap
from cslm.evaluation.held_out import grouped, place_of, spread
from cslm.evaluation.tasks import Answer

PROMPT = (Path(__file__).parent / "llm_judge.txt").read_text("utf-8")
KEY = "CSLM_JUDGE_API_KEY"
TIMEOUT_S = 60.0
RETRIES = 3
"""Of connecting."""
PAUSES_S = (1.0, 4.0, 16.0)
"""Before an endpoint that is busy is asked again, if it does not say itself when."""
MARK = re.compile(r"\b([1-5])\b(?:\s*(?:/|out of)\s*5\b)?")
BUSY = {429, 500, 502, 503, 504}
"""What an endpoint says that may work a little later."""


class JudgeFailed(RuntimeError):
    """The endpoint cannot be reached or gives no mark; the message says what it said."""


def judge_answers(
    answers: Sequence[Answer],
    judge: LlmJudge,
    seed: int,
    on_answer: Callable[[int, int], None],
) -> dict[str, Any]:
    """`judge_score` of `conversation` and `cross_lingual`, as the mean over `judge.answers` of each pair.

    Raises:
        JudgeFailed: nothing is measured then, as some marks would not be those of all.
    """
    groups = grouped(answers, lambda answer: answer.dialogue.pair)
    chosen = {pair: spread(group, judge.answers, seed) for pair, group in groups.items()}
    total, done = sum(map(len, chosen.values())), 0
    metrics: dict[str, Any] = {}
    with _client(judge) as client:
        for (asked, wanted), group in chosen.items():
            marks: list[float] = []
            for answer in group:
                marks.append(_mark(client, judge.model, answer))
                done += 1
                on_answer(done, total)
            kind, key = place_of(asked, wanted)
            metrics.setdefault(kind, {})[key] = {
                "judge_score": mean(marks),
                "judge_score_ci95": bootstrap(marks, [1.0] * len(marks), seed),
                "judge_n": len(marks),
            }
    return metrics


def _client(judge: LlmJudge) -> httpx.Client:
    key = os.environ.get(KEY)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    transport = httpx.HTTPTransport(retries=RETRIES)
    return httpx.Client(
        base_url=judge.url.rstrip("/") + "/", headers=headers, timeout=TIMEOUT_S, transport=transport
    )


def _mark(client: httpx.Client, model: str, answer: Answer) -> float:
    """One mark from 1 to 5."""
    dialogue = answer.dialogue
    asked = PROMPT.format(question=dialogue.question, reference=dialogue.answer, answer=answer.parsed.text)
    body = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": asked}]}
    try:
        for pause in (*PAUSES_S, None):
            response = client.post("chat/completions", json=body)
            if response.status_code not in BUSY or pause is None:
                break
            time.sleep(min(_seconds(response.headers.get("Retry-After")) or pause, TIMEOUT_S))
        response.raise_for_status()
        said = str(response.json()["choices"][0]["message"]["content"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise JudgeFailed(f"{client.base_url}: {type(error).__name__}: {error}") from error
    marks = MARK.findall(said)
    if len(marks) != 1:
        raise JudgeFailed(f"{client.base_url}: one mark from 1 to 5 was asked for, {said[:80]!r} came")
    return float(marks[0])


def _seconds(text: str | None) -> float:
    """Of a header `Retry-After`; 0 if it has none, or is a date."""
    return float(text) if text and text.isdigit() else 0.0
