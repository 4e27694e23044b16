"""Every parameter of a run: `params.yaml`, parsed and checked before any work starts.

Run:  python -m components.settings params.yaml      (prints nothing if all is well)

An unknown key, a wrong type or an impossible value gives one error that names the key, the value and
what is allowed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, HttpUrl, ValidationError, model_validator

T = TypeVar("T")


def _different(items: list[T]) -> list[T]:
    if len(set(items)) < len(items):
        raise ValueError("each only once, please")
    return items


def _changed(speed: float) -> float:
    if speed == 1:
        raise ValueError("the speed of the recording, 1, is always there; list others")
    return speed


def _rising(limits: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= limits[0] < limits[1]:
        raise ValueError("give the lower limit first, then the upper one, both at least 0")
    return limits


def _endpoint(url: str) -> str:
    try:
        return str(HttpUrl(url))
    except ValidationError as error:
        raise ValueError(
            f"{error.errors()[0]['msg']}; give one like https://host/v1, http://host:8000/v1"
        ) from None


def _store(uri: str) -> str:
    if not re.fullmatch(r"(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]|file://)(/[^/?#%]+)+", uri):
        raise ValueError("give s3://bucket/folder, or file:///folder of a volume that all machines share")
    return uri


Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
Steps = Annotated[int, Field(ge=0)]
Range = Annotated[tuple[float, float], AfterValidator(_rising)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Speed = Annotated[float, Field(ge=0.5, le=2), AfterValidator(_changed)]
Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]
Store = Annotated[str, AfterValidator(_store)]
Split = Literal["train", "dev", "test", "heldout_voice"]


class BadSettings(ValueError):
    """params.yaml is not usable; the message names every bad key."""


class Section(BaseModel):
    """A part of params.yaml: unknown keys are errors, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Corpus(Section):
    format: Literal[
        "shards",
        "tsv",
        "librispeech",
        "libritts",
        "mls",
        "vctk",
        "aishell",
        "aishell2",
        "aishell3",
        "common_voice",
        "lhotse",
        "huggingface",
        "written",
    ]
    """How the corpus lies on disk; docs/corpora.md draws each layout."""
    path: str
    """Folder of the corpus, relative to the project."""
    language: Language | None = None
    """Language of all rows; needed by every format that does not say it itself."""
    source: str | None = None
    """Name of the corpus in each row (the corpus' key by default)."""
    split: Split = "train"
    """Split of the rows where the format has none of its own."""
    splits: Annotated[list[Split], Field(min_length=1), AfterValidator(_different)] | None = None
    """Take only rows of these splits: [train] leaves a corpus' own dev and test out of the evaluation. The log
    and the metrics count the others. null: all."""
    limit: Count | None = None
    """Take only so many utterances of each split (for a quick look)."""
    license: str | None = None
    """What may be done with the corpus; it stands on the model card."""


class Validate(Section):
    min_duration_s: Positive = 0.3
    max_duration_s: Positive = 30.0
    """Longer speech is quarantined: the speech tokenizer's limit."""
    max_clipped: Fraction = 0.01
    """Allowed share of samples at full scale."""
    min_level_db: float = -50.0
    """Root-mean-square level below which an utterance counts as silent (dB of full scale)."""
    characters_per_second: dict[Language, Range] = {}
    """Plausible speech rate of each language: letters (or Chinese characters) a second."""
    max_quarantined: Fraction = 0.02
    """The run stops if a larger share of any table is refused."""
    shared_speakers: Literal["allow", "refuse"] = "allow"
    """Training rows by a speaker of dev or test; those by a speaker of heldout_voice are always refused."""
    max_drift: Fraction = 0.25
    """Largest Kolmogorov-Smirnov distance of durations and speech rates to the last accepted version."""

    @model_validator(mode="after")
    def _durations_rise(self) -> Validate:
        if self.min_duration_s >= self.max_duration_s:
            raise ValueError("min_duration_s must be less than max_duration_s")
        return self


