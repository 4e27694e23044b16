"""A stream of chunks sounds like the whole answer, files open again, and published vocoders fit in."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import SpeechT5FeatureExtractor, SpeechT5HifiGan, SpeechT5HifiGanConfig

from cslm.decoder import DecoderConfig, SpeechDecoder, UnknownVoice
from cslm.decoder.durations import DurationPredictor
from cslm.decoder.mel import log_mel
from cslm.decoder.vocoder import HifiGanVocoder, SourceFilterVocoder, load_vocoder

UNITS = 16
VOICES = {"ann": "en", "wei": "zh"}


def decoder(kind: str = "source_filter", seed: int = 1) -> SpeechDecoder:
    torch.manual_seed(seed)
    vocoder = SourceFilterVocoder(32, 2) if kind == "source_filter" else HifiGanVocoder.of_size(32)
    small = DecoderConfig(UNITS, VOICES, "", width=16, encoder_layers=2, layers=5, duration_width=16)
    made = SpeechDecoder(small, vocoder).eval()
    with torch.no_grad():  # weights large enough for every frame to matter
        for name, weight in made.named_parameters():
            if weight.ndim > 1 and ("flow" in name or "generator" in name):
                weight.mul_(2)
        made.flow.mean[80:] = torch.tensor(
            [7.2, 0.5]
        )  # so that the pitch rises and falls, and voices come and go
        made.flow.deviation[80:] = 0.5
    return made


@pytest.fixture(scope="module", params=["source_filter", "hifigan"])
def either(request: pytest.FixtureRequest) -> SpeechDecoder:
    return decoder(request.param)


@settings(max_examples=15)
@given(
    st.lists(st.integers(0, UNITS - 1), min_size=1, max_size=60),
    st.lists(st.integers(0, 60), max_size=4),
    st.sampled_from(sorted(VOICES)),
)
def test_however_it_is_cut_a_stream_is_the_whole(
    either: SpeechDecoder, units: list[int], cuts: list[int], voice: str
) -> None:
    whole = either.speak(units, voice)
    edges = [0, *sorted(min(cut, len(units)) for cut in cuts), len(units)]
    stream = either.stream(voice)
    pieces = [stream.push(units[a:b]) for a, b in itertools.pairwise(edges)]
    streamed = np.concatenate([*pieces, stream.finish()])
    assert len(streamed) == len(whole)
    # A rounding of the pitch is heard in the phase of its high harmonics until the voice pauses.
    assert np.abs(streamed - whole).max() <= 2e-3 * max(1.0, np.abs(whole).max())
    assert len(whole) >= 640 * len(units), "each unit lasts 40 ms or more"


def test_a_stream_of_features_sounds_as_the_whole_that_is_trained() -> None:
    vocoder = decoder().vocoder
    features = torch.randn(60, 82, generator=torch.Generator().manual_seed(4))
    features[:, 80], features[:, 81] = 7 + 0.3 * features[:, 80], (features[:, 81] > 0).float()
    with torch.inference_mode():
        whole, stream = vocoder(features[None])[0], vocoder.stream()
        pieces = [stream.push(features[a:b]) for a, b in itertools.pairwise((0, 1, 4, 30, 60))]
        streamed = torch.cat([*pieces, stream.finish()])
    assert whole.shape == (60 * 256,)
    torch.testing.assert_close(streamed, whole, rtol=0, atol=1e-5)


def test_most_of_a_chunk_sounds_before_the_next_is_there() -> None:
    stream = decoder().stream("ann")
    held = 0.4  # seconds that the networks look ahead
    assert len(stream.push([1, 2] * 30)) >= (60 * 0.04 - held) * 16_000


@pytest.mark.parametrize("steps", [1, 3])
def test_the_number_of_steps_is_that_of_whole_and_stream(steps: int) -> None:
    made, units = decoder(), [1, 5, 9, 3] * 10
    stream = made.stream("ann", steps)
    streamed = np.concatenate([stream.push(units[:20]), stream.push(units[20:]), stream.finish()])
    whole, usual = made.speak(units, "ann", steps), made.speak(units, "ann")
    assert np.abs(streamed - whole).max() <= 2e-3 * max(1.0, np.abs(whole).max())
    assert np.abs(usual - whole).max() > 1e-2 * np.abs(whole).max(), "it is not the usual number"


def test_the_voice_is_heard() -> None:
    made = decoder()
    units = [1, 5, 9, 3] * 5
    ann, wei = made.speak(units, "ann"), made.speak(units, "wei")
    assert len(ann) != len(wei) or np.abs(ann - wei).max() > 1e-3
    assert np.array_equal(ann, made.speak(units, "ann")), "the same answer sounds the same"


def test_a_new_voice_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    known = decoder()
    more = known.with_voices({"ana": "es"})
    assert more.config.voices == VOICES | {"ana": "es"}
    more.save(tmp_path)
    units = [1, 5, 5, 2, 9, 14]
    for voice in VOICES:
        np.testing.assert_array_equal(more.speak(units, voice), known.speak(units, voice))
    assert len(SpeechDecoder.load(tmp_path).speak(units, "ana"))


def test_an_unknown_voice_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnknownVoice, match=r"'bob' is unknown; allowed: ann, wei"):
        decoder().speak([1], "bob")


@pytest.mark.parametrize("kind", ["source_filter", "hifigan"])
def test_saved_and_loaded_it_sounds_the_same(kind: str, tmp_path: Path) -> None:
    made, units = decoder(kind), [3, 1, 4, 1, 5] * 4
    made.save(tmp_path / "a")
    once = SpeechDecoder.load(tmp_path / "a")
    once.save(tmp_path / "b")
    sound = once.speak(units, "wei")
    assert once.voices == ["ann", "wei"]
    assert np.array_equal(SpeechDecoder.load(tmp_path / "b").speak(units, "wei"), sound)
    assert len(sound) == pytest.approx(len(made.speak(units, "wei")), rel=0.05), "8 bits round durations"


def test_a_decoder_of_another_release_is_refused(tmp_path: Path) -> None:
    decoder().save(tmp_path)
    weights = load_file(tmp_path / "acoustic.safetensors")
    save_file({**weights, "flow.mean": weights["flow.mean"][:80]}, tmp_path / "acoustic.safetensors")
    with pytest.raises(ValueError, match=r"weights are not those of this release's decoder"):
        SpeechDecoder.load(tmp_path)
    (tmp_path / "vocoder" / "config.json").write_text('{"model_type": "istft", "width": 8, "layers": 1}')
    with pytest.raises(ValueError, match=r"vocoder 'istft' is unknown; allowed: source_filter"):
        SpeechDecoder.load(tmp_path)


def test_a_published_vocoder_opens(tmp_path: Path) -> None:
    config = SpeechT5HifiGanConfig(
        upsample_initial_channel=32, resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]]
    )
    published = SpeechT5HifiGan(config).eval()
    published.save_pretrained(tmp_path)
    mel = torch.randn(1, 20, 80)
    with torch.no_grad():
        assert torch.equal(load_vocoder(tmp_path)(mel), published(mel))


@pytest.mark.parametrize(
    ("other", "found"),
    [
        ({"upsample_rates": [4, 4, 4, 5], "upsample_kernel_sizes": [8, 8, 8, 10]}, "80, 320 and 16000"),
        (
            {
                "upsample_rates": [8, 8, 2, 2],
                "upsample_kernel_sizes": [16, 16, 4, 4],
                "sampling_rate": 22_050,
            },
            "80, 256 and 22050",
        ),
    ],
)
def test_a_vocoder_of_another_format_is_refused(tmp_path: Path, other: dict[str, Any], found: str) -> None:
    config = SpeechT5HifiGanConfig(upsample_initial_channel=32, **other)
    SpeechT5HifiGan(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"80 mel bins, 256 samples a frame and 16000 Hz.*for {found}"):
        load_vocoder(tmp_path)


def test_mel_is_that_of_speecht5() -> None:
    samples = 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(1))
    expected = SpeechT5FeatureExtractor()(audio_target=samples.numpy(), sampling_rate=16_000).input_values[0]
    mel = log_mel(samples).numpy()
    assert mel.shape == (62, 80)
    assert mel[:60] == pytest.approx(np.asarray(expected)[:60], abs=1e-4)  # the edge is padded another way


def test_foreseeable_durations_keep_the_length() -> None:
    predictor = DurationPredictor(UNITS, 1, 8, 1)
    durations = torch.randint(1, 9, (5000,), generator=torch.Generator().manual_seed(2)).float()
    logs = (durations / 1.3).log()  # what is typical is shorter
    assert predictor.calibrate(logs, durations) == pytest.approx(1, abs=0.02)
    assert torch.equal(predictor.frames(logs), durations.long())


def test_durations_by_chance_lengthen_nothing() -> None:
    predictor = DurationPredictor(UNITS, 1, 8, 1)
    random = torch.Generator().manual_seed(2)
    durations = torch.where(torch.rand(5000, generator=random) < 0.04, 3.0, 1.0)
    logs = 0.3 * torch.rand(5000, generator=random)  # tells nothing of them
    assert predictor.calibrate(logs, durations) == pytest.approx(1 / 1.08, abs=0.01)
    assert predictor.frames(logs).max() == 1
