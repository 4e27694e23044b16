"""Who judges the sound of an answer: two speech recognisers, DNSMOS and a speaker encoder, none of them ours.

Their weights are external (models.yaml: whisper-base-ct2, dnsmos, resemblyzer) or come with their package
(pocketsphinx). The front ends of DNSMOS and the encoder are written here after their releases, as their
packages ask for versions and parts that do not install beside the rest.

UTMOS (arXiv 2204.02152), which the paper reports too, is not measured: no weights of it are at hand. It would
be a class beside `Dnsmos`, with its file in models.yaml and its mean where that of DNSMOS is
(cslm/evaluation/speech.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from faster_whisper import WhisperModel
from pocketsphinx import Decoder
from torch import nn
from transformers.audio_utils import mel_filter_bank

from cslm.audio import SAMPLE_RATE, Samples

Vector = npt.NDArray[np.float32]


class Recognizer:
    """Whisper (arXiv 2212.04356) by CTranslate2, in 8 bits, greedily and without fallbacks."""

    def __init__(self, folder: Path) -> None:
        self._model = WhisperModel(str(folder), device="cpu", compute_type="int8")

    def knows(self, language: str) -> bool:
        """Whether it has learnt to hear a language."""
        return language in self._model.supported_languages

    def transcribe(self, samples: Samples, language: str) -> str:
        """Text of 16 kHz samples in a language that it knows."""
        segments, _ = self._model.transcribe(
            samples, language=language, beam_size=1, temperature=0.0, condition_on_previous_text=False
        )
        return "".join(segment.text for segment in segments).strip()

    def language(self, samples: Samples, among: Sequence[str]) -> str:
        """The most probable language of 16 kHz samples, of those that it may be."""
        _, _, ranked = self._model.detect_language(samples)
        scores = dict(ranked or [])
        return max(among, key=lambda language: scores.get(language, 0.0))


class SecondOpinion:
    """Pocketsphinx with its own English model: weaker than Whisper, and it guesses no whole sentences."""

    LANGUAGE = "en"

    def __init__(self) -> None:
        self._decoder = Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")

    def transcribe(self, samples: Samples) -> str:
        """Text of 16 kHz samples in English."""
        if not len(samples):
            return ""
        pcm = (samples.clip(-1, 1) * np.iinfo(np.int16).max).astype(np.int16).tobytes()
        self._decoder.start_utt()
        self._decoder.process_raw(pcm, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return str(found.hypstr) if found else ""


class Dnsmos:
    """DNSMOS P.835 (arXiv 2110.01763): what listeners would say of the overall quality, 1 to 5."""

    SECONDS = 9.01
    OVERALL = np.poly1d([-0.06766283, 1.11546468, 0.04602535])
    """Its raw output to the scale of the listening tests, as released."""

    def __init__(self, folder: Path) -> None:
        self._session = onnxruntime.InferenceSession(folder / "sig_bak_ovr.onnx")

    def overall(self, samples: Samples) -> float:
        """Mean over windows of 9 s, one each whole second; shorter samples are repeated."""
        width = int(self.SECONDS * SAMPLE_RATE)
        while len(samples) < width:
            samples = np.append(samples, samples)
        scores = []
        for second in range(int(len(samples) // SAMPLE_RATE - self.SECONDS) + 1):
            first = second * SAMPLE_RATE
            window = samples[None, first : first + width].astype(np.float32)
            scores.append(self.OVERALL(self._session.run(None, {"input_1": window})[0][0][2]))
        return float(np.mean(scores))


class SpeakerEncoder(nn.Module):
    """Resemblyzer's encoder (GE2E, arXiv 1710.10467): a vector of length 1 for the voice of an utterance."""

    WINDOW, HOP, BINS, HIDDEN = 400, 160, 40, 256
    FRAMES, STEP = 160, 77
    """Windows of 1.6 s, 1.3 a second."""
    COVERED = 0.75
    """Share of the last window that must be speech, unless it is the only one."""
    LEVEL_DB = -30.0
    """Quieter speech is made as loud as this."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.lstm = nn.LSTM(self.BINS, self.HIDDEN, 3, batch_first=True)
        self.linear = nn.Linear(self.HIDDEN, self.HIDDEN)
        state = torch.load(folder / "pretrained.pt", "cpu", weights_only=True)["model_state"]
        self.load_state_dict({k: v for k, v in state.items() if not k.startswith("similarity")})
        self._filters = torch.from_numpy(
            mel_filter_bank(
                self.WINDOW // 2 + 1, self.BINS, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, "slaney", "slaney"
            )
        ).float()

    @torch.inference_mode()
    def embed(self, samples: Samples) -> Vector:
        """(n,) samples at 16 kHz -> (256,)."""
        level = 10 * np.log10(max(float(np.square(samples).mean()), 1e-12))
        samples = samples * 10 ** (max(0.0, self.LEVEL_DB - level) / 20)
        frames = -(-(len(samples) + 1) // self.HOP)
        firsts = list(range(0, max(1, frames - self.FRAMES + self.STEP + 1), self.STEP))
        if len(firsts) > 1 and (len(samples) / self.HOP - firsts[-1]) / self.FRAMES < self.COVERED:
            firsts.pop()
        end = (firsts[-1] + self.FRAMES) * self.HOP
        mel = self._mel(torch.from_numpy(np.pad(samples, (0, max(0, end - len(samples))))).float())
        windows = torch.stack([mel[first : first + self.FRAMES] for first in firsts])
        _, (hidden, _) = self.lstm(windows)
        vectors = nn.functional.normalize(torch.relu(self.linear(hidden[-1])), dim=1)
        return nn.functional.normalize(vectors.mean(0), dim=0).numpy()  # type: ignore[no-any-return]

    def _mel(self, samples: torch.Tensor) -> torch.Tensor:
        """(n,) -> power in mel bands (frames, 40), not its logarithm."""
        spectrum = torch.stft(
            samples,
            self.WINDOW,
            self.HOP,
            window=torch.hann_window(self.WINDOW),
            pad_mode="constant",
            return_complex=True,
        )
        return spectrum.abs().square().T @ self._filters
