"""What is planned and on what, each figure with its source.

How it is trained stands in params.yaml and profiles/*.yaml, and is read from there (`Profile.phases`). What
they do not know, the model's shape and how much data there is, stands here. A figure marked (s) comes from a
third party's summary of the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from transformers import LlamaConfig

from cslm.plan.recipe import Recipe, recipe
from cslm.vocabulary import MARKERS

PAPER = "paper (arXiv 2604.11096)"
RUN = "`make demo` of 2026-12-01 (README), two cores"


@dataclass(frozen=True)
class Phase(Recipe):
    """One training of the language model, and how much it reads."""

    name: str
    tokens: float
    """Of one epoch, padding included."""


@dataclass(frozen=True)
class Profile:
    """A model and what it learns from."""

    name: str
    """Of profiles/NAME.yaml."""
    text_model: LlamaConfig
    """Before units and markers are added to its vocabulary."""
    units: int
    """Codes of the speech tokenizer; 0 if the vocabulary has them."""
    hours: float
    """Speech that has to be tokenised."""
    tokens: Mapping[str, float]
    """Of each phase in one epoch, padding included."""
    sources: tuple[str, ...]

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The trainings, as the profile says.

        Raises:
            ValueError: its file cannot be read.
        """
        return tuple(
            Phase(**vars(recipe(self.name, phase)), name=phase, tokens=tokens)
            for phase, tokens in self.tokens.items()
        )

    @property
    def config(self) -> LlamaConfig:
        """The model that is trained: vocabulary extended as `cslm.vocabulary.extend` does."""
        values = self.text_model.to_dict()
        if self.units:
            values["vocab_size"] += self.units + len(MARKERS)
        return LlamaConfig(**values)


@dataclass(frozen=True)
class Device:
    """One GPU, or a processor as a rank's share of arithmetic."""

    memory_gb: float
    peak_flops: float
    """Dense bfloat16 products, operations a second."""
    utilisation: float
    """Share of `peak_flops` that a training reaches."""
    usd_per_hour: float
    half: bool
    """Whether weights and activations are in bfloat16."""
    source: str


LLAMA_8B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=False,
)
SMOLLM2 = LlamaConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    tie_word_embeddings=True,
)
SAMPLE = LlamaConfig(
    vocab_size=3790,
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=6,
    head_dim=32,
    tie_word_embeddings=True,
)

SPOKEN = 28.0
"""Tokens of a second of speech with its text: 25 units, of which merging leaves fewer, and 3 of text."""

_PROFILES = (
    Profile(
        "llama3.1-8b",
        LLAMA_8B,
        units=4096,
        hours=77_000,
        tokens={
            "pretrain": 6.1e9 * (0.5 + 0.5) + 0.6e9 + 1.9e9,
            "finetune": 500_000 * 700 + 1.9e9 * 0.05,
        },
        sources=(
            "model: config.json of meta-llama/Llama-3.1-8B-Instruct, and 4,096 units of CosyVoice's tokenizer",
            f"pretrain: {PAPER}: 77 k h of speech (s), 6.1 B tokens of speech with text, 0.6 B of translation "
            "(s), 1.9 B of text (s). Half of the utterances are written and half read aloud, as "
            "`compose` of the profile has it: 6.1 B tokens in 77 k h are 22 a second, one pass",
            f"finetune: {PAPER}: 200 k dialogues, their translation, 100 k across languages (s). 700 tokens a "
            "dialogue is a guess: half a minute of speech, with its text. Beside them a twentieth of the "
            "written text, as the profile has it",
            "(s): a figure from a third party's summary of the paper",
        ),
    ),
    Profile(
        "smollm2-135m",
        SMOLLM2,
        units=512,
        hours=982 + 178,
        tokens={"pretrain": (961 + 151) * 3600 * SPOKEN * 8, "finetune": (961 + 151) * 3600 * SPOKEN * 2},
        sources=(
            "model: SmolLM2-135M-Instruct.Q4_1.gguf (models.yaml), and 512 units of a tokenizer trained here",
            "hours: LibriSpeech (982, of which 961 train; openslr.org/12) and AISHELL-1 (178, of which 151 "
            "train; openslr.org/33)",
            f"tokens: {SPOKEN:.0f} a second of speech, an upper limit, in as many passes as `compose` of the "
            "profile makes (8 and 2); the sample corpus is small beside them",
        ),
    ),
    Profile(
        "sample",
        SAMPLE,
        units=0,
        hours=3.05,
        tokens={"pretrain": 828_416, "finetune": 3_388_416},
        sources=(f"model: models/cslm; hours, tokens: {RUN}",),
    ),
)
PROFILES = {profile.name: profile for profile in _PROFILES}

MFU = "utilisation 35 %: Llama 3 reports 38 to 43 % (arXiv 2407.21783, table 4), with more tuning than here"
PRICE = "RunPod's secure cloud in spring 2026; --price takes yours"

DEVICES = {
    "h100": Device(80, 989e12, 0.35, 2.69, True, f"NVIDIA H100 SXM data sheet; {MFU}; {PRICE}"),
    "h200": Device(141, 989e12, 0.35, 3.59, True, f"NVIDIA H200 SXM data sheet; {MFU}; {PRICE}"),
    "a100-80gb": Device(80, 312e12, 0.35, 1.39, True, f"NVIDIA A100 SXM data sheet; {MFU}; {PRICE}"),
    "l40s": Device(48, 362e12, 0.35, 0.79, True, f"NVIDIA L40S data sheet; {MFU}; {PRICE}"),
    "2-cores": Device(
        8,
        2.0e12,
        0.085,
        0.0,
        False,
        f"peak (AVX512-BF16) and utilisation measured: {RUN}; 8 GB: `meta` in dvc.yaml. All in 32 bits is an "
        "upper limit of its memory; it has no price",
    ),
}
