"""The page in a real browser, with the models that ship and a real recording; and what it says to bad input."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from playwright.sync_api import Page, expect, sync_playwright

from components.chat import __main__ as command
from components.chat.__main__ import open_registered
from components.chat.page import EXAMPLES, FIRST, OWN, answers, build, serve
from components.chat.units import strip
from cslm.audio import SAMPLE_RATE, Samples, decode, encode_wav
from cslm.conversation import Assistant, History, Speech, Text
from cslm.grammar import Reply
from tests.recordings import held_out_questions

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
PICTURES = os.environ.get("PICTURES")
QUESTION = "capital"


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    models = ROOT / "models"
    return Assistant.load(models / "cslm", models / "tokenizer", models / "decoder")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A held-out English question about a capital, as a WAV file."""
    row = next(r for r in held_out_questions() if r["language"] == "en" and QUESTION in r["id"])
    path = tmp_path_factory.mktemp("questions") / "question.wav"
    path.write_bytes(encode_wav(decode(row["audio"])))
    return path


@pytest.fixture(scope="module")
def address(assistant: Assistant) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = build(assistant, "the models that ship")
    serve(page, "127.0.0.1", port, wait=False)
    yield f"http://127.0.0.1:{port}"
    page.close()


@pytest.fixture
def browser(address: str, recording: Path) -> Iterator[Page]:
    """The page in a browser whose microphone hears the recording."""
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install -y chromium")
    microphone = "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"
    heard = f"--use-file-for-fake-audio-capture={recording}%noloop"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required", *microphone, heard],
        )
        page = chromium.new_page(viewport={"width": 1120, "height": 860})
        page.goto(address)
        yield page
        chromium.close()


def test_a_recorded_question_is_answered_in_sound(browser: Page, recording: Path) -> None:
    browser.locator("#question input[type=file]").set_input_files(recording)
    expect(browser.locator("#question audio, #question #waveform").first).to_be_attached(timeout=20_000)
    choose(browser, "language", "Chinese")
    browser.locator("#ask").click()
    expect(browser.locator("#talk .bot")).to_contain_text("首都", timeout=30_000)
    expect(browser.locator("#talk .user")).to_contain_text("capital")
    expect(browser.locator("#timeline")).to_contain_text("sound")
    expect(browser.locator("#answer audio, #answer #waveform").first).to_be_attached(timeout=20_000)
    seconds, dry = browser.evaluate("[window.cslm.seconds, window.cslm.dry]")
    assert seconds > 1
    assert dry == 0
    bars = browser.locator("#units i")
    expect(browser.locator("#units p")).to_contain_text(f"{bars.count()} units")
    assert bars.count() > 20 * seconds / 2, "25 a second, of which runs are merged"
    if PICTURES:
        browser.screenshot(path=Path(PICTURES) / "chat.png", full_page=True)


@pytest.mark.parametrize("width", [700, 1120, 1400])
def test_the_page_stands_still(browser: Page, width: int) -> None:
    """Tables that fit themselves to a page which fits itself to them swing for ever."""
    browser.set_viewport_size({"width": width, "height": 860})
    browser.wait_for_timeout(2000)
    places = browser.evaluate(
        """async () => {
          const seen = new Set();
          for (let frame = 0; frame < 20; frame++) {
            await new Promise(requestAnimationFrame);
            const { x, y, width, height } = document.querySelector("#ask").getBoundingClientRect();
            seen.add([x, y, width, height].join(" "));
          }
          return [...seen];
        }"""
    )
    assert len(places) == 1, "the button to ask moves"


def test_a_question_is_asked_with_the_microphone(browser: Page, recording: Path) -> None:
    browser.wait_for_timeout(3000)  # until the buttons of the page have been given life
    browser.get_by_label("Record audio").dispatch_event("click")
    browser.locator("#question .record-button").dispatch_event("click")
    browser.wait_for_timeout(1000 * len(decode(recording)) / SAMPLE_RATE + 1000)
    browser.locator("#question .stop-button").first.dispatch_event("click")
    expect(browser.locator("#question audio, #question #waveform").first).to_be_attached(timeout=20_000)
    browser.locator("#ask").click()
    expect(browser.locator("#talk .user")).to_contain_text("capital", timeout=30_000)
    expect(browser.locator("#talk .bot")).to_contain_text("capital", timeout=30_000)
    browser.wait_for_function("window.cslm.seconds > 1", timeout=20_000)


