"""Ask a spoken question, and hear the answer.

Run:  python -m cslm.say question.wav --answer-language zh --out answer.wav

Prints what was heard and each piece of the answer as it is spoken.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from cslm.audio import SAMPLE_RATE, encode_wav
from cslm.conversation import Assistant, Heard, Refused, Text
from cslm.generation import Sampling
from cslm.questions import NoQuestion, read_recording


def main(
    question: Annotated[Path, typer.Argument(help="WAV, FLAC, MP3 or Ogg, of up to 30 s")],
    out: Annotated[Path, typer.Option("--out", "-o", help="where to write the answer (WAV)")],
    answer_language: Annotated[str | None, typer.Option(help="the question's, if not given")] = None,
    voice: Annotated[str | None, typer.Option(help="the first of the language, if not given")] = None,
    model: Annotated[Path, typer.Option(help="folder of the language model")] = Path("models/cslm"),
    tokenizer: Annotated[Path, typer.Option(help="folder of the speech tokenizer")] = Path("models/tokenizer"),
    decoder: Annotated[Path, typer.Option(help="folder of the speech decoder")] = Path("models/decoder"),
    seed: Annotated[
        int | None, typer.Option(help="draw the answer as the paper does (top-p 0.7), from this seed")
    ] = None,
) -> None:
    """Answer a spoken question."""
    check_place(out)
    try:
        samples = read_recording(question, answer_language)
    except NoQuestion as error:
        raise SystemExit(f"{question}: {error}") from None
    except OSError as error:
        raise SystemExit(
            f"{question} cannot be read: {error.strerror}; give a WAV, FLAC, MP3 or Ogg file"
        ) from None
    try:
        assistant = Assistant.load(model, tokenizer, decoder)
        assistant.check(answer_language, voice)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
    started = time.perf_counter()
    spoken = []
    sampling = None if seed is None else Sampling(seed=seed)
    for event in assistant.answer(samples, answer_language, voice, sampling=sampling):
        seconds = time.perf_counter() - started
        if isinstance(event, Heard):
            print(f"{seconds:6.2f} s  heard   {event.text}", flush=True)
        elif isinstance(event, Text):
            print(f"{seconds:6.2f} s  says    {event.text}", flush=True)
        elif isinstance(event, Refused):
            raise SystemExit(event.text)
        else:
            print(f"{seconds:6.2f} s  sounds  {len(event.samples) / SAMPLE_RATE:.2f} s", flush=True)
            spoken.append(event.samples)
    if not spoken:
        raise SystemExit(f"the model answered without a sound, so there is no {out}: ask again with a --seed")
    partial = out.with_name(f".{out.name}.partial")
    partial.write_bytes(encode_wav(np.concatenate(spoken)))
    partial.rename(out)
    print(f"answer in {out}")


def check_place(out: Path) -> None:
    """Can the answer be written there? Better known before the work than after it.

    Raises:
        SystemExit: no; it says why.
    """
    if out.is_dir():
        raise SystemExit(f"{out} is a folder: give the name of a file, such as {out / 'answer.wav'}")
    if not out.parent.is_dir():
        raise SystemExit(f"{out} cannot be written: there is no folder {out.parent}")
    try:
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise SystemExit(f"{out} cannot be written: {error.strerror} in {out.parent}") from None


if __name__ == "__main__":
    typer.run(main)
