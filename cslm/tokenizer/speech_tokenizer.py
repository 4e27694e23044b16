"""A trained speech tokenizer on disk: `model.safetensors` and `config.json`.

tokenizer = SpeechTokenizer.load(Path("models/tokenizer"))
[frames] = tokenizer.encode([samples])        # 16 kHz float32 -> units of 40 ms
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cslm.audio import Samples
from cslm.tokenizer.ctc import best_labels
from cslm.tokenizer.features import log_mel
from cslm.tokenizer.model import MAKES_UNITS, SUBSAMPLING, TokenizerNetwork, take_over

Frames = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenizerConfig:
    """Shape of the network and its labels; label 0 is CTC's blank, label i + 1 is `labels[i]`."""

    hidden: int
    layers: int
    levels: list[int]
    labels: list[str]


class SpeechTokenizer:
    """Speech to units, and units to label posteriors."""

    def __init__(self, config: TokenizerConfig) -> None:
        self.config = config
        self.network = TokenizerNetwork(config.hidden, config.layers, config.levels, len(config.labels) + 1)
        self.label_ids = {label: index + 1 for index, label in enumerate(config.labels)}

    @property
    def units(self) -> int:
        """Number of different units."""
        return self.network.quantizer.units

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what makes units, in 16 bits: tells whose units these are, however they are stored."""
        digest = hashlib.sha256(json.dumps(list(self.config.levels)).encode())
        for name, weight in sorted(self.network.state_dict().items()):
            if name.startswith(MAKES_UNITS):
                digest.update(name.encode() + weight.half().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def with_labels(self, names: Iterable[str]) -> SpeechTokenizer:
        """The same tokenizer that knows these labels too, as yet unheard; the units stay."""
        known = self.config.labels
        extended = SpeechTokenizer(replace(self.config, labels=[*known, *sorted(set(names) - set(known))]))
        take_over(extended.network, self.network)
        return extended

    @classmethod
    def load(cls, folder: Path) -> SpeechTokenizer:
        """Open a saved tokenizer, ready to encode.

        Raises:
            FileNotFoundError: the folder lacks config.json or model.safetensors.
        """
        config = TokenizerConfig(**json.loads((folder / "config.json").read_text("utf-8")))
        tokenizer = cls(config)
        tokenizer.network.load_state_dict(load_file(folder / "model.safetensors"))
        tokenizer.network.eval()
        return tokenizer

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `config.json` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.network.state_dict(), folder / "model.safetensors")
        config = json.dumps(asdict(self.config), ensure_ascii=False, indent=1)
        (folder / "config.json").write_text(config + "\n", "utf-8")

    @torch.inference_mode()
    def encode(self, batch: Sequence[Samples]) -> list[Frames]:
        """16 kHz samples of each utterance -> units (T,), one each 40 ms."""
        mels, lengths = collate([log_mel(samples) for samples in batch])
        units = self.network.quantizer.to_units(self.network.codes(mels, lengths))
        return [row[:length].numpy() for row, length in zip(units, lengths.tolist(), strict=True)]

    @torch.inference_mode()
    def log_probs(self, batch: Sequence[npt.ArrayLike]) -> list[npt.NDArray[np.float32]]:
        """Frame units of each utterance -> log P(label | frame), (T, labels + 1) each."""
        rows = [torch.as_tensor(np.asarray(frames, np.int64)) for frames in batch]
        lengths = torch.tensor([len(row) for row in rows])
        codes = self.network.quantizer.to_codes(pad_sequence(rows, batch_first=True))
        log_probs = self.network.log_probs(codes.float(), lengths)
        return [row[:length].numpy() for row, length in zip(log_probs, lengths.tolist(), strict=True)]

    def transcribe(self, log_probs: npt.NDArray[np.float32]) -> list[str]:
        """Best path (greedy CTC): (T, labels + 1) -> label names."""
        return best_labels(log_probs, self.config.labels)


def collate(mels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mels (t, 80) each -> (B, 4T, 80) padded, and lengths in units (B,)."""
    lengths = torch.tensor([-(-len(mel) // SUBSAMPLING) for mel in mels])
    padded = pad_sequence(list(mels), batch_first=True)
    missing = int(lengths.max()) * SUBSAMPLING - padded.shape[1]
    return torch.nn.functional.pad(padded, (0, 0, 0, missing)), lengths
