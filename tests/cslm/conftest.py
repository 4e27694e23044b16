"""What tests of the library share."""

from __future__ import annotations

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests import tiny as tiny_model


@pytest.fixture(scope="session")
def tiny() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A two-layer Llama with 16 units."""
    return tiny_model.make()
