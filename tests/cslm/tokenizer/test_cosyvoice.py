"""The CosyVoice tokenizer, on a small ONNX file with the inputs and the output of the published one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cslm.audio import SAMPLE_RATE, Samples, encode_flac
from cslm.tokenizer import cosyvoice, open_tokenizer
from cslm.tokenizer.corpus import tokenize
from cslm.tokenizer.cosyvoice import FILE, CosyVoiceTokenizer
from cslm.tokenizer.whisper_mel import log_mel
from cslm.units import expand_runs
from tests.cosyvoice_file import network


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> CosyVoiceTokenizer:
    return CosyVoiceTokenizer.load(network(tmp_path_factory.mktemp("alone")))


@pytest.fixture(scope="module")
def batched(tmp_path_factory: pytest.TempPathFactory) -> CosyVoiceTokenizer:
    return CosyVoiceTokenizer.load(network(tmp_path_factory.mktemp("batched"), "batch"))


def speech(seconds: float, seed: int = 1) -> Samples:
    """Noise that changes its colour five times a second."""
    rng = np.random.default_rng(seed)
    count = round(seconds * SAMPLE_RATE)
    parts = [np.zeros(0)]
    while sum(map(len, parts)) < count:
        spectrum = np.fft.rfft(rng.normal(size=3200)) * np.exp(-np.linspace(0, rng.uniform(1, 9), 1601))
        parts.append(rng.uniform(0.05, 1) * np.fft.irfft(spectrum))
    return (0.3 * np.concatenate(parts)[:count]).astype(np.float32)


def in_one_piece(tokenizer: CosyVoiceTokenizer, samples: Samples) -> np.ndarray:
    """Units of the network without windows: the reference's way, for speech of any length."""
    mel = log_mel(samples)[None]
    feeds = {"feats": mel, "feats_length": np.array([mel.shape[2]], np.int32)}
    return tokenizer._session.run(None, feeds)[0].flatten()


