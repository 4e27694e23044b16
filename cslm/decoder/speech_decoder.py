"""The speech decoder on disk, and answers spoken with it.

    decoder = SpeechDecoder.load(Path("models/decoder"))
    samples = decoder.speak(units, "af_heart")           # merged units -> 16 kHz float32

    stream = decoder.stream("af_heart")                  # the same, chunk by chunk
    first, second, rest = stream.push(chunk_1), stream.push(chunk_2), stream.finish()

A folder holds `config.json`, `acoustic.safetensors` (durations and flow) and `vocoder/` (cslm.decoder.vocoder).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cslm.audio import Samples
from cslm.decoder.durations import DurationPredictor, DurationStream
from cslm.decoder.flow import FeatureStream, FlowMatching
from cslm.decoder.vocoder import Vocoder, load_vocoder
from cslm.decoder.weights import load_weights, save_weights

STEPS = 6
"""Euler steps of the flow."""
GUIDANCE = 0.5
TEMPERATURE = 0.3


VOICES = ("durations.voices.weight", "flow.voices.weight")
"""Weights with a row for each voice; behind those the flow has one for nobody."""


class UnknownVoice(ValueError):
    """A voice that the decoder does not have; the message lists those it has."""


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of the networks, the voices, and the tokenizer (its fingerprint) whose units they speak."""

    units: int
    voices: dict[str, str]
    """Name of each voice -> its language."""
    tokenizer: str
    width: int = 256
    encoder_layers: int = 4
    layers: int = 8
    duration_width: int = 48
    duration_layers: int = 2


class SpeechDecoder(nn.Module):
    """Merged units in, samples out."""

    def __init__(self, config: DecoderConfig, vocoder: Vocoder) -> None:
        super().__init__()
        self.config = config
        self.voices = list(config.voices)
        self.durations = DurationPredictor(
            config.units, len(self.voices), config.duration_width, config.duration_layers
        )
        self.flow = FlowMatching(
            config.units, len(self.voices), config.width, config.encoder_layers, config.layers
        )
        self.vocoder = vocoder

    @classmethod
    def load(cls, folder: Path) -> SpeechDecoder:
        """Open a saved decoder, ready to speak.

        Raises:
            FileNotFoundError: the folder lacks one of its files.
            ValueError: the vocoder is of an unknown kind, or the weights are those of another release.
        """
        config = DecoderConfig(**json.loads((folder / "config.json").read_text("utf-8")))
        decoder = cls(config, load_vocoder(folder / "vocoder"))
        weights = load_weights(folder / "acoustic.safetensors")
        wanted = {name: weight.shape for name, weight in decoder._acoustic().items()}
        if wanted != {name: weight.shape for name, weight in weights.items()}:
            raise ValueError(f"{folder}: its weights are not those of this release's decoder")
        decoder.load_state_dict(weights, strict=False)
        return decoder.eval()

    def save(self, folder: Path) -> None:
        """Write all files into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(asdict(self.config), indent=1) + "\n", "utf-8")
        save_weights(self._acoustic(), folder / "acoustic.safetensors")
        self.vocoder.save(folder / "vocoder")

    def _acoustic(self) -> dict[str, torch.Tensor]:
        return {name: each for name, each in self.state_dict().items() if not name.startswith("vocoder.")}

    def with_voices(self, voices: Mapping[str, str]) -> SpeechDecoder:
        """The same decoder with more voices (name -> language), which begin as the mean of all others."""
        extended = SpeechDecoder(replace(self.config, voices={**self.config.voices, **voices}), self.vocoder)
        weights = extended.state_dict()
        for name, weight in self.state_dict().items():
            if name in VOICES:
                known = weight[: len(self.voices)]
                weights[name][:] = known.mean(0)
                weights[name][: len(known)] = known
                weights[name][len(extended.voices) :] = weight[len(known) :]
            else:
                weights[name].copy_(weight)
        return extended

    def natives(self, language: str | None) -> list[str]:
        """Names of the voices that speak a language by birth; any voice can speak any."""
        return [name for name, native in self.config.voices.items() if native == language]

    def voice_of(self, name: str) -> int:
        """Number of a voice.

        Raises:
            UnknownVoice: there is none of that name.
        """
        if name not in self.config.voices:
            raise UnknownVoice(f"voice {name!r} is unknown; allowed: {', '.join(self.voices)}")
        return self.voices.index(name)

    def stream(self, voice: str, steps: int = STEPS) -> SpeechStream:
        """Begin an answer in a voice."""
        return SpeechStream(self, self.voice_of(voice), steps)

    def speak(self, units: Sequence[int], voice: str, steps: int = STEPS) -> Samples:
        """Merged units -> samples (n,) at 16 kHz."""
        stream = self.stream(voice, steps)
        return np.concatenate([stream.push(units), stream.finish()])


class SpeechStream:
    """One answer, piece by piece; together the pieces are what `speak` gives for all units."""

    def __init__(self, decoder: SpeechDecoder, voice: int, steps: int) -> None:
        self._durations = DurationStream(decoder.durations, voice)
        self._features = FeatureStream(decoder.flow, voice, steps, GUIDANCE, TEMPERATURE)
        self._samples = decoder.vocoder.stream()

    @torch.inference_mode()
    def push(self, units: Sequence[int]) -> Samples:
        """More merged units -> the samples that are known now: all but the last 0.3 s."""
        features = self._features.push(_frames(*self._durations.push(list(units))))
        return self._samples.push(features).numpy()

    @torch.inference_mode()
    def finish(self) -> Samples:
        """The rest."""
        features = self._features.push(_frames(*self._durations.finish()))
        features = torch.cat([features, self._features.finish()])
        return torch.cat([self._samples.push(features), self._samples.finish()]).numpy()


def _frames(units: list[int], durations: list[int]) -> torch.Tensor:
    return torch.repeat_interleave(
        torch.tensor(units, dtype=torch.long), torch.tensor(durations, dtype=torch.long)
    )
