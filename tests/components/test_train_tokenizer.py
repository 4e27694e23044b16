"""A tokenizer that cannot align is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.settings import TrainTokenizer
from components.stage import StageFailed
from components.train_tokenizer.__main__ import open_tokenizer


def test_cosyvoice_s_tokenizer_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "speech_tokenizer_v1.onnx").touch()
    with pytest.raises(StageFailed, match="no probabilities of sounds, by which stage align"):
        open_tokenizer(TrainTokenizer(checkpoint=str(tmp_path)), seed=1)