def calls(tokenizer: CosyVoiceTokenizer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Collects (utterances, mel frames) of each run of the network."""
    shapes: list[tuple[int, int]] = []
    run = tokenizer._session.run

    class Session:
        def run(self, outputs: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            shapes.append((feeds["feats"].shape[0], feeds["feats"].shape[2]))
            return run(outputs, feeds)

    monkeypatch.setattr(tokenizer, "_session", Session())
    return shapes


@given(st.integers(0, 70 * SAMPLE_RATE))
@settings(max_examples=12)
@example(0)
@example(159)
@example(160)
@example(799)
@example(800)
@example(480_159)
@example(480_160)
def test_a_unit_is_forty_milliseconds_of_whole_frames(batched: CosyVoiceTokenizer, samples: int) -> None:
    [units] = batched.encode([np.zeros(samples, np.float32)])
    assert len(units) == -(-(samples // 160) // 4)
    assert units.dtype == np.int64


def test_it_gives_what_the_reference_s_code_gives(alone: CosyVoiceTokenizer) -> None:
    samples = speech(7.3)
    [units] = alone.encode([samples])
    assert units.tolist() == in_one_piece(alone, samples).tolist()
    assert len(set(units.tolist())) > 20, "the test's network tells sounds apart"


def test_a_batch_gives_what_each_alone_gives(alone: CosyVoiceTokenizer, batched: CosyVoiceTokenizer) -> None:
    batch = [speech(seconds, seed) for seed, seconds in enumerate((3.0, 0.5, 9.99, 4.0, 0.005))]
    together = batched.encode(batch)
    for samples, one, many in zip(batch, alone.encode(batch), together, strict=True):
        assert len(one) == len(many) == -(-(len(samples) // 160) // 4)
        assert np.array_equal(one, many)


def test_batches_are_of_similar_length_and_within_their_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = CosyVoiceTokenizer.load(network(tmp_path, "batch"), batch_seconds=20)
    shapes = calls(tokenizer, monkeypatch)
    tokenizer.encode([speech(seconds) for seconds in (9.0, 1.0, 8.0, 1.2, 12.0, 1.1)])
    assert shapes == [(3, 120), (2, 900), (1, 1200)]


@pytest.mark.parametrize(("batch", "masked"), [(1, True), ("batch", False)])
def test_a_file_that_cannot_batch_gets_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int | str, masked: bool
) -> None:
    tokenizer = CosyVoiceTokenizer.load(network(tmp_path, batch, masked=masked))
    shapes = calls(tokenizer, monkeypatch)
    tokenizer.encode([speech(1.0), speech(2.0)])
    assert shapes == [(1, 100), (1, 200)]


def test_long_speech_is_cut_and_stitched_to_what_one_piece_would_give(
    batched: CosyVoiceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = [speech(95, 1), speech(3, 2), speech(31, 3)]
    whole = [in_one_piece(batched, samples) for samples in batch]
    shapes = calls(batched, monkeypatch)
    for ours, reference in zip(batched.encode(batch), whole, strict=True):
        assert len(ours) == len(reference)
        assert np.mean(ours == reference) > 0.998  # sums in another order may tip a unit
    assert max(frames for _, frames in shapes) <= 3000
    assert sum(utterances for utterances, _ in shapes) >= 4 + 1 + 2


def test_a_corpus_is_tokenized_as_with_the_trainable_one(batched: CosyVoiceTokenizer, tmp_path: Path) -> None:
    rows = [{"id": str(i), "audio": encode_flac(speech(i, i)), "duration_s": float(i)} for i in (3, 1, 2)]
    for row in tokenize(batched, rows, batch_seconds=10):
        seconds = int(row["id"])
        assert len(expand_runs(row["units"], row["durations"])) == 25 * seconds
        assert "audio" not in row and max(row["units"]) < batched.units == 4096


def test_a_fingerprint_is_the_file_s(alone: CosyVoiceTokenizer, tmp_path: Path) -> None:
    same, other = network(tmp_path / "same"), network(tmp_path / "other", units=4095)
    assert CosyVoiceTokenizer.load(same).fingerprint == alone.fingerprint
    assert CosyVoiceTokenizer.load(other).fingerprint != alone.fingerprint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strides": (1, 2)}, "25 a second: take speech_tokenizer_v1.onnx of CosyVoice-300M-25Hz"),
        ({"units": 6561}, "CosyVoice-300M has 0 to 4095"),
        ({"bins": 80}, r"inputs feats tensor\(float\) \[1, 80, 'time'\].*\(batch, 128, time\)"),
    ],
)
def test_another_network_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    folder = network(tmp_path, **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=said):
        CosyVoiceTokenizer.load(folder).encode([speech(5)])


def test_a_missing_and_a_truncated_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"components\.fetch cosyvoice-300m-25hz --out"):
        CosyVoiceTokenizer.load(tmp_path)
    file = network(tmp_path) / FILE
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match="cannot be read as an ONNX file"):
        CosyVoiceTokenizer.load(tmp_path)


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_providers_are_the_best_there_are_or_the_one_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = network(tmp_path)
    tensorrt, cuda, cpu = (f"{name}ExecutionProvider" for name in ("Tensorrt", "CUDA", "CPU"))
    assert cosyvoice.providers(None) == [cpu]
    with pytest.raises(ValueError, match="provider 'cuda': this onnxruntime has cpu"):
        CosyVoiceTokenizer.load(folder, "cuda")
    there = [cpu, "AzureExecutionProvider", cuda, tensorrt]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: there)
    assert cosyvoice.providers(None) == [cuda, cpu]
    assert cosyvoice.providers("tensorrt") == [tensorrt, cuda, cpu]
    assert cosyvoice.providers("cuda") == [cuda, cpu]
    with pytest.raises(ValueError, match="provider 'gpu': this onnxruntime has tensorrt, cuda, cpu"):
        cosyvoice.providers("gpu")
    with pytest.raises(RuntimeError, match="CUDAExecutionProvider does not start here"):
        CosyVoiceTokenizer.load(folder, "cuda")
    assert len(CosyVoiceTokenizer.load(folder).encode([speech(1)])[0]) == 25


@pytest.mark.parametrize(("batch_seconds", "utterances"), [(120, [6, 2]), (240, [8])])
def test_a_gpu_is_given_as_much_at_once_as_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_seconds: float, utterances: list[int]
) -> None:
    tokenizer = open_tokenizer(network(tmp_path, "batch"), batch_seconds=batch_seconds)
    assert isinstance(tokenizer, CosyVoiceTokenizer)
    shapes = calls(tokenizer, monkeypatch)
    tokenizer.encode([speech(20, i) for i in range(8)])
    assert [count for count, _ in shapes] == utterances
