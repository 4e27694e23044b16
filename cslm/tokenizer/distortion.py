"""What rooms, microphones and noise do to a recording, drawn at random."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cslm.audio import SAMPLE_RATE, Samples

IN_A_ROOM, BY_A_MICROPHONE, IN_NOISE = 0.5, 0.5, 0.8
"""How often each of them happens."""
REVERBERATION_S = (0.1, 0.5)
"""Time in which an echo becomes quieter by 60 dB."""
DIRECT_DB = (0.0, 15.0)
"""How much louder the voice is than all of its echoes."""
FIRST_ECHO_S = 0.002
RESPONSE_DB, RESPONSE_POINTS = 8.0, 6
"""How much a microphone makes frequencies louder or quieter, between so many points from 0 to 8 kHz."""
NOISE_DB = (5.0, 40.0)
"""Signal to noise."""
NOISE_SLOPES = (0, 0, 1, 2)
"""Power of a noise falls with this power of the frequency: white twice, pink, brown."""

Signal = npt.NDArray[np.float64]


def distort(samples: Samples, rng: np.random.Generator) -> Samples:
    """The same speech (n,), sample by sample in time, as another microphone would have taken it elsewhere."""
    signal = samples.astype(np.float64)
    if rng.random() < IN_A_ROOM:
        signal = _in_a_room(signal, rng)
    if rng.random() < BY_A_MICROPHONE:
        signal = _by_a_microphone(signal, rng)
    if rng.random() < IN_NOISE:
        signal = signal + _noise(signal, rng)
    return signal.astype(np.float32)


def _in_a_room(signal: Signal, rng: np.random.Generator) -> Signal:
    """Convolve with noise that fades away, which is what the echoes of a room amount to (Polack 1988)."""
    n = int(rng.uniform(*REVERBERATION_S) * SAMPLE_RATE)
    echoes = rng.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)
    echoes[: int(FIRST_ECHO_S * SAMPLE_RATE)] = 0
    echoes *= 10 ** (-rng.uniform(*DIRECT_DB) / 20) / np.linalg.norm(echoes)
    echoes[0] = 1
    size = len(signal) + n - 1
    heard: Signal = np.fft.irfft(np.fft.rfft(signal, size) * np.fft.rfft(echoes, size), size)
    return heard[: len(signal)]


def _by_a_microphone(signal: Signal, rng: np.random.Generator) -> Signal:
    spectrum = np.fft.rfft(signal)
    points = np.linspace(0, len(spectrum) - 1, RESPONSE_POINTS)
    response = rng.uniform(-RESPONSE_DB, RESPONSE_DB, RESPONSE_POINTS)
    gain = 10 ** (np.interp(np.arange(len(spectrum)), points, response) / 20)
    taken: Signal = np.fft.irfft(spectrum * gain, len(signal))
    return taken


def _noise(signal: Signal, rng: np.random.Generator) -> Signal:
    spectrum = np.fft.rfft(rng.standard_normal(len(signal)))
    slope = rng.choice(NOISE_SLOPES)
    noise: Signal = np.fft.irfft(spectrum / np.maximum(np.arange(len(spectrum)), 1) ** (slope / 2), len(signal))
    loudness = np.linalg.norm(signal) * 10 ** (-rng.uniform(*NOISE_DB) / 20)
    noise *= loudness / np.linalg.norm(noise)
    return noise
