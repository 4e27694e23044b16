"""One worker process of `components.synthesize`: it holds a voice model and speaks line after line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cslm.audio import SAMPLE_RATE, encode_opus, resample
from cslm.synthesis import SAMPLE_RATE as VOICE_RATE
from cslm.synthesis import Kokoro

_voice: Kokoro


def start_worker(model: Path) -> None:
    global _voice
    _voice = Kokoro(model)


def speak(line: dict[str, str]) -> dict[str, Any]:
    audio = _voice.speak(line["text"], line["language"], line["voice"], float(line.get("speed") or 1))
    samples = resample(audio, VOICE_RATE)
    return {
        "id": line["id"],
        "audio": encode_opus(samples),
        "duration_s": len(samples) / SAMPLE_RATE,
        "sample_rate": SAMPLE_RATE,
        "text": line["text"],
        "language": line["language"],
        "speaker": line["voice"],
        "source": "kokoro-82m",
        "split": line["split"],
    }
