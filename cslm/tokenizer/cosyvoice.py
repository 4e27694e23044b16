"""The paper's speech tokenizer: CosyVoice-300M's S3 at 25 Hz (arXiv 2407.05407, section 2.1), by onnxruntime.

tokenizer = CosyVoiceTokenizer.load(Path("models/cosyvoice-300m-25hz"))
[frames] = tokenizer.encode([samples])        # 16 kHz float32 -> units of 40 ms

It gives units. What they say is read by a recogniser beside it (`cslm.tokenizer.reader`), which stage
train_tokenizer trains; the folder of a whole tokenizer has both.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    RuntimeException,
)

from cslm.audio import SAMPLE_RATE, Samples
from cslm.tokenizer.batches import by_length
from cslm.tokenizer.reader import CONFIG as READER
from cslm.tokenizer.reader import UnitReader
from cslm.tokenizer.speech_tokenizer import Frames
from cslm.tokenizer.whisper_mel import HOP, MEL_BINS, Mel, log_mel
from cslm.tokenizer.windows import cut, stitch
from cslm.units import FRAMES_PER_SECOND

log = logging.getLogger("cslm")

FILE = "speech_tokenizer_v1.onnx"
UNITS = 4096
SUBSAMPLING = 4
"""Mel frames in a unit."""
SAME = 0.9
"""Share of units that a batch must not change: rounding may tip a few."""
PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
"""What can run it; what follows in this order is fallen back on."""
BY_DEFAULT = ("cuda", "cpu")
"""Not TensorRT, which builds an engine for each shape that it meets, and speech has many."""


class CosyVoiceTokenizer:
    """Speech to units and, with a recogniser, units to label posteriors: the interface of `SpeechTokenizer`.

    Utterances of up to 30 s go through the network whole; longer ones in windows (`cslm.tokenizer.windows`).
    Windows of similar length share a batch of at most `batch_seconds`, padded with zeros behind the lengths
    that the network is told, and masks. A file that was exported for one at a time gets one at a time.
    """

    def __init__(self, path: Path, provider: str | None = None, batch_seconds: float = 120.0) -> None:
        self._path = path
        self.reader: UnitReader | None = None
        self._session = _open(path, provider)
        self._inputs = [given.name for given in self._session.get_inputs()]
        self._batch_frames = batch_seconds * SAMPLE_RATE / HOP if self._takes_batches() else 0.0

    @classmethod
    def load(
        cls, folder: Path, provider: str | None = None, batch_seconds: float = 120.0
    ) -> CosyVoiceTokenizer:
        """Open `speech_tokenizer_v1.onnx` in `folder`, and the recogniser of its units if one is there.

        It runs on `provider`, one of tensorrt, cuda and cpu; None takes cuda if it works, else cpu. The log
        says which one it is.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is no ONNX file or another network, or this onnxruntime has no such provider.
            RuntimeError: the provider that was asked for does not start.
        """
        tokenizer = cls(folder / FILE, provider, batch_seconds)
        if (folder / READER).exists():
            tokenizer.reader = UnitReader.load(folder)
        return tokenizer

    def save(self, folder: Path) -> None:
        """Write the network's file, and the recogniser if there is one, into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._path, folder / FILE)
        if self.reader is not None:
            self.reader.save(folder)

    @property
    def units(self) -> int:
        """Number of different units."""
        return UNITS

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the file: tells whose units these are."""
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def label_ids(self) -> dict[str, int]:
        """Column of each label's name in `log_probs`."""
        return self._reads().label_ids

    def log_probs(self, batch: Sequence[npt.ArrayLike]) -> list[npt.NDArray[np.float32]]:
        """Frame units of each utterance -> log P(label | frame), (T, labels + 1) each.

        Raises:
            ValueError: it has no recogniser of its units.
        """
        return self._reads().log_probs(batch)

    def transcribe(self, log_probs: npt.NDArray[np.float32]) -> list[str]:
        """Best path (greedy CTC): (T, labels + 1) -> label names."""
        return self._reads().transcribe(log_probs)

    def _reads(self) -> UnitReader:
        if self.reader is None:
            raise ValueError(
                f"{self._path.parent} has no recogniser of units ({READER}): stage train_tokenizer trains one"
            )
        return self.reader

    def encode(self, batch: Sequence[Samples]) -> list[Frames]:
        """16 kHz samples of each utterance -> units (T,), one for each 40 ms that begin.

        As in CosyVoice only whole frames of 10 ms count: T is samples // 160 / 4, rounded up.

        Raises:
            ValueError: the network gave what is no unit of it, so it is another one.
        """
        mels = [log_mel(samples) for samples in batch]
        plans = [cut(_loudness(mel)) for mel in mels]
        pieces = [
            mel[:, SUBSAMPLING * window.first : SUBSAMPLING * window.last]
            for mel, plan in zip(mels, plans, strict=True)
            for window in plan
        ]
        heard: dict[int, Frames] = {}
        for group in by_length([piece.shape[1] for piece in pieces], self._batch_frames):
            heard |= zip(group, self._run([pieces[i] for i in group]), strict=True)
        in_order = iter(heard[i] for i in range(len(pieces)))
        return [stitch(plan, [next(in_order) for _ in plan]) for plan in plans]

    def _takes_batches(self) -> bool:
        """Whether two utterances give together what they give alone, whatever the file declares.

        Raises:
            ValueError: it gives another number of units a second.
        """
        noise = np.random.default_rng(1).normal(size=(MEL_BINS, 100)).astype(np.float32)
        pair = [noise, noise[:, :60]]
        alone = [self._run([mel])[0] for mel in pair]
        if isinstance(self._session.get_inputs()[0].shape[0], int):
            return False
        try:
            together = self._run(pair)
        except (Fail, InvalidArgument, RuntimeException, ValueError):
            return False
        return all(np.mean(a == b) > SAME for a, b in zip(alone, together, strict=True))

    def _run(self, mels: Sequence[Mel]) -> list[Frames]:
        """Mels (128, t) each -> units (t / 4 rounded up,) each."""
        lengths = np.array([mel.shape[1] for mel in mels], np.int32)
        padded = np.zeros((len(mels), MEL_BINS, lengths.max()), np.float32)
        for row, mel in zip(padded, mels, strict=True):
            row[:, : mel.shape[1]] = mel
        [units] = self._session.run(None, dict(zip(self._inputs, (padded, lengths), strict=True)))
        counts = -(-lengths // SUBSAMPLING)
        if units.size != len(mels) * counts.max():
            raise ValueError(
                f"{self._path} gave {units.size} units for {len(mels)} x {lengths.max()} frames of 10 ms, not "
                f"{FRAMES_PER_SECOND} a second: take {FILE} of CosyVoice-300M-25Hz, not of CosyVoice-300M"
            )
        if units.min() < 0 or units.max() >= UNITS:
            raise ValueError(f"{self._path} gave unit {units.max()}; CosyVoice-300M has 0 to {UNITS - 1}")
        rows = units.reshape(len(mels), -1).astype(np.int64)
        return [row[:count] for row, count in zip(rows, counts.tolist(), strict=True)]


def providers(wanted: str | None) -> list[str]:
    """Names for onnxruntime: `wanted` (or the first that it has `BY_DEFAULT`), and what to fall back on.

    Raises:
        ValueError: this onnxruntime has no such provider.
    """
    available = onnxruntime.get_available_providers()
    names = [name for name, full_name in PROVIDERS.items() if full_name in available]
    if wanted is not None and wanted not in names:
        raise ValueError(
            f"provider {wanted!r}: this onnxruntime has {', '.join(names)}; "
            "install onnxruntime-gpu, which has cuda and tensorrt too, in its place (an image has what is in "
            "requirements/components.txt), or take tokenize.provider cpu"
        )
    first = wanted or next(name for name in BY_DEFAULT if name in names)
    return [PROVIDERS[name] for name in names[names.index(first) :]]


def _open(path: Path, provider: str | None) -> Any:
    """A session of the file, if its inputs are those of CosyVoice's tokenizer."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; this fetches it:\n"
            f"  python -m components.fetch cosyvoice-300m-25hz --out {path.parent} --hub"
        )
    wanted = providers(provider)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # of itself it takes all cores of the machine
    try:
        session = onnxruntime.InferenceSession(path, options, providers=wanted)
    except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf) as error:
        raise ValueError(f"{path} cannot be read as an ONNX file: {error}") from error
    if provider is not None and session.get_providers()[0] != wanted[0]:
        raise RuntimeError(f"{wanted[0]} does not start here (onnxruntime says why above); provider cpu does")
    log.info("CosyVoice's tokenizer works on %s", session.get_providers()[0])
    found = [(given.type, len(given.shape), given.shape[1:2]) for given in session.get_inputs()]
    if found != [("tensor(float)", 3, [MEL_BINS]), ("tensor(int32)", 1, [])] or len(session.get_outputs()) != 1:
        shapes = ", ".join(f"{given.name} {given.type} {given.shape}" for given in session.get_inputs())
        raise ValueError(
            f"{path} has the inputs {shapes}; CosyVoice's speech tokenizer has float features "
            f"(batch, {MEL_BINS}, time) and int32 lengths (batch,), and one output"
        )
    return session


def _loudness(mel: Mel) -> npt.NDArray[np.floating]:
    """(128, t) -> mean level of each unit, (t / 4 rounded up,)."""
    level = mel.mean(0)
    units = np.pad(level, (0, -len(level) % SUBSAMPLING), mode="edge").reshape(-1, SUBSAMPLING)
    return np.asarray(units.mean(1))