class TrainTokenizer(Section):
    checkpoint: str | None = None
    """Folder of a trained tokenizer to continue from, or of CosyVoice's; null starts from random weights."""
    steps: Steps = 0
    """Optimiser steps; 0 takes the checkpoint as it is and only measures it. Beside CosyVoice's, what reads its
    units is trained."""
    units_stay: bool = False
    """Train only what is behind the quantiser, with labels for all sounds of the corpora: units stay what they
    are, so a language is added to a model that knows them."""
    noise_steps: Steps = 0
    """Then so many steps in which speech in rooms, by other microphones and in noise gets the units that it has
    without."""
    learning_rate: Positive = 1.2e-3
    batch_seconds: Positive = 80.0
    """Speech in one batch, padding included."""
    hidden: Annotated[int, Field(gt=0, multiple_of=8)] = 192
    """Width; four attention heads share it, each an even part."""
    layers: Count = 4
    """Transformer layers before the quantiser; behind it are two small convolutions."""
    levels: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)] = [8, 8, 8]
    """Steps of each dimension of the finite scalar quantiser; their product is the number of units."""
    quantize_after: Steps = 200
    """Steps without quantisation at the start: with it from step 0 the codes collapse."""
    continuity: Annotated[float, Field(ge=0)] = 0.06
    """Weight of the change from frame to frame at the end of the training, rising from none at its start: more
    merges more frames into a unit (0.1 from the start freezes the units)."""
    evenness: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the entropy of unit use: without it most units stay unused."""

    @model_validator(mode="after")
    def _trained_somehow(self) -> TrainTokenizer:
        if self.checkpoint is None and self.steps == 0:
            raise ValueError("give a checkpoint, or steps > 0 to train one from random weights")
        if self.checkpoint is None and self.units_stay:
            raise ValueError("units_stay keeps the units of a checkpoint: name one")
        if self.units_stay and self.noise_steps:
            raise ValueError("noise_steps change what makes units, and units_stay keeps it: give one of them")
        return self


class Tokenize(Section):
    engine: Literal["local", "ray"] = "local"
    """What encodes the shards of a corpus: one process, or workers of Ray (a cluster's, if RAY_ADDRESS names
    one). Units are the same, so it is no parameter of the stage in dvc.yaml."""
    batch_seconds: Positive = 120.0
    """Speech in one batch, padding included."""
    provider: Literal["tensorrt", "cuda", "cpu"] | None = None
    """What runs CosyVoice's tokenizer, of what its onnxruntime has (docs/base-models.md). null: cuda if the
    stage was given a GPU, else the best of cuda and cpu that starts. No parameter of the stage either."""
    speeds: Annotated[list[Speed], AfterValidator(_different)] = []
    """Speeds at which training speech is heard once more (0.9: slower, lower): as more voices would, it shows
    the language model how units vary (Ko et al. 2015)."""


class Align(Section):
    words_per_chunk: Count = 7
    """Words in a chunk of the interleaved chain (paper, section 3.3: about 7)."""


class TextModel(Section):
    checkpoint: str | None = None
    """Folder of a Llama-family model and tokenizer, as a hub has it (safetensors, or one GGUF file); null
    trains a small one on the corpus' own text."""
    steps: Steps = 0
    learning_rate: Positive = 1.5e-3
    batch_tokens: Count = 4096
    question_noise: Annotated[float, Field(ge=0, le=0.5)] = 0.15
    """As in `compose`."""
    optimizer: Literal["adamw", "muon"] = "muon"
    """As in `finetune`."""
    vocabulary: Count = 8000
    """Most tokens that the text tokenizer may have: words, Chinese characters, and what they are made of."""
    hidden: Count = 192
    layers: Count = 6
    heads: Count = 6

    @model_validator(mode="after")
    def _divisible(self) -> TextModel:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of twice the heads ({self.heads})")
        return self

    @model_validator(mode="after")
    def _trained_somehow(self) -> TextModel:
        if self.checkpoint is None and self.steps == 0:
            raise ValueError("give a checkpoint, or steps > 0 to train one from random weights")
        return self


class Backbone(Section):
    checkpoint: str | None = None
    """Folder of a CSLM checkpoint to continue from; null extends the text model by units and markers."""
    new_words: Steps = 0
    """Most words of the corpora's text that get a token each where the checkpoint's tokenizer spells them: so a
    language is added."""


class Mixture(Section):
    @model_validator(mode="after")
    def _something(self) -> Mixture:
        if not any(self.model_dump().values()):
            raise ValueError("at least one weight must be more than 0")
        return self


