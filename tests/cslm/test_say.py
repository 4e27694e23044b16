"""The command that answers one recording: what it writes, and what it says where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cslm import say
from cslm.audio import SAMPLE_RATE, decode, encode_wav
from cslm.conversation import Assistant, Event, Heard, Speech, Text

SOUND = (0.1 * np.random.default_rng(1).standard_normal(SAMPLE_RATE)).astype(np.float32)


class Answering:
    """An assistant that gives these events, whatever it is asked."""

    def __init__(self, *events: Event) -> None:
        self.events = events

    def check(self, *_: object) -> None: ...

    def answer(self, *_: object, **__: object) -> Iterator[Event]:
        return iter(self.events)


@pytest.fixture
def question(tmp_path: Path) -> Path:
    path = tmp_path / "question.wav"
    path.write_bytes(encode_wav(SOUND))
    return path


def ask(question: Path, monkeypatch: pytest.MonkeyPatch, *events: Event) -> Path:
    monkeypatch.setattr(Assistant, "load", lambda *_: Answering(*events))
    out = question.with_name("answer.wav")
    say.main(question, out, None, None, Path("a"), Path("b"), Path("c"), None)
    return out


def test_the_pieces_of_an_answer_are_one_file(question: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = ask(question, monkeypatch, Heard("What?"), Text("It is "), Speech(SOUND), Text("so."), Speech(SOUND))
    assert len(decode(out, 10)) == 2 * SAMPLE_RATE


def test_an_answer_without_a_sound_is_said_in_a_line(question: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"without a sound, so there is no .*answer\.wav"):
        ask(question, monkeypatch, Heard("What?"), Text("It is so."))
    assert [path.name for path in question.parent.iterdir()] == ["question.wav"]
