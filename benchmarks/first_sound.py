"""How soon an answer sounds, chunk by chunk against all of its text first, as answers get longer.

Run:  python -m benchmarks.first_sound      (half a minute on 2 cores)

The model that ships knows short answers only: here it is told what to say, texts of the dev split one behind
the other with the units that spoke them, and does the work of every token as ever. All else is the whole system
of `make chat`: it hears the question, writes it down, answers, and the decoder speaks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.inputs import prepared
from benchmarks.results import RESULTS, Measured, by_turns, record
from cslm.audio import Samples, decode
from cslm.conversation import Assistant, Speech
from cslm.decoder import SpeechDecoder
from cslm.generation import Sampling, SpeechLanguageModel
from cslm.grammar import Reply
from cslm.sequences import Chain, Chunk, SequenceBuilder
from cslm.shards import read_rows
from cslm.stepping import begin
from cslm.tokenizer import SpeechTokenizer

WORDS = (12, 25, 50, 100, 200)


class Told(SpeechLanguageModel):
    """Says `script` as its answer, token by token at the cost of its own."""

    script: Sequence[int] = ()

    @torch.inference_mode()
    def stream(
        self, prompt: list[int], reply: Reply, max_new_tokens: int, sampling: Sampling | None = None
    ) -> Iterator[int]:
        """The script if an answer is wanted; else as ever."""
        if reply != "answer":
            yield from super().stream(prompt, reply, max_new_tokens, sampling)
            return
        scores, step = begin(self.model, prompt, len(self.script))
        for token in self.script:
            scores.argmax()
            yield token
            scores = step(token)


def main(
    questions: Annotated[int, typer.Option(help="how many")] = 10,
    results: Annotated[Path, typer.Option(help="where to write")] = RESULTS,
) -> None:
    """Measure with the models that ship."""
    inputs = prepared()
    model = Told.load(inputs / "work/backbone")
    assistant = Assistant(
        model, SpeechTokenizer.load(inputs / "work/tokenizer"), SpeechDecoder.load(Path("models/decoder"))
    )
    aligned = [row for row in read_rows(inputs / "work/aligned", splits=["dev"]) if row["language"] == "en"]
    recordings = read_rows(inputs / "work/accepted/utterances", ["audio", "language"], ["dev"])
    asked = (decode(row["audio"]) for row in recordings if row["language"] == "en")
    record(compare(assistant, model, aligned, list(islice(asked, questions))), results)


def compare(
    assistant: Assistant, model: Told, aligned: Sequence[Mapping[str, Any]], questions: Sequence[Samples]
) -> dict[str, Measured]:
    """Milliseconds to the first sound of an answer of so many words, medians over the questions."""

    def first_sound(chain: Chain, chunks: Sequence[Chunk], turn: int) -> float:
        model.script = script(model.builder, chunks, chain)
        started = time.perf_counter()
        events = assistant.answer(questions[turn], chain=chain)
        next(event for event in events if isinstance(event, Speech))
        took = time.perf_counter() - started
        events.close()  # type: ignore[attr-defined]  # a generator
        return 1000 * took

    found = {}
    for words in WORDS:
        chunks = answer_of(words, aligned)
        first_sound("interleaved", chunks, 0)  # the first time is slow: it is not measured
        ours, full = by_turns(
            partial(first_sound, "interleaved", chunks),
            partial(first_sound, "full", chunks),
            len(questions),
        )
        found[f"first_sound.{words}_words"] = Measured(
            f"First sound of an answer of {words} words, chunk by chunk",
            "all of its text, then its speech",
            *(ours, full, "ms", len(questions)),
        )
    return found


def answer_of(words: int, aligned: Iterable[Mapping[str, Any]]) -> list[Chunk]:
    """So many words at least, in chunks with their units."""
    chunks: list[Chunk] = []
    for row in cycle(aligned):
        for chunk in row["chunks"]:
            chunks.append(Chunk(chunk["text"] + " ", tuple(row["units"][chunk["first"] : chunk["last"]])))
            if sum(len(each.text.split()) for each in chunks) >= words:
                return chunks
    raise ValueError("there is nothing to say")


def script(builder: SequenceBuilder, chunks: Sequence[Chunk], chain: Chain) -> list[int]:
    """Tokens of an answer."""
    if chain == "full":
        chunks = [Chunk("".join(c.text for c in chunks), tuple(unit for c in chunks for unit in c.units))]
    return [token for chunk in chunks for token in builder.chunk_ids(chunk)]


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