class PretrainMixture(Mixture):
    asr: Annotated[float, Field(ge=0)] = 1.0
    tts: Annotated[float, Field(ge=0)] = 1.0
    mt: Annotated[float, Field(ge=0)] = 0.5
    text: Annotated[float, Field(ge=0)] = 0.5
    repeat: Annotated[float, Field(ge=0)] = 0.0
    """Words in random order, to be written again, as many as `text` has: to copy is easily forgotten."""


class FinetuneMixture(Mixture):
    interleaved: Annotated[float, Field(ge=0)] = 1.0
    cross_lingual: Annotated[float, Field(ge=0)] = 1.0
    full_chain: Annotated[float, Field(ge=0)] = 0.25
    text: Annotated[float, Field(ge=0)] = 0.25
    mt: Annotated[float, Field(ge=0)] = 0.0
    asr: Annotated[float, Field(ge=0)] = 0.0
    tts: Annotated[float, Field(ge=0)] = 0.0
    repeat: Annotated[float, Field(ge=0)] = 0.0
    """Replay of phase 1, as `mt`, `asr` and `tts` are: without it they are forgotten (benchmarks/log.md)."""


class Compose(Section):
    length: Annotated[int, Field(ge=32)] = 512
    """Tokens of one packed row; longer sequences are left out and listed."""
    finetune_length: Annotated[int, Field(ge=32)] | None = None
    """The same for phase 2, where it is another one (paper: 1,024 and 4,096)."""
    store: Store | None = None
    """Where packed rows are brought, and trainings read them from one by one (docs/operators.md): a folder of
    an object store, or of a volume that all machines share. null: they are files of the stage's output."""
    answer_noise: Fraction = 0.0
    """Share of the units of an answer's speech that the model sees as other ones, and of the stretches that are
    another answer's (without loss), anew in each pass: text has to stay right behind poor speech of its own."""
    misheard: Fraction = 0.0
    """Share of the dialogues in which another question is heard than the one that is then written and answered
    (without loss on its text): the answer has to follow the text. Above 0, questions that nobody spoke are
    used in this way too."""
    unit_dropout: Fraction = 0.0
    """Share of the units in the user's speech that is left out at random, anew in each pass over an item."""
    question_noise: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the words of a question, written or spoken, that is left out, anew in each pass; twice as often
    the question begins with words of another one. So the model learns which words matter (cslm/noise.py)."""
    splice: Fraction = 0.0
    """Share of the words in the user's speech, and in what is read aloud, that come from another recording of
    the same voice, anew in each pass: any other word, but the same word where the task is to answer."""
    excerpt: Fraction = 0.0
    """Share of the items to transcribe or to read aloud that are a few words in a row, anew in each pass."""
    listening: bool = False
    """Learn also, in the middle of the network, which token of text each unit of the user's speech speaks, from
    the alignment, and the same token where the user writes it (the paper: no)."""
    earlier_turns: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the questions of phase 2 that come behind earlier turns (as many as fit into `length`), so that
    the model answers the last one."""
    pretrain: PretrainMixture = PretrainMixture()
    """Passes over each task's items in one epoch of phase 1 (0.5 takes a random half)."""
    finetune: FinetuneMixture = FinetuneMixture()


