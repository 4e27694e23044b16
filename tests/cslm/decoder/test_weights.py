"""Weights in 8 bits are near what they were, and saved again stay what they are."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from cslm.decoder.weights import load_weights, save_weights


@given(st.integers(0, 2**32), st.sampled_from([(3, 4), (5, 1, 7), (2, 3, 4)]), st.floats(1e-3, 1e3))
def test_a_row_is_wrong_by_half_a_step_at_most(
    tmp_path_factory,  # type: ignore[no-untyped-def]
    seed: int,
    shape: tuple[int, ...],
    size: float,
) -> None:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    weight = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    weight[0] = 0
    weight[1] *= 100
    save_weights({"w": weight, "bias": torch.tensor([0.5, -2.0])}, path)
    read = load_weights(path)
    rows, error = weight.flatten(1), (read["w"] - weight).flatten(1)
    assert (error.abs().amax(1) <= 0.502 / 127 * rows.abs().amax(1) + rows.abs().amax(1) / 1000).all()
    assert (read["w"][0] == 0).all()
    assert read["bias"].tolist() == [0.5, -2.0], "what is no matrix has 16 bits"
    again = path.with_name("again.safetensors")
    save_weights(read, again)
    assert again.read_bytes() == path.read_bytes()


def test_files_in_16_bits_are_read_too(tmp_path: Path) -> None:
    save_file({"w": torch.tensor([[0.5, 1.5]]).half()}, tmp_path / "w.safetensors")
    assert load_weights(tmp_path / "w.safetensors")["w"].tolist() == [[0.5, 1.5]]
