"""The command that answers one recording: what it writes, and what it says where it cannot."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cslm import say
from cslm.audio import SAMPLE_RATE, decode, encode_wav
from cslm.conversation import Assistant, Event, Heard, Speech, Text
from tests.recordings import held_out_questions

ROOT = Path(__file__).parents[2]
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


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command with the models that ship."""
    line = [sys.executable, "-m", "cslm.say", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


def test_the_command_answers_a_recorded_question_in_another_language(tmp_path: Path) -> None:
    row = next(r for r in held_out_questions() if r["language"] == "en" and "capital" in r["id"])
    asked, out = tmp_path / "question.wav", tmp_path / "answer.wav"
    asked.write_bytes(encode_wav(decode(row["audio"])))
    told = command(asked, "--answer-language", "zh", "-o", out).stdout
    assert re.search(r"s  heard   .*capital", told)
    assert re.search(r"s  says    .*首都", told)
    assert told.endswith(f"answer in {out}\n")
    assert len(decode(out)) > SAMPLE_RATE


def test_what_the_command_cannot_do_is_one_line(question: Path) -> None:
    out, other = question.with_name("answer.wav"), question.with_name("decoder")
    shutil.copytree(ROOT / "models" / "decoder", other)
    config = json.loads((other / "config.json").read_text("utf-8")) | {"tokenizer": "another"}
    (other / "config.json").write_text(json.dumps(config), "utf-8")
    for wrong, said in (
        (("-o", out, "--answer-language", "xx"), "answer language 'xx' is unknown; allowed: en, zh"),
        (("-o", out, "--voice", "bob"), "voice 'bob' is unknown; allowed: "),
        (("-o", out, "--model", "nowhere"), "no language model in nowhere: it has no config.json"),
        (("-o", out, "--decoder", other), "speaks the units of another tokenizer than models/tokenizer"),
        (("-o", question.parent), f"{question.parent} is a folder: give the name of a file, such as"),
        (("-o", "/proc/answer.wav"), "/proc/answer.wav cannot be written: "),
        (("-o", out), "I heard sound, but no speech. Please ask again."),
        (("-o", question.parent / "gone" / "answer.wav"), "there is no folder"),
    ):
        refused = command(question, *wrong)
        assert refused.returncode == 1
        assert said in refused.stderr.splitlines()[-1]
        assert "Traceback" not in refused.stderr


def test_what_is_no_file_is_no_question(tmp_path: Path) -> None:
    for wrong, said in ((tmp_path, "Is a directory"), (tmp_path / "gone.wav", "No such file or directory")):
        refused = command(wrong, "-o", tmp_path / "answer.wav")
        assert refused.returncode == 1
        assert refused.stderr == f"{wrong} cannot be read: {said}; give a WAV, FLAC, MP3 or Ogg file\n"


def test_the_pieces_of_an_answer_are_one_file(question: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = ask(question, monkeypatch, Heard("What?"), Text("It is "), Speech(SOUND), Text("so."), Speech(SOUND))
    assert len(decode(out, 10)) == 2 * SAMPLE_RATE


def test_an_answer_without_a_sound_is_said_in_a_line(question: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"without a sound, so there is no .*answer\.wav"):
        ask(question, monkeypatch, Heard("What?"), Text("It is so."))
    assert [path.name for path in question.parent.iterdir()] == ["question.wav"]