class Training(Section):
    learning_rate: Positive
    epochs: Positive = 1.0
    max_steps: Count | None = None
    """Stop after so many optimiser steps, whatever `epochs` says."""
    batch_tokens: Count = 4096
    """Tokens of one optimiser step, over all ranks."""
    micro_batch_tokens: Count | None = None
    """Most tokens that a rank works on at once; gradients are summed until its part of a step is done. Fewer
    need less memory and give the same losses. null: all of its part at once."""
    ranks: Count = 1
    """Processes that train together, as many on each node; with GPUs, one each."""
    half_precision: bool = True
    """Matrix products in bfloat16 where the hardware has it; false: all in float32, to the last bit."""
    warmup: Fraction = 0.03
    """Share of the steps in which the learning rate rises; a cosine takes it to zero afterwards."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    checkpoint_minutes: Positive = 2.0
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon for the matrices inside the network; small models learn to listen in fewer tokens."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed shares among the ranks: nothing, optimiser states (1), gradients (2), weights (3). Muon
    needs whole matrices: 0."""
    offload: Literal["optimizer", "weights"] | None = None
    """What ZeRO keeps in the machine's memory instead of a GPU's: optimiser states (zero_stage 2 or 3), or the
    weights too (3). It makes room for a larger model, and is slower."""
    gradient_checkpointing: bool = False
    """Keep less of the forward pass and make it again: less memory, a third more arithmetic."""
    attn_implementation: Literal["sdpa", "flash_attention_2", "flash_attention_3"] = "sdpa"
    """Attention on GPUs, as transformers names it. `sdpa` makes a mask over all tokens of a micro batch; flash
    attention keeps nothing like it, and needs its package. Processors have a kernel of their own."""
    speech_loss: Annotated[float, Field(ge=0)] = 1.0
    """Weight of a speech unit in the loss, where a text token has 1 (the paper: 1)."""

    @model_validator(mode="after")
    def _work_together(self) -> Training:
        if self.optimizer == "muon" and self.zero_stage:
            raise ValueError(f"optimizer muon works with zero_stage 0 only, not {self.zero_stage}")
        if self.offload and self.zero_stage < (3 if self.offload == "weights" else 2):
            needed = "zero_stage 3" if self.offload == "weights" else "zero_stage 2 or 3"
            raise ValueError(f"offload {self.offload} needs {needed}, not {self.zero_stage}")
        if self.attn_implementation != "sdpa" and not self.half_precision:
            raise ValueError(f"attn_implementation {self.attn_implementation} needs half_precision")
        if self.zero_stage == 3 and self.ranks == 1:
            raise ValueError("zero_stage 3 shares the weights among ranks: it needs 2 or more of them")
        return self


class TrainDecoder(Section):
    checkpoint: str | None = None
    """Folder of a trained decoder to take or to continue from; null starts from random weights."""
    new_voices: bool = False
    """Give the checkpoint the voices of the corpora that it lacks; without, their speech is left out."""
    steps: Steps = 0
    """Steps of the flow (units -> pitch and mel), and so whether durations are trained too."""
    learning_rate: Positive = 2.0e-3
    batch_seconds: Positive = 40.0
    """Speech in one step of the flow."""
    duration_steps: Count = 400
    width: Count = 256
    encoder_layers: Count = 4
    layers: Count = 8
    vocoder: Literal["source_filter", "hifigan"] = "source_filter"
    """What is trained from random weights; a checkpoint may hold either (docs/base-models.md)."""
    vocoder_steps: Steps = 0
    vocoder_learning_rate: Positive = 5.0e-4
    vocoder_batch_seconds: Positive = 12.0
    """Speech in one step of the vocoder."""
    vocoder_width: Count = 160
    """Of the source-filter vocoder, or first channels of HiFi-GAN (a multiple of 16; 512 is V1, 128 is V2)."""
    vocoder_layers: Count = 5
    """Of the source-filter vocoder."""
    spectral_share: Fraction = 0.5
    """Share of the vocoder's steps, at the start, that learn from spectra alone, without discriminators."""
    segment_frames: Count = 25
    """Length in unit frames (40 ms) of the stretches that the vocoder learns from."""
    discriminator_channels: Annotated[int, Field(gt=0, multiple_of=4)] = 16

    @model_validator(mode="after")
    def _trained_somehow(self) -> TrainDecoder:
        if self.checkpoint is None and not (self.steps and self.vocoder_steps):
            raise ValueError(
                "give a checkpoint, or steps and vocoder_steps > 0 to train one from random weights"
            )
        if self.new_voices and not self.steps:
            raise ValueError("new_voices have to be learnt: give steps > 0")
        return self


class LlmJudge(Section):
    url: Annotated[str, AfterValidator(_endpoint)]
    """Of an OpenAI-compatible endpoint, up to and with its version (https://host/v1)."""
    model: str
    answers: Count = 50
    """Answers of each pair of languages that are marked."""


