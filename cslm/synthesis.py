"""Text to speech with Kokoro-82M (ONNX), for voicing text corpora and instruction data.

Kokoro is a StyleTTS 2 model with one 256-dimensional style vector per voice and phoneme count
(hexgrad/Kokoro-82M, Apache-2.0). Mandarin is phonemised by misaki, all else by espeak-ng through it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

SAMPLE_RATE = 24_000
MAX_PHONEMES = 510
TRIM_THRESHOLD = 0.01
TRIM_PADDING_S = 0.05
ESPEAK_LANGUAGES = {"es": "es", "fr": "fr-fr", "hi": "hi", "it": "it", "pt": "pt-br"}
"""espeak-ng's names of languages that Kokoro has voices of, and no phonemes of its own kind."""
LANGUAGES = ("en", "zh", *ESPEAK_LANGUAGES)


class UnspeakableText(ValueError):
    """The text has no phoneme that the voice knows, or has too many for one utterance."""


@dataclass(frozen=True)
class Kokoro:
    """A folder with `model.onnx`, `vocab.json` and `voices/NAME.bin` (float32, (510, 1, 256))."""

    folder: Path

    def speak(self, text: str, language: str, voice: str, speed: float = 1.0) -> npt.NDArray[np.float32]:
        """Speak one sentence: mono float32 samples in [-1, 1] at `SAMPLE_RATE`, silence trimmed.

        Raises:
            UnspeakableText: no known phonemes, or over `MAX_PHONEMES` of them (split the text).
            ValueError: unknown language or voice; the message lists those that exist.
        """
        if voice not in self.voices:
            raise ValueError(f"unknown voice {voice!r}; this model has: {', '.join(self.voices)}")
        phonemes = self.phonemize(text, language)
        ids = [self._vocabulary[p] for p in phonemes if p in self._vocabulary]
        if not 0 < len(ids) <= MAX_PHONEMES:
            raise UnspeakableText(f"{len(ids)} phonemes in {text!r}; a voice speaks 1 to {MAX_PHONEMES}")
        style = np.fromfile(self.folder / "voices" / f"{voice}.bin", np.float32).reshape(-1, 256)
        (audio, *_) = self._session.run(
            None,
            {
                "tokens": np.array([[0, *ids, 0]], np.int64),
                "style": style[min(len(ids), len(style) - 1)][None],
                "speed": np.array([speed], np.float32),
            },
        )
        return _trim(np.asarray(audio, np.float32).ravel())

    def phonemize(self, text: str, language: str) -> str:
        """IPA phonemes of `text`; `language` is one of `LANGUAGES`."""
        if language == "en":
            phonemes, _ = self._english(SimpleNamespace(text=text))
            return str(phonemes)
        if language == "zh":
            phonemes, _ = self._mandarin(text)
            return str(phonemes)
        if language in ESPEAK_LANGUAGES:
            phonemes, _ = _espeak(language)(text)
            return str(phonemes)
        raise ValueError(f"no phonemes for language {language!r}; known: {', '.join(LANGUAGES)}")

    @cached_property
    def voices(self) -> tuple[str, ...]:
        """Names of all voices in the folder, sorted."""
        return tuple(sorted(path.stem for path in (self.folder / "voices").glob("*.bin")))

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        vocabulary: dict[str, int] = json.loads((self.folder / "vocab.json").read_text("utf-8"))["vocab"]
        return vocabulary

    @cached_property
    def _session(self) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # processes share the cores (components.synthesize)
        return ort.InferenceSession(
            str(self.folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    @cached_property
    def _english(self):  # type: ignore[no-untyped-def]  # misaki is untyped
        from misaki.espeak import EspeakFallback

        return EspeakFallback(british=False)

    @cached_property
    def _mandarin(self):  # type: ignore[no-untyped-def]  # misaki is untyped
        from misaki.zh import ZHG2P

        return ZHG2P()


@cache
def _espeak(language: str):  # type: ignore[no-untyped-def]  # misaki is untyped
    from misaki.espeak import EspeakG2P

    return EspeakG2P(ESPEAK_LANGUAGES[language])


def _trim(audio: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Cut leading and trailing silence, keeping `TRIM_PADDING_S` on both sides."""
    loud = np.flatnonzero(np.abs(audio) > TRIM_THRESHOLD)
    if not loud.size:
        return audio
    padding = round(TRIM_PADDING_S * SAMPLE_RATE)
    return audio[max(0, loud[0] - padding) : loud[-1] + padding + 1]
