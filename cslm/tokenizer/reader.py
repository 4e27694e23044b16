"""A recogniser of units that another network makes: what they say, so that they can be aligned with text.

CosyVoice's tokenizer gives units and no probabilities of sounds. This small network learns them from units with
their text (`cslm.tokenizer.reader_training`). It sees as much as what is behind the quantiser of the trainable
tokenizer does: each unit and two neighbors to either side.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from cslm.tokenizer.ctc import best_labels
from cslm.tokenizer.model import READING, Reading, padding_mask, take_over

CONFIG, WEIGHTS = "reader.json", "reader.safetensors"


class UnitReader(nn.Module):
    """Units to label posteriors; label 0 is CTC's blank, label i + 1 is `labels[i]`."""

    def __init__(self, units: int, hidden: int, labels: Sequence[str]) -> None:
        super().__init__()
        self.units, self.hidden, self.labels = units, hidden, list(labels)
        self.label_ids = {label: index + 1 for index, label in enumerate(labels)}
        self.embedding = nn.Embedding(units + 1, hidden)  # the last one stands for a unit that is hidden
        self.decoder = nn.ModuleList(Reading(hidden) for _ in range(READING))
        self.head = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, len(labels) + 1))

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Units (B, T), lengths (B,) -> CTC log-probabilities (B, T, labels + 1)."""
        x = self.embedding(frames)
        padding = padding_mask(lengths, x.shape[1])
        for layer in self.decoder:
            x = layer(x, padding)
        return F.log_softmax(self.head(x), -1)

    @torch.inference_mode()
    def log_probs(self, batch: Sequence[npt.ArrayLike]) -> list[npt.NDArray[np.float32]]:
        """Units of each utterance -> log P(label | unit), (T, labels + 1) each."""
        rows = [torch.as_tensor(np.asarray(frames, np.int64)) for frames in batch]
        lengths = torch.tensor([len(row) for row in rows])
        log_probs = self(pad_sequence(rows, batch_first=True), lengths)
        return [row[:length].numpy() for row, length in zip(log_probs, lengths.tolist(), strict=True)]

    def transcribe(self, log_probs: npt.NDArray[np.float32]) -> list[str]:
        """Best path (greedy CTC): (T, labels + 1) -> label names."""
        return best_labels(log_probs, self.labels)

    def with_labels(self, names: Iterable[str]) -> UnitReader:
        """The same recogniser that knows these labels too, as yet unheard."""
        extended = UnitReader(self.units, self.hidden, [*self.labels, *sorted(set(names) - set(self.labels))])
        take_over(extended, self)
        return extended

    @classmethod
    def load(cls, folder: Path) -> UnitReader:
        """Open a saved recogniser.

        Raises:
            FileNotFoundError: the folder lacks reader.json or reader.safetensors.
        """
        reader = cls(**json.loads((folder / CONFIG).read_text("utf-8")))
        reader.load_state_dict(load_file(folder / WEIGHTS))
        return reader.eval()

    def save(self, folder: Path) -> None:
        """Write `reader.safetensors` and `reader.json` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / WEIGHTS)
        config = {"units": self.units, "hidden": self.hidden, "labels": self.labels}
        (folder / CONFIG).write_text(json.dumps(config, ensure_ascii=False, indent=1) + "\n", "utf-8")