def test_a_recording_takes_the_place_of_an_earlier_text(browser: Page, recording: Path) -> None:
    box = browser.locator("#text textarea, #text input").first
    box.fill("What color is a carrot?")
    browser.locator("#question input[type=file]").set_input_files(recording)
    expect(box).to_have_value("", timeout=20_000)
    browser.locator("#ask").click()
    expect(browser.locator("#talk .user")).to_contain_text("capital", timeout=30_000)


def test_the_voice_that_is_chosen_is_heard(browser: Page, recording: Path, assistant: Assistant) -> None:
    first, *others = assistant.decoder.natives("en")
    other = others[-1]
    browser.locator("#question input[type=file]").set_input_files(recording)
    expect(browser.locator("#question audio, #question #waveform").first).to_be_attached(timeout=20_000)
    choose(browser, "voice", other)
    browser.locator("#ask").click()
    expect(browser.locator("#answer audio, #answer #waveform").first).to_be_attached(timeout=30_000)
    heard = played(browser)
    question = decode(recording)
    alike = {voice: likeness(heard, spoken(assistant, question, voice)) for voice in (first, other)}
    assert alike[other] > 0.99
    assert alike[first] < 0.9


@pytest.fixture
def ended(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A machine on which an answer takes minutes; and when the model has stopped to speak."""
    stream, ended = assistant.model.stream, threading.Event()

    def slow(prompt: list[int], reply: Reply, *rest: Any) -> Iterator[int]:
        try:
            for token in stream(prompt, reply, *rest):
                time.sleep(0.05)
                yield token
        finally:
            if reply == "speech":
                ended.set()

    monkeypatch.setattr(assistant.model, "stream", slow)
    return ended


def test_stop_ends_the_sound_and_the_answer(browser: Page, ended: threading.Event) -> None:
    box = browser.locator("#text textarea, #text input").first
    box.fill("What is the capital of France?")
    browser.locator("#ask").click()
    browser.wait_for_function("window.cslm.seconds > 0", timeout=30_000)
    assert not ended.is_set(), "it is in the middle of the answer's speech"
    browser.locator("#stop").click()
    browser.wait_for_function("window.cslm.context === null", timeout=10_000)
    assert ended.wait(10), "the model has stopped too"
    pieces = browser.locator("#pieces textarea, #pieces input").first.input_value()
    browser.wait_for_timeout(1000)
    assert browser.locator("#pieces textarea, #pieces input").first.input_value() == pieces
    assert browser.locator("#answer audio").count() == 0


def test_nothing_of_an_interrupted_answer_is_played_again(browser: Page, ended: threading.Event) -> None:
    box = browser.locator("#text textarea, #text input").first
    box.fill("What is the capital of France?")
    browser.locator("#ask").click()
    browser.wait_for_function("window.cslm.seconds > 0", timeout=30_000)
    # From here on the server is far away: what is asked reaches it late, and it goes on with the old answer.
    browser.evaluate(
        "() => { const far = window.fetch;"
        " window.fetch = async (...asked) => { if (String(asked[0]?.url ?? asked[0]).includes('queue/join'))"
        " await new Promise((done) => setTimeout(done, 3000)); return far(...asked); }; }"
    )
    pieces = browser.locator("#pieces textarea, #pieces input").first
    before = pieces.input_value()
    box.fill("What color is a carrot?")
    browser.locator("#ask").click()
    expect(pieces).not_to_have_value(before, timeout=10_000)
    assert not ended.is_set(), "the server does not know yet"
    browser.wait_for_timeout(200)
    assert browser.evaluate("window.cslm.seconds") == 0
    expect(browser.locator("#talk .bot").last).to_contain_text("orange", timeout=60_000)
    browser.wait_for_function("window.cslm.seconds > 0", timeout=30_000)


def choose(browser: Page, box: str, option: str) -> None:
    """Pick from a list."""
    browser.locator(f"#{box} input").click()
    browser.get_by_role("option", name=option).first.click()


def played(browser: Page) -> Samples:
    """What the page has been given to play."""
    pieces = json.loads(browser.locator("#pieces textarea, #pieces input").first.input_value())["pieces"]
    return np.frombuffer(b"".join(map(base64.b64decode, pieces)), "<i2").astype(np.float32)


def spoken(assistant: Assistant, question: Samples, voice: str) -> Samples:
    """The answer in a voice."""
    events = assistant.answer(question, None, voice)
    return np.concatenate([event.samples for event in events if isinstance(event, Speech)])


def likeness(one: Samples, other: Samples) -> float:
    """Cosine of two sounds."""
    length = max(len(one), len(other))
    a, b = (np.pad(sound, (0, length - len(sound))) for sound in (one, other))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_a_written_question_is_answered_too(browser: Page) -> None:
    browser.locator("#text textarea, #text input").first.fill("What is the capital of France?")
    browser.locator("#ask").click()
    expect(browser.locator("#talk .bot")).to_contain_text("Paris", timeout=30_000)
    browser.wait_for_function("window.cslm.seconds > 1", timeout=20_000)


def test_a_new_question_interrupts_the_answer_and_the_talk_goes_on(browser: Page) -> None:
    box = browser.locator("#text textarea, #text input").first
    box.fill("What can you tell me about the capital of France and the capital of Italy?")
    browser.locator("#ask").click()
    expect(browser.locator("#talk .user")).to_have_count(1, timeout=30_000)
    box.fill("What color is a carrot?")
    browser.locator("#ask").click()
    expect(browser.locator("#talk .user")).to_have_count(2, timeout=30_000)
    expect(browser.locator("#talk .bot").last).to_contain_text("orange", timeout=30_000)
    browser.wait_for_function("window.cslm.seconds > 1", timeout=20_000)
    box.fill("What can you tell me about the capital of France and the capital of Italy?")
    browser.locator("#ask").click()
    expect(browser.locator("#talk .user")).to_have_count(3, timeout=30_000)
    browser.locator("#forget").click()
    expect(browser.locator("#talk .user")).to_have_count(0, timeout=30_000)
    browser.wait_for_timeout(1000)
    assert browser.locator("#talk .user").count() == 0, "nothing late is drawn over the empty page"


def test_what_is_no_recording_is_told(assistant: Assistant, tmp_path: Path) -> None:
    path = tmp_path / "letter.wav"
    path.write_text("Dear model")
    [(turns, pieces, _, units, whole)] = answers(assistant, str(path), "", OWN, FIRST, [], History())
    assert "cannot be used: not readable as audio" in turns[-1]["content"]
    assert (pieces, units, whole) == ([], "", None)


def test_the_sample_questions_are_answered_rightly(assistant: Assistant) -> None:
    asked = [(text, None if language == OWN else language) for text, language in EXAMPLES]
    said = [[e.text for e in assistant.answer_written(*each) if isinstance(e, Text)] for each in asked]
    for answer, fact in zip(said, ("巴黎", "twelve", "Tuesday", "eight legs", "东京"), strict=True):
        assert fact in "".join(answer)


def test_a_question_that_it_knows_nothing_of_is_not_babbled_at(assistant: Assistant) -> None:
    events = list(assistant.answer_written("How do you say water in Chinese?"))
    assert sum(len(e.samples) for e in events if isinstance(e, Speech)) < 15 * SAMPLE_RATE


def test_a_unit_has_its_own_colour_and_tells_its_number() -> None:
    page = strip([(7, 300), (), (7,)], 512)
    assert "3 units, 2 of the 512 there are" in page
    bars = re.findall(r'title="unit (\d+)" style="background:(.*?)"', page)
    assert [number for number, _ in bars] == ["7", "300", "7"]
    assert bars[0] == bars[2] != bars[1]
    assert page.count("<span>") == 2, "a piece without units has no bar"


def test_without_a_registered_model_it_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSLM_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SystemExit, match=r"no version of cslm is registered .* make demo"):
        open_registered("cslm")


def test_it_can_wait_for_the_first_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    waited = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 1:
            registry.create_registered_model("cslm")
            registry.create_model_version("cslm", tmp_path.as_uri())  # without an alias nobody uses it
        else:
            registry.set_registered_model_alias("cslm", "candidate", "1")

    monkeypatch.setattr(command, "time", SimpleNamespace(sleep=sleep))  # others sleep too
    command.await_registered("cslm")
    assert len(waited) == 2
    assert command.in_use("cslm") == ("candidate", "1")
    registry.create_model_version("cslm", tmp_path.as_uri())
    registry.set_registered_model_alias("cslm", "production", "2")
    assert command.in_use("cslm") == ("production", "2"), "which goes before a candidate"
