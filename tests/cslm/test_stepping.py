"""Token by token gives what one pass over the whole text gives, for every shape of Llama."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3Config

from cslm.stepping import LlamaSteps, begin

SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}


@pytest.mark.parametrize(
    ("config", "stepped"),
    [
        (LlamaConfig(**SHAPE, num_key_value_heads=4), True),
        (LlamaConfig(**SHAPE, num_key_value_heads=2, tie_word_embeddings=True, attention_bias=True), True),
        (LlamaConfig(**SHAPE, num_key_value_heads=1, mlp_bias=True, rope_parameters=LLAMA3), True),
        (LlamaConfig(**SHAPE, num_key_value_heads=4, rope_parameters=DYNAMIC), False),
        (Qwen3Config(**SHAPE, num_key_value_heads=2), False),
    ],
    ids=["Llama", "groups, tied, biases", "Llama 3.1", "Llama, dynamic", "Qwen 3"],
)
def test_steps_equal_one_pass(config: PreTrainedConfig, stepped: bool) -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # norms of one and biases of nothing would hide a mistake
        torch.nn.init.normal_(parameter, std=0.3)
    text = torch.randint(50, (40,)).tolist()
    with torch.inference_mode():
        expected = model(torch.tensor([text]), use_cache=False).logits[0]
        scores, step = begin(model, text[:9], room=31)
        assert isinstance(step, LlamaSteps) == stepped
        assert scores[0].tolist() == pytest.approx(expected[8].tolist(), abs=1e-4)
        for place in range(9, 40):
            assert step(text[place])[0].tolist() == pytest.approx(expected[place].tolist(), abs=1e-4)


def test_half_precision_stays_close(tiny: tuple[Any, Any]) -> None:
    import copy

    model = copy.deepcopy(tiny[0]).to(torch.bfloat16)
    with torch.inference_mode():
        expected = model(torch.tensor([[5, 6, 7, 8]]), use_cache=False).logits[0, -1].float()
        _, step = begin(model, [5, 6, 7], room=1)
        assert step(8)[0].float().tolist() == pytest.approx(expected.tolist(), abs=0.02)
