"""Tones that stand for letters: a tokenizer learns them, and treats batches and files as it should."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from components.shrink.__main__ import main as shrink
from cslm.audio import SAMPLE_RATE, Samples
from cslm.tokenizer import SpeechTokenizer
from cslm.tokenizer.corpus import edit_distance
from cslm.tokenizer.ctc import needed_frames
from cslm.tokenizer.features import log_mel
from cslm.tokenizer.speech_tokenizer import TokenizerConfig
from cslm.tokenizer.training import WARP, Recipe, augment, feature_file, train

RECIPE = Recipe(
    steps=240,
    learning_rate=5e-3,
    batch_seconds=20,
    quantize_after=40,
    continuity=0.02,
    evenness=0.1,
    seed=1,
)
LETTERS = "zz"
"""A language without phones, so that its labels are letters."""
TONES = {"a": 300.0, "b": 900.0, "c": 2400.0}


def beep(text: str) -> Samples:
    """Each letter as 0.2 s of its tone, with silence between."""
    time = np.arange(round(0.2 * SAMPLE_RATE)) / SAMPLE_RATE
    rest = np.zeros(round(0.08 * SAMPLE_RATE))
    parts = [part for letter in text for part in (np.sin(2 * np.pi * TONES[letter] * time) * 0.3, rest)]
    return np.concatenate([rest, *parts]).astype(np.float32)


def mel(text: str) -> npt.NDArray[np.float32]:
    """Features of `beep(text)`."""
    return log_mel(beep(text)).numpy()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SpeechTokenizer:
    rng = random.Random(1)
    texts = ["".join(rng.choices("abc", k=rng.randint(2, 6))) for _ in range(60)]
    features = feature_file(tmp_path_factory.mktemp("features") / "mel.f16")
    assert not features.write(((mel(text), text, LETTERS) for text in texts), "abc").total()
    torch.manual_seed(1)
    trained = SpeechTokenizer(TokenizerConfig(hidden=32, layers=2, levels=[4, 4], labels=["a", "b", "c"]))
    train(trained, features, RECIPE, features.path.with_name("state.pt"), lambda step, loss: None)
    return trained


def test_it_learns_to_hear_letters(tokenizer: SpeechTokenizer) -> None:
    for text in ("abc", "cab", "bbca", "acacb"):
        [frames] = tokenizer.encode([beep(text)])
        heard = tokenizer.transcribe(tokenizer.log_probs([frames])[0])
        assert edit_distance(list(text), heard) <= 1


def test_a_unit_is_forty_milliseconds(tokenizer: SpeechTokenizer) -> None:
    for samples in (1, 160, 640, 641, 16_000, 16_001):
        [frames] = tokenizer.encode([np.zeros(samples, np.float32)])
        assert len(frames) == -(-samples // 640)


def test_batches_do_not_change_units(tokenizer: SpeechTokenizer) -> None:
    batch = [beep("abcabc"), beep("a"), beep("cb")]
    together = tokenizer.encode(batch)
    for samples, frames in zip(batch, together, strict=True):
        [alone] = tokenizer.encode([samples])
        assert (alone == frames).mean() > 0.97  # a rounding may tip on the edge of a level


def test_loudness_does_not_change_units(tokenizer: SpeechTokenizer) -> None:
    loud = [beep(text) for text in ("abc", "cab", "bbca", "acacb")]
    pairs = zip(tokenizer.encode(loud), tokenizer.encode([b * np.float32(0.5) for b in loud]), strict=True)
    assert np.mean(np.concatenate([a == b for a, b in pairs])) > 0.8  # digital silence has no level to lose


def test_saved_and_loaded_it_gives_the_same_units(tokenizer: SpeechTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    [before], [after] = tokenizer.encode([beep("abc")]), SpeechTokenizer.load(tmp_path).encode([beep("abc")])
    assert before.tolist() == after.tolist()


def test_a_fingerprint_survives_halving_and_nothing_else(tokenizer: SpeechTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "whole")
    shrink(tmp_path / "whole", tmp_path / "half")
    assert SpeechTokenizer.load(tmp_path / "half").fingerprint == tokenizer.fingerprint
    torch.manual_seed(2)
    other = SpeechTokenizer(tokenizer.config)
    assert other.fingerprint != tokenizer.fingerprint


def test_it_learns_new_letters_and_its_units_stay(tokenizer: SpeechTokenizer, tmp_path: Path) -> None:
    rng = random.Random(2)
    texts = ["".join(rng.choices("ab", k=rng.randint(2, 6))) for _ in range(40)]
    renamed = {text: text.replace("b", "d") for text in texts}  # another language calls this sound d
    before = [frames.tolist() for frames in tokenizer.encode([beep(text) for text in texts])]
    extended = tokenizer.with_labels("abd")
    assert extended.config.labels == ["a", "b", "c", "d"]
    [heard] = extended.log_probs([extended.encode([beep("cab")])[0]])
    assert extended.transcribe(heard) == tokenizer.transcribe(
        tokenizer.log_probs([tokenizer.encode([beep("cab")])[0]])[0]
    )
    features = feature_file(tmp_path / "mel.f16")
    features.write(((mel(text), told, LETTERS) for text, told in renamed.items()), extended.label_ids)
    recipe = dataclasses.replace(RECIPE, steps=120, quantize_after=0, units_stay=True)
    train(extended, features, recipe, tmp_path / "state.pt", lambda step, loss: None)
    assert [frames.tolist() for frames in extended.encode([beep(text) for text in texts])] == before
    assert extended.fingerprint == tokenizer.fingerprint
    spoken = extended.transcribe(extended.log_probs([extended.encode([beep("abba")])[0]])[0])
    assert edit_distance(list("adda"), spoken) <= 1


def test_mel_has_a_hundred_frames_a_second_and_its_peak_at_the_tone() -> None:
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    chirp = np.sin(2 * np.pi * np.where(time < 0.5, 500, 3000) * time).astype(np.float32)
    mel = log_mel(chirp)
    assert mel.shape == (100, 80)
    corners = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 82) / 2595) - 1)
    low, high = corners[1:-1][mel[25].argmax()], corners[1:-1][mel[75].argmax()]
    assert low == pytest.approx(500, rel=0.1)
    assert high == pytest.approx(3000, rel=0.1)


def test_too_fast_speech_and_unknown_sounds_are_skipped_and_counted(tmp_path: Path) -> None:
    features = feature_file(tmp_path / "mel.f16")
    corpus = [(mel("a")[:10], "abcabc"), (mel("ab"), "ab"), (mel("a"), "7"), (mel("ab"), "aé")]
    rows = [(frames, text, LETTERS) for frames, text in corpus]
    assert features.write(rows, "abc") == {"too_fast": 2, "unknown_sound": 1}
    assert len(features.utterances) == 1
    assert needed_frames("aab") == 4


def test_utterances_of_one_frame_do_not_spoil_the_weights(tmp_path: Path) -> None:
    features = feature_file(tmp_path / "mel.f16")
    features.write([(log_mel(beep("a")[1280:1920]).numpy(), "a", LETTERS)] * 2, "a")
    short = SpeechTokenizer(TokenizerConfig(hidden=32, layers=2, levels=[4, 4], labels=["a"]))
    train(short, features, dataclasses.replace(RECIPE, steps=2), tmp_path / "a.pt", lambda step, loss: None)
    assert all(weight.isfinite().all() for weight in short.network.parameters())


def test_killed_it_continues_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cslm.loop.CHECKPOINT_STEPS", 3)
    texts = ["ab", "bc", "cab", "acb"] * 3
    features = feature_file(tmp_path / "mel.f16")
    features.write(((mel(text), text, LETTERS) for text in texts), "abc")
    recipe = dataclasses.replace(RECIPE, steps=8, batch_seconds=5, quantize_after=2)

    def fresh() -> SpeechTokenizer:
        torch.manual_seed(7)
        return SpeechTokenizer(TokenizerConfig(hidden=32, layers=2, levels=[4, 4], labels=["a", "b", "c"]))

    def die(step: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    undisturbed, continued = fresh(), fresh()
    train(undisturbed, features, recipe, tmp_path / "a.pt", lambda step, loss: None)
    with pytest.raises(KeyboardInterrupt):
        train(continued, features, recipe, tmp_path / "b.pt", die)
    steps: list[int] = []
    continued = fresh()
    train(continued, features, recipe, tmp_path / "b.pt", lambda step, loss: steps.append(step))
    assert steps == [4, 5, 6, 7, 8]
    for name, weight in undisturbed.network.state_dict().items():
        torch.testing.assert_close(continued.network.state_dict()[name], weight, rtol=0, atol=1e-6, msg=name)


def test_augmented_speech_keeps_its_order_and_room_for_its_labels() -> None:
    mel = torch.arange(400.0)[:, None].expand(400, 80) + 1000  # rising in time, the same in all bins
    lengths = set()
    for seed in range(50):
        warped = augment(mel, 20, random.Random(seed))
        lengths.add(len(warped))
        heard = warped.amax(1)[warped.amax(1) > 0]  # the rest is masked
        assert (heard.diff() >= 0).all()
        assert heard.min() >= 1000 and heard.max() <= 1399
    assert 400 * (1 - WARP) - 1 <= min(lengths) < 390 and 410 < max(lengths) <= 400 * (1 + WARP) + 1
    assert all(len(augment(mel, 100, random.Random(seed))) >= 400 for seed in range(20)), (
        "100 units need 400 frames"
    )