class Evaluate(Section):
    seed: Annotated[int, Field(ge=0)] = 1
    """Chooses items where not all are taken, and resamples for intervals. It is not that of training, so that
    versions that were trained with different ones are measured on the same items."""
    batch_size: Count = 64
    limit: Count | None = None
    """Evaluate only so many items of each kind (for a quick look; the report says so)."""
    latency_questions: Count = 30
    later_questions: Count = 60
    """Test questions that are asked once more, as the second of a talk."""
    chain: Literal["interleaved", "full"] = "interleaved"
    """Order of text and speech that answers are asked for in: all of the text first, for a model that learnt
    `full_chain` alone."""
    read_texts: Count = 60
    """Test utterances of each language whose text the model reads aloud, for the label error of its units."""
    judged_recordings: Count = 20
    """Of these, so many are heard by the judges of speech, beside their recordings and those spoken again."""
    judged_answers: Count = 10
    """Spoken answers of each pair of languages that the judges hear."""
    llm_judge: LlmJudge | None = None
    """A language model that marks the text of answers; its key is in CSLM_JUDGE_API_KEY."""


class Register(Section):
    model: Name = "cslm"


class Settings(Section):
    """The whole of params.yaml."""

    profile: Name
    seed: Annotated[int, Field(ge=0)] = 1
    languages: Annotated[list[Language], Field(min_length=1), AfterValidator(_different)]
    corpora: Annotated[dict[Name, Corpus], Field(min_length=1)]
    validate_: Validate = Field(Validate(), alias="validate")
    train_tokenizer: TrainTokenizer
    tokenize: Tokenize = Tokenize()
    align: Align = Align()
    text_model: TextModel
    backbone: Backbone = Backbone()
    compose: Compose = Compose()
    pretrain: Training
    finetune: Training
    train_decoder: TrainDecoder
    evaluate: Evaluate = Evaluate()
    register_: Register = Field(Register(), alias="register")

    @model_validator(mode="after")
    def _steps_can_be_shared(self) -> Settings:
        """As `cslm.training.sharing` has it, which knows no params.yaml: said before any stage works."""
        for name, length in (("pretrain", self.compose.length), ("finetune", self.finetune_length)):
            section: Training = getattr(self, name)
            rows = max(1, section.batch_tokens // length)
            if rows % section.ranks:
                raise ValueError(
                    f"{name}: batch_tokens {section.batch_tokens} are {rows} rows of {length}, which "
                    f"{section.ranks} ranks cannot share evenly: give other ranks, or batch_tokens of a "
                    f"multiple of {section.ranks} rows"
                )
            if section.micro_batch_tokens is not None and section.micro_batch_tokens < length:
                raise ValueError(
                    f"{name}: micro_batch_tokens {section.micro_batch_tokens} are less than one row of {length}"
                )
        return self

    @property
    def finetune_length(self) -> int:
        """Tokens of a row of phase 2."""
        return self.compose.finetune_length or self.compose.length


def load_settings(path: Path = Path("params.yaml")) -> Settings:
    """Parse params.yaml.

    Raises:
        BadSettings: no such file, not YAML, or bad keys; the message lists key, value and what is allowed.
    """
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise BadSettings(f"{path}: {error}") from error
    if not isinstance(raw, dict):
        raise BadSettings(f"{path}: a mapping of sections is needed, not {type(raw).__name__}")
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        raise BadSettings("\n".join(_describe(path, problem) for problem in error.errors())) from None


def _describe(path: Path, problem: object) -> str:
    assert isinstance(problem, dict)
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        *parents, _ = problem["loc"]
        return f"{path}: {key} is not a known key; allowed there: {', '.join(_keys(parents))}"
    if problem["type"] == "missing":
        return f"{path}: {key} is missing; it must be given"
    if not key:  # several sections do not fit each other
        return f"{path}: {problem['msg']}"
    return f"{path}: {key} = {problem['input']!r}: {problem['msg']}"


def _keys(loc: list[object]) -> list[str]:
    """Names of the keys that the section at `loc` allows."""
    section: type[BaseModel] = Settings
    for part in loc:
        for name, field in section.model_fields.items():
            if (field.alias or name) == part:
                section = _section_in(field.annotation)
    return [field.alias or name for name, field in section.model_fields.items()]


def _section_in(annotation: Any) -> type[BaseModel]:
    """The section that a field holds: one, one or none (`X | None`), or many by name (`dict[str, X]`)."""
    inner = get_args(annotation) or (annotation,)
    return next(each for each in inner if isinstance(each, type) and issubclass(each, BaseModel))


if __name__ == "__main__":
    try:
        load_settings(Path(sys.argv[1] if len(sys.argv) > 1 else "params.yaml"))
    except BadSettings as error:
        sys.exit(str(error))
