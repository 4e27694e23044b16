"""Tokens, arithmetic, hours, money and storage of a plan; all of it follows from a profile and a device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cslm.plan.profiles import Device, Phase, Profile
from cslm.training.sharing import most_ranks, shares
from cslm.training.speed import flops_per_token

AGAIN = 4 / 3
"""Arithmetic with gradient checkpointing: the forward pass, a third of the whole, is made twice."""
TOKENIZED = 390.0
"""Hours of speech that become units in an hour."""
INGESTED, VALIDATED = 15_867, 4_987
"""Rows a second, of half a second of sound each."""
FLAC_BYTES = 62e6
"""An hour of 16 kHz mono."""
UNIT_BYTES = 25 * 3600 * 8.0
"""An hour of units and durations."""
ROW_BYTES = 5 * 4.0
"""A token of packed rows: `cslm.packing.PLANES`, 32 bits each."""
CHECKPOINTS = 4
ASSUMPTIONS = (
    f"tokenisation: {TOKENIZED:.0f} hours of speech in an hour. That is this repository's tokenizer on two "
    "cores (a demo of 2026-11-27); no GPU was measured, so each is taken to be no faster. One as costly as "
    "CosyVoice's makes 28 on those cores (benchmarks/speed.md), so for it a GPU 14 times as fast is assumed. "
    "All GPUs work at it at once, as with tokenize.engine ray; without it each language has one",
    "operations: 6 for each token and weight that multiplies (cslm.training.speed), and causal attention in "
    "documents as long as a row (PaLM, arXiv 2204.02311, appendix B); a third more with gradient checkpointing",
    "communication between GPUs and restarts take no time here",
    "not counted in time and money: ingest, validate, train_tokenizer, align, train_decoder, text_model, "
    "backbone, compose, evaluate and register. Measured are two of them, on one core and with half a second of "
    f"sound in a row (benchmarks/speed.md): {INGESTED:,} rows a second are ingested and {VALIDATED:,} "
    f"validated, {1e8 / INGESTED / 3600:.1f} and {1e8 / VALIDATED / 3600:.1f} h for 100 M rows. Longer "
    "sound takes longer",
    f"storage: FLAC at {FLAC_BYTES / 1e6:.0f} MB an hour (LibriSpeech), once as ingested and once as accepted; "
    "25 units a second; packed rows of 20 bytes a token; three checkpoints are kept while a fourth is written; "
    "models of 32 bits from backbone, pretrain and finetune",
)


@dataclass(frozen=True)
class Training:
    """What one phase costs."""

    gpus: int
    """At work: the most of those there are that share a step's rows evenly, as `cslm.training` demands."""
    tokens: float
    steps: int
    micro_batches: int
    """Of one GPU in a step, one after the other."""
    micro_tokens: int
    """Of one of them."""
    flops: float
    gpu_hours: float
    usd: float

    @property
    def hours(self) -> float:
        """From start to end."""
        return self.gpu_hours / self.gpus


def parameters(config: LlamaConfig) -> tuple[int, float]:
    """How many parameters the model has, and operations for a token in training but for attention's scores."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return sum(weight.numel() for weight in model.parameters()), flops_per_token(model)


def training(profile: Profile, phase: Phase, device: Device, gpus: int, again: bool) -> Training:
    """The cost of a phase; `again` with gradient checkpointing."""
    config = profile.config
    step = phase.rows * phase.length
    at_work = most_ranks(phase.rows, gpus)
    shared = shares(step, phase.length, at_work, phase.micro_batch_tokens)
    tokens = min(phase.tokens * phase.epochs, (phase.max_steps or float("inf")) * step)
    assert config.head_dim
    width = config.num_attention_heads * config.head_dim
    scores = 6.0 * config.num_hidden_layers * width * phase.length
    flops = tokens * (parameters(config)[1] + scores) * (AGAIN if again else 1)
    gpu_hours = flops / (device.peak_flops * device.utilisation) / 3600
    usd = gpu_hours * device.usd_per_hour
    return Training(
        gpus=at_work,
        tokens=tokens,
        steps=round(tokens / step),
        micro_batches=shared.micro_batches,
        micro_tokens=shared.rows * phase.length,
        flops=flops,
        gpu_hours=gpu_hours,
        usd=usd,
    )


def storage(profile: Profile, half: bool) -> dict[str, float]:
    """Bytes, by what they hold."""
    count, _ = parameters(profile.config)
    state = 2 + 4 + 8 if half else 4 + 8  # weights, 32-bit weights, AdamW
    return {
        "speech, twice": 2 * FLAC_BYTES * profile.hours,
        "units": UNIT_BYTES * profile.hours,
        "packed rows": ROW_BYTES * sum(phase.tokens for phase in profile.phases),
        "checkpoints": float(CHECKPOINTS * state * count),
        "models": 3 * 4.0 * count,
    }
