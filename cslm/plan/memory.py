"""Memory that one rank of `cslm.training` needs at most, in bytes.

What a parameter costs is the table of ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 3) with what
DeepSpeed 0.19 adds to it. What a token costs are the tensors that autograd keeps of transformers' Llama
(counted as Korthikanti et al. 2022 do, arXiv 2205.05198). In 32 bits on one rank it is tested against measured
memory (tests/cslm/test_plan.py); nothing has been measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import LlamaConfig

STAGES = (0, 1, 2, 3)
BUCKET, LIVE = 5e8, 1e9
"""Elements that DeepSpeed has at once by default: gradients to be reduced; weights of ZeRO 3 made whole."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, by what they hold."""

    weights: float
    optimizer: float
    """AdamW's two moments, and the weights in 32 bits where the model's own are shorter or shared."""
    gradients: float
    activations: float
    """What forward keeps."""
    logits: float
    layer: float
    """The layer that backward is in: what is made again of it, and gradients of its activations."""
    buffers: float
    summed: float
    """Gradients of the micro batches before, while the next one is worked on."""

    @property
    def peak(self) -> float:
        """At the worst moment: logits are gone when backward comes to the layers, where it frees activations
        while it makes gradients; so of each the greater counts."""
        work = max(self.gradients, self.summed + self.activations + max(self.logits, self.layer))
        return self.weights + self.optimizer + self.buffers + work


def memory(
    config: LlamaConfig,
    parameters: int,
    *,
    tokens: int,
    labelled: int,
    ranks: int = 1,
    stage: int = 0,
    half: bool = True,
    checkpointing: bool = False,
    micro_batches: int = 1,
) -> Memory:
    """The memory of one of `ranks` ranks that share what ZeRO `stage` says.

    Args:
        tokens: of one rank in one micro batch.
        labelled: those of them that have a loss; only these get logits.
        half: weights and activations in bfloat16 (GPUs), else all in 32 bits.
        micro_batches: of one rank in a step.
        checkpointing: keep only the input of each layer, and make the rest of one layer at a time again.
    """
    width = 2 if half else 4
    mine = parameters / ranks
    owned = mine if stage else parameters  # by the optimizer of this rank
    copies = half or stage > 0  # it works on copies in 32 bits
    kept = width * (mine if stage >= 2 else parameters)  # gradients of this rank
    bucket = width * min(parameters, BUCKET)  # gradients on their way to the other ranks
    layer = tokens * layer_bytes(config, half)
    inputs = tokens * width * config.hidden_size * config.num_hidden_layers
    flowing = (
        tokens * width * (config.hidden_size + 2 * config.intermediate_size)
    )  # of the residual, gate and up
    return Memory(
        weights=width * (mine if stage == 3 else parameters),
        optimizer=owned * (12 if copies else 8),
        gradients=kept + max(4 * owned if copies else 0, 0 if stage or ranks == 1 else bucket),
        activations=inputs if checkpointing else layer * config.num_hidden_layers,
        logits=12.0 * labelled * config.vocab_size,  # log-softmax, its gradient, and that of the logits
        layer=flowing + (layer if checkpointing else 0),
        buffers=(bucket if stage else 0) + (width * min(parameters, LIVE) if stage == 3 else 0),
        summed=kept if micro_batches > 1 else 0.0,
    )


def layer_bytes(config: LlamaConfig, half: bool) -> float:
    """What one layer keeps of one token for its backward pass, attention being a kernel without scores."""
    width = 2 if half else 4
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    assert config.head_dim and groups
    queries, keys = heads * config.head_dim, groups * config.head_dim
    norm = config.hidden_size * (4 + 2 * width)  # its input in 32 bits, the normalised, the result
    attention = (
        width * (2 * queries + 2 * keys) + 4 * heads
    )  # query, key, value, what is attended, sums of scores
    if not half:
        attention += (
            width * queries
        )  # documents one at a time (cslm.training.processor) are laid together again
    feed_forward = width * 4 * config.intermediate_size  # gate, its SiLU, up, their product
    return 2 * norm + attention + feed_forward
