"""Speech to units, 25 a second, and units to what they say.

The one that is trained here has the design of CosyVoice's S3 tokenizer (arXiv 2407.05407, section 2.1): an
encoder that learns to recognise speech through a quantised bottleneck, so that its codes keep what is said and
lose who says it. Its quantiser is finite scalar (arXiv 2309.15505) and the recogniser a CTC head. CosyVoice's
own, the paper's, can stand in its place with a recogniser of its units (`cslm.tokenizer.cosyvoice`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cslm.audio import Samples
from cslm.tokenizer.cosyvoice import FILE as COSYVOICE
from cslm.tokenizer.cosyvoice import CosyVoiceTokenizer
from cslm.tokenizer.speech_tokenizer import Frames, SpeechTokenizer

__all__ = ["COSYVOICE", "CosyVoiceTokenizer", "SpeechTokenizer", "Tokenizer", "open_tokenizer"]


class Tokenizer(Protocol):
    """What the pipeline needs of a speech tokenizer."""

    @property
    def units(self) -> int:
        """Number of different units."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what makes units: tells whose units these are."""

    @property
    def label_ids(self) -> dict[str, int]:
        """Column of each label's name in `log_probs`; column 0 is CTC's blank."""

    def encode(self, batch: Sequence[Samples]) -> list[Frames]:
        """16 kHz samples of each utterance -> units (T,), one each 40 ms."""

    def log_probs(self, batch: Sequence[npt.ArrayLike]) -> list[npt.NDArray[np.float32]]:
        """Frame units of each utterance -> log P(label | frame), (T, labels + 1) each."""

    def transcribe(self, log_probs: npt.NDArray[np.float32]) -> list[str]:
        """Best path (greedy CTC): (T, labels + 1) -> label names."""

    def save(self, folder: Path) -> None:
        """Write all that `open_tokenizer` needs into `folder`."""


def open_tokenizer(folder: Path, provider: str | None = None, batch_seconds: float = 120.0) -> Tokenizer:
    """Open the speech tokenizer in `folder`, whichever it is.

    `provider` and `batch_seconds` are for CosyVoice's (`CosyVoiceTokenizer.load`); the one that is trained here
    works on processors, on as much at once as it is given.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not CosyVoice's tokenizer, or this onnxruntime has no such provider.
        RuntimeError: the provider that was asked for does not start.
    """
    if (folder / COSYVOICE).exists():
        return CosyVoiceTokenizer.load(folder, provider, batch_seconds)
    return SpeechTokenizer.load(folder)
