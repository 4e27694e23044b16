"""What tests of the library share."""

from __future__ import annotations

import copy
import dataclasses

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cslm.packing import PackedRows, pack
from cslm.sequences import SequenceBuilder
from tests import tiny as tiny_model


@pytest.fixture(scope="session")
def tiny() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A two-layer Llama with 16 units."""
    return tiny_model.make()


@pytest.fixture(scope="session")
def rows(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], tmp_path_factory: pytest.TempPathFactory
) -> PackedRows:
    """Packed rows of two tasks."""
    builder = SequenceBuilder(tiny[1])
    folder = tmp_path_factory.mktemp("rows")
    sequences = [builder.asr([n % 16, (n + 3) % 16], "What is", "en") for n in range(60)]
    sequences += [builder.tts("法国", [n % 16, 5], "zh") for n in range(60)]
    pack(iter(sequences), folder, 128, builder.end_id, seed=1)
    return PackedRows(folder)


@pytest.fixture(scope="session")
def few(rows: PackedRows) -> PackedRows:
    """18 of them: two are left over from the four steps of an epoch."""
    taken = copy.copy(rows)
    taken.manifest = dataclasses.replace(rows.manifest, rows=18)
    return taken
