"""Generation of spoken answers: a stream against transformers' `generate`, batches against one at a time.

Run:  python -m benchmarks.generation      (3 minutes on 2 cores)

The model that ships answers spoken dev questions, greedily, in 32 bits. `generate` writes as many tokens as our
stream did after each prompt, and needs not look for an end token; our stream keeps to the grammar besides.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.inputs import prepared
from benchmarks.results import RESULTS, Measured, by_turns, record
from cslm.generation import SpeechLanguageModel
from cslm.shards import read_rows
from cslm.tokenizer import SpeechTokenizer
from cslm.tokenizer.corpus import tokenize

MAX_NEW_TOKENS = 256
BATCH = 64
"""As evaluation has it."""
STREAMED = 16
"""Of the questions, so many are answered in a stream."""


def main(
    questions: Annotated[int, typer.Option(help="how many")] = 64,
    turns: Annotated[int, typer.Option(help="measurements of each kind")] = 5,
    results: Annotated[Path, typer.Option(help="where to write")] = RESULTS,
) -> None:
    """Measure with the models that ship."""
    inputs = prepared()
    model = SpeechLanguageModel.load(inputs / "work/backbone")
    dev = read_rows(inputs / "work/accepted/utterances", splits=["dev"])
    heard = tokenize(SpeechTokenizer.load(inputs / "work/tokenizer"), islice(dev, questions), 60.0)
    prompts = [model.builder.prompt_dialogue(row["units"], row["language"], row["language"]) for row in heard]
    record(stream(model, prompts[:STREAMED], turns) | batches(model, prompts, turns), results)


def stream(model: SpeechLanguageModel, prompts: Sequence[list[int]], turns: int) -> dict[str, Measured]:
    """One answer after the other, tokens a second."""
    lengths = [len(list(model.stream(prompt, "dialogue", MAX_NEW_TOKENS))) for prompt in prompts]

    def ours(turn: int) -> float:
        started = time.perf_counter()
        tokens = sum(len(list(model.stream(prompt, "dialogue", MAX_NEW_TOKENS))) for prompt in prompts)
        return tokens / (time.perf_counter() - started)

    def transformers(turn: int) -> float:
        started = time.perf_counter()
        for prompt, length in zip(prompts, lengths, strict=True):
            _generate(model, prompt, length)
        return sum(lengths) / (time.perf_counter() - started)

    _generate(model, prompts[0], lengths[0])  # the first pass is slow: it is not measured
    fast, baseline = by_turns(ours, transformers, turns)
    against = "`generate` of transformers, same model, greedy"
    return {
        "generation.stream": Measured(
            "Generation, one answer at a time", against, fast, baseline, "tokens/s", turns, "ratio >= 1.5"
        )
    }


@torch.inference_mode()
def _generate(model: SpeechLanguageModel, prompt: list[int], length: int) -> None:
    ids = torch.tensor([prompt])
    written = model.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=length,
        do_sample=False,
        use_cache=True,
        eos_token_id=None,
        pad_token_id=model.builder.end_id,
    )
    assert written.shape[1] == len(prompt) + length, "it ended early: the comparison would not be fair"


def batches(model: SpeechLanguageModel, prompts: Sequence[list[int]], turns: int) -> dict[str, Measured]:
    """All questions in batches against one stream after the other, tokens a second."""

    def in_batches(turn: int) -> float:
        started = time.perf_counter()
        answers = model.generate(list(prompts), "dialogue", MAX_NEW_TOKENS, BATCH)
        return sum(map(len, answers)) / (time.perf_counter() - started)

    def one_at_a_time(turn: int) -> float:
        started = time.perf_counter()
        tokens = sum(len(list(model.stream(prompt, "dialogue", MAX_NEW_TOKENS))) for prompt in prompts)
        return tokens / (time.perf_counter() - started)

    fast, single = by_turns(in_batches, one_at_a_time, turns)
    return {
        "generation.batch": Measured(
            f"Generation, batches of {BATCH}",
            "the same questions one at a time, in a stream",
            *(fast, single, "tokens/s", turns, "ratio >= 4.0"),
        )
    }


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
