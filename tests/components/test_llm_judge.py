"""Marks by a language model: a small server here speaks the protocol; no model answers, the test does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from components.evaluate import llm_judge
from components.evaluate.llm_judge import KEY, JudgeFailed, judge_answers
from components.settings import LlmJudge
from cslm.evaluation.error_rates import NO_ERRORS
from cslm.evaluation.held_out import Dialogue
from cslm.evaluation.tasks import Answer
from cslm.sequences import Chunk, Parsed


class Endpoint(BaseHTTPRequestHandler):
    """Replies with `said`, and keeps what it was asked."""

    said = "5"
    status = 200
    busy = 0
    asked: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({"path": self.path, "key": self.headers["Authorization"], **body})
        reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": self.said}}]}).encode()
        busy = len(self.asked) <= self.busy
        self.send_response(429 if busy else self.status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[LlmJudge]:
    monkeypatch.setenv(KEY, "secret")
    monkeypatch.setattr(Endpoint, "asked", [])
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield LlmJudge(url=f"http://127.0.0.1:{server.server_port}/v1", model="big", answers=2)
    server.shutdown()
    server.server_close()


def answer(name: str, asked: str, wanted: str) -> Answer:
    dialogue = Dialogue(name, asked, f"question {name}", "", (1,), wanted, f"reference {name}")
    parsed = Parsed("", (Chunk(f"answer {name}", (1,)),), True)
    return Answer(dialogue, parsed, NO_ERRORS, False, 0.0, False, "en")


ANSWERS = [answer("a", "en", "en"), answer("b", "en", "en"), answer("c", "en", "en"), answer("d", "en", "zh")]


def test_each_pair_gets_the_mean_of_its_marks(judge: LlmJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Endpoint, "said", " 4.")
    metrics = judge_answers(ANSWERS, judge, seed=1, on_answer=lambda done, total: None)
    assert metrics["conversation"]["en"]["judge_score"] == 4
    assert metrics["conversation"]["en"]["judge_n"] == 2, "as many as settings allow"
    assert metrics["cross_lingual"]["en_zh"]["judge_n"] == 1
    last = Endpoint.asked[-1]
    assert (last["path"], last["key"], last["model"]) == ("/v1/chat/completions", "Bearer secret", "big")
    [message] = last["messages"]
    assert all(f"{part} d" in message["content"] for part in ("question", "reference", "answer"))


@pytest.mark.parametrize(("said", "status", "word"), [("very good", 200, "very good"), ("5", 500, "500")])
def test_without_a_mark_nothing_is_made_up(
    judge: LlmJudge, monkeypatch: pytest.MonkeyPatch, said: str, status: int, word: str
) -> None:
    monkeypatch.setattr(llm_judge, "PAUSES_S", (0.01,))
    monkeypatch.setattr(Endpoint, "said", said)
    monkeypatch.setattr(Endpoint, "status", status)
    with pytest.raises(JudgeFailed, match=word):
        judge_answers(ANSWERS, judge, seed=1, on_answer=lambda done, total: None)


@pytest.mark.parametrize("said", ["4/5", "4 out of 5", "Mark: 4"])
def test_a_mark_is_read_however_it_is_put(judge: LlmJudge, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setattr(Endpoint, "said", said)
    metrics = judge_answers(ANSWERS, judge, seed=1, on_answer=lambda done, total: None)
    assert metrics["conversation"]["en"]["judge_score"] == 4


def test_an_endpoint_that_is_busy_is_asked_again(judge: LlmJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_judge, "PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(Endpoint, "said", "5")
    monkeypatch.setattr(Endpoint, "busy", 2)
    metrics = judge_answers(ANSWERS, judge, seed=1, on_answer=lambda done, total: None)
    assert metrics["conversation"]["en"]["judge_score"] == 5
    assert len(Endpoint.asked) == 3 + 2


def test_an_endpoint_that_is_not_there_is_named() -> None:
    nowhere = LlmJudge(url="http://127.0.0.1:9/v1", model="big")
    with pytest.raises(JudgeFailed, match=r"127\.0\.0\.1:9"):
        judge_answers(ANSWERS, nowhere, seed=1, on_answer=lambda done, total: None)
