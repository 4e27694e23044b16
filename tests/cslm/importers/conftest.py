"""Small corpora made on the spot: real audio files, by soundfile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

MakeAudio = Callable[..., Path]


@pytest.fixture
def make_audio(tmp_path: Path) -> MakeAudio:
    """`make_audio("wav/a.wav", seconds=1, rate=16000, channels=1)`: a tone in the folder `corpus`."""

    def make(name: str, seconds: float = 1.0, rate: int = 16_000, channels: int = 1, **options: str) -> Path:
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        times = np.arange(round(seconds * rate)) / rate
        tone = 0.3 * np.sin(2 * np.pi * 440 * times)
        soundfile.write(path, np.repeat(tone[:, None], channels, axis=1), rate, **options)
        return path

    return make


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The folder that `make_audio` fills."""
    folder = tmp_path / "corpus"
    folder.mkdir(exist_ok=True)
    return folder
