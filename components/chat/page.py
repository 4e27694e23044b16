"""The page itself: what is on it, and how an answer comes to it.

Sound reaches the browser piece by piece: a hidden box holds the number of the answer and all its pieces so far
as base64 PCM. A script (player.js) queues those that it has not yet heard on the Web Audio clock, so nothing is
cut or played twice; and nothing is played of an answer that was interrupted.

A new wish of the visitor (to ask, to stop, to forget) ends the answer to the one before on the server, and the
next answer begins when the browser has drawn what it got of that one: nothing late is drawn over what is new.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import numpy.typing as npt

from components.chat.units import strip
from cslm.audio import SAMPLE_RATE, Samples
from cslm.conversation import Assistant, Event, Heard, History, Refused, Speech, Text
from cslm.limits import longest_s
from cslm.prompts import LANGUAGE_NAMES
from cslm.questions import NoQuestion, read_recording

OWN = "as asked"
FIRST = "of the answer's language"
PLAYER = (Path(__file__).parent / "player.js").read_text("utf-8")
STYLE = (Path(__file__).parent / "page.css").read_text("utf-8")
EXAMPLES = (
    ("What is the capital of France?", "zh"),
    ("What is nine plus three?", OWN),
    ("What day comes after Monday?", OWN),
    ("蜘蛛有几条腿？", "en"),
    ("日本的首都是哪里？", OWN),
)
KEPT_S = 3600
"""How long recordings and answers are kept."""
HEADS = ("after", "what", "units", "sound")

Turns = list[dict[str, Any]]
Whole = tuple[int, npt.NDArray[np.int16]] | None
View = tuple[Turns, list[str], list[list[str]], str, Whole]
"""Conversation, pieces of sound, timeline, strip of units, and the whole answer with its sample rate."""


@dataclass
class Visit:
    """What the server knows of a visitor: the conversation, its turns as shown, how many wishes there were."""

    history: History
    turns: Turns = field(default_factory=list)
    wishes: int = 0

    def wish(self) -> int:
        """A new wish; the answer to the one before ends."""
        self.wishes += 1
        return self.wishes

    def stop(self) -> None:
        """The wish to hear no more."""
        self.wish()

    def forget(self) -> int:
        """The wish to begin anew."""
        self.history, self.turns = History(self.history.longest), []
        return self.wish()


def build(assistant: Assistant, title: str) -> gr.Blocks:
    """The page for one assistant."""
    languages = [(OWN, OWN)] + [(LANGUAGE_NAMES.get(name, name), name) for name in assistant.languages]
    examples = [(said, wanted) for said, wanted in EXAMPLES if wanted in (OWN, *assistant.languages)]
    page = gr.Blocks(title="CSLM", analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S))
    with page:
        gr.Markdown(f"# Talk to {title}\nAsk in one language, hear the answer in another.")
        with gr.Row():
            with gr.Column(scale=2):
                audio = gr.Audio(
                    label="Your question",
                    sources=["upload", "microphone"],
                    type="filepath",
                    elem_id="question",
                )
                text = gr.Textbox(
                    label="or written", placeholder="What is the capital of France?", elem_id="text"
                )
                language = gr.Dropdown(languages, value=OWN, label="Answer in", elem_id="language")
                voice = gr.Dropdown(
                    [FIRST, *assistant.decoder.voices], value=FIRST, label="Voice", elem_id="voice"
                )
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", min_width=80, elem_id="ask")
                    stop = gr.Button("Stop", min_width=80, elem_id="stop")
                    anew = gr.Button("Forget", min_width=80, elem_id="forget")
                gr.Examples([list(example) for example in examples], [text, language], label="Try")
            with gr.Column(scale=3):
                talk = gr.Chatbot(label="Conversation", height=330, render_markdown=False, elem_id="talk")
                answer = gr.Audio(label="The whole answer", interactive=False, elem_id="answer")
                timeline = gr.Dataframe(
                    headers=list(HEADS), label="How it came", interactive=False, elem_id="timeline"
                )
                units = gr.HTML(elem_id="units")
        pieces = gr.Textbox(visible="hidden", elem_id="pieces")
        pieces.change(None, pieces, js="(value) => window.cslm.play(value)")

        talked = History(assistant.model.longest // 2)  # the other half is the question's and its answer's
        visit, asked, forgotten = gr.State(Visit(talked)), gr.State(0), gr.State(0)

        def respond(
            path: str | None,
            written: str,
            wanted: str,
            named: str,
            now: Visit,
            question: int,
            end: int,
        ) -> Iterator[tuple[Turns, str, list[list[str]], str, Whole]]:
            if now.wishes == end:
                yield [], _numbered(end, []), [], "", None
                return
            for turns, sound, rows, colours, whole in answers(
                assistant, path, written, wanted, named, now.turns, now.history
            ):
                if now.wishes != question:
                    return
                now.turns = turns
                yield turns, _numbered(question, sound), rows, colours, whole

        outputs = [talk, pieces, timeline, units, answer]
        inputs = [audio, text, language, voice, visit, asked, forgotten]
        gr.on(
            [asked.change, forgotten.change],
            respond,
            inputs,
            outputs,
            trigger_mode="always_last",
            concurrency_limit=None,
        )
        gr.on(
            [ask.click, text.submit],
            Visit.wish,
            visit,
            asked,
            js="() => window.cslm.begin()",
            trigger_mode="multiple",
        )
        # Of a recording and a text the last one counts, and text wins where both are there.
        gr.on([audio.upload, audio.stop_recording], None, None, text, js="() => ''")
        stop.click(Visit.stop, visit, js="() => window.cslm.stop()")
        anew.click(Visit.forget, visit, forgotten, js="() => window.cslm.stop()")
    return page


def serve(page: gr.Blocks, host: str, port: int, wait: bool = True) -> None:
    """Serve the page; until it is interrupted, if `wait`."""
    page.queue().launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=not wait,
        quiet=True,
        show_error=True,
        head=f"<script>{PLAYER}</script>",
        css=STYLE,
        footer_links=[],
    )


def answers(
    assistant: Assistant,
    path: str | None,
    written: str,
    wanted: str,
    named: str,
    turns: Turns,
    history: History,
) -> Iterator[View]:
    """What the page shows after each event of an answer; text wins where both are given."""
    language = None if wanted == OWN else wanted
    voice = None if named == FIRST else named
    turns = list(turns)
    begin = time.perf_counter()
    rows: list[list[str]] = []
    sound: list[Samples] = []
    pieces: list[str] = []
    spoken: list[tuple[int, ...]] = []
    said = ""
    for event in _events(assistant, path, written, language, voice, history):
        measured = ["", ""]
        if isinstance(event, Heard):
            turns.append({"role": "user", "content": event.text or "…"})
        elif isinstance(event, Speech):
            sound.append(event.samples)
            pieces.append(_pcm(event.samples))
            spoken.append(event.units)
            measured = [str(len(event.units)), f"{len(event.samples) / SAMPLE_RATE:.2f} s"]
        else:
            turns = turns if said == "" else turns[:-1]
            said += event.text
            turns.append({"role": "assistant", "content": said})
        what = {Heard: "heard", Text: "text", Speech: "sound", Refused: "refused"}[type(event)]
        rows.append([f"{time.perf_counter() - begin:.2f} s", what, *measured])
        yield turns, pieces, rows, strip(spoken, assistant.decoder.config.units), None
    if sound:
        whole = SAMPLE_RATE, _whole(np.concatenate(sound))
        yield turns, pieces, rows, strip(spoken, assistant.decoder.config.units), whole


def _numbered(answer: int, pieces: list[str]) -> str:
    """What the hidden box holds."""
    return json.dumps({"answer": answer, "pieces": pieces})


def _events(
    assistant: Assistant,
    path: str | None,
    written: str,
    language: str | None,
    voice: str | None,
    history: History,
) -> Iterator[Event]:
    if written.strip() or path is None:
        yield from assistant.answer_written(written, language, voice, history)
        return
    try:
        samples = read_recording(Path(path), language, longest_s(assistant.model))
    except NoQuestion as reason:
        yield Refused(str(reason))
        return
    yield from assistant.answer(samples, language, voice, history=history)


def _pcm(samples: Samples) -> str:
    """16-bit samples in base64."""
    return base64.b64encode(_whole(samples).tobytes()).decode()


def _whole(samples: Samples) -> npt.NDArray[np.int16]:
    """16-bit samples; those over full scale are cut off, as a piece does not know how loud the others are."""
    return (samples.clip(-1, 1) * 32767).astype("<i2")
