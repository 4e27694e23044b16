"""What is planned (the paper's training, the sample's) and on what, each figure with its source.

A figure marked (s) comes from a third party's summary of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import LlamaConfig

from cslm.vocabulary import MARKERS

PAPER = "paper (arXiv 2604.11096)"
RUN = "`make demo` of 2026-11-27 (README), two cores"


@dataclass(frozen=True)
class Phase:
    """One training of the language model; the names are those of params.yaml."""

    name: str
    tokens: float
    """Of one epoch, padding included."""
    rows: int
    """Rows of one step, over all ranks."""
    length: int
    epochs: float = 1.0


@dataclass(frozen=True)
class Profile:
    """A model and what it learns from."""

    text_model: LlamaConfig
    """Before units and markers are added to its vocabulary."""
    units: int
    """Codes of the speech tokenizer; 0 if the vocabulary has them."""
    hours: float
    """Speech that has to be tokenised."""
    phases: tuple[Phase, ...]
    sources: tuple[str, ...]

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

PROFILES = {
    "llama3.1-8b": Profile(
        LLAMA_8B,
        units=4096,
        hours=77_000,
        phases=(
            Phase("pretrain", tokens=6.1e9 + 0.6e9 + 1.9e9, rows=288, length=1024),
            Phase("finetune", tokens=500_000 * 700, rows=32, length=4096),
        ),
        sources=(
            "model: config.json of meta-llama/Llama-3.1-8B-Instruct, and 4,096 units of CosyVoice's tokenizer",
            f"pretrain: {PAPER}: 77 k h of speech (s), 6.1 B tokens of speech with text, 0.6 B of translation "
            "(s), 1.9 B of text (s); 288 rows of 1,024 a step",
            f"finetune: {PAPER}: 200 k dialogues, their translation, 100 k across languages (s); 32 rows of "
            "4,096 a step. 700 tokens a dialogue is a guess: half a minute of speech, with its text",
            "(s): a figure from a third party's summary of the paper",
        ),
    ),
    "sample": Profile(
        SAMPLE,
        units=0,
        hours=3.05,
        phases=(
            Phase("pretrain", tokens=829_440, rows=4, length=512),
            Phase("finetune", tokens=3_072_000, rows=4, length=512),
        ),
        sources=(f"model: models/cslm; hours, tokens: {RUN}",),
    ),
}

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
        0.08,
        0.0,
        False,
        f"peak (AVX512-BF16) and utilisation measured: {RUN}; 8 GB: `meta` in dvc.yaml. All in 32 bits is an "
        "upper limit of its memory; it has no price",
    ),
}
