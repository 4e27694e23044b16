"""What the stages that train the language model share: a phase from packed rows to a checkpoint."""

from __future__ import annotations

import csv
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from components.checkpoints import checkpoints_of
from components.settings import Training
from components.stage import Stage, StageFailed, home
from cslm.packing import PackedRows
from cslm.row_store import RowsLost, RowSource, StoreRefuses
from cslm.sequences import SequenceBuilder
from cslm.training import TrainingConfig, train
from cslm.training.attention import check_attention
from cslm.training.checkpoints import OtherRanks
from cslm.training.nodes import BadNodes, Nodes
from cslm.training.preemption import Preempted
from cslm.training.ranks import PREEMPTED, Job, RanksFailed, train_on_ranks
from cslm.training.steps import LossNotFinite, OutOfMemory
from cslm.training.trainer import shares_of_step

GIB = 2**30
LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Of a container: bytes, or `max`."""


def train_phase(name: str, rows: Path, start: Path, result: Path) -> None:
    """Train the checkpoint in `start` on the packed rows, into `result`; the whole of a training stage."""
    stage = Stage(name)
    section: Training = getattr(stage.settings, name)
    with checkpoints_of(stage) as checkpoints, stage:
        source = row_source(stage.settings.compose.store, checkpoints.name)
        data = PackedRows(rows, source)
        if not len(data):
            raise StageFailed(f"{rows} holds no rows: the mixture in `compose.{name}` selects nothing")
        config = training_config(section, stage.settings.seed)
        check_ranks(name, config, data, section.ranks)
        use_deepspeed_here()
        with explained(), closing(data):
            if section.ranks == 1:
                model, tokenizer = open_checkpoint(start)
                speech = SequenceBuilder(tokenizer).unit_ids
                trained = train(model, data, config, checkpoints, log_to(stage), speech)
            else:
                mine = len(Nodes.here().ranks(section.ranks))
                check_memory(start, 1 if section.zero_stage == 3 else mine)
                tokenizer = AutoTokenizer.from_pretrained(start)
                speech = SequenceBuilder(tokenizer).unit_ids
                with tempfile.TemporaryDirectory(dir=home(), prefix="scratch-") as scratch:
                    job = Job(start, rows, source, checkpoints, Path(scratch) / "model", config, list(speech))
                    model, trained = train_on_ranks(section.ranks, job, log_to(stage))
        model.generation_config.max_length = data.manifest.length  # it has learnt nothing longer
        with stage.output(result) as folder:
            save_checkpoint(model, tokenizer, folder)
        if source is not None:
            shutil.rmtree(source.kept, ignore_errors=True)
        write_log(trained.log, Path(f"metrics/plots/{name}.csv"))
        stage.log_metrics(trained.figures())


def row_source(store: str | None, training: str) -> RowSource | None:
    """The store of a training's rows, if they are in one; what others of the same stage have kept is removed.

    Args:
        training: name of its checkpoint folder, STAGE-KEY.
    """
    if store is None:
        return None
    kept = Path(os.environ.get("CSLM_ROWS") or home() / "rows") / training
    for folder in kept.parent.glob(f"{training.rpartition('-')[0]}-*"):
        if folder != kept:  # if its training still works, it reads them again
            shutil.rmtree(folder, ignore_errors=True)
    return RowSource(store, str(kept.absolute()))


@contextmanager
def explained() -> Iterator[None]:
    """Say it in one sentence if a training does not come to its end.

    Raises:
        StageFailed: a rank has failed, memory is too small, the loss is no number, the checkpoint does not fit
            the ranks, or the store of rows does not do its work.
        SystemExit: 75 (EX_TEMPFAIL), it was told to end; Airflow tries that again, and no other failure.
    """
    try:
        yield
    except Preempted as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(PREEMPTED)
    except (LossNotFinite, OtherRanks, OutOfMemory, RanksFailed, RowsLost, StoreRefuses) as error:
        raise StageFailed(str(error)) from error


def check_ranks(name: str, config: TrainingConfig, rows: PackedRows, ranks: int) -> None:
    """Can so many ranks train on these rows here, and on the nodes beside this one?

    Raises:
        StageFailed: a step's rows or the ranks cannot be shared, there are fewer GPUs here than ranks, or not
            this attention.
    """
    gpus = torch.cuda.device_count()
    try:
        mine = len(Nodes.here().ranks(ranks))
        if 0 < gpus < mine:
            raise BadNodes(f"{mine} ranks need as many GPUs, and there are {gpus}")
        shares_of_step(config, rows, ranks)
        check_attention(config.attn_implementation)
    except ValueError as error:
        raise StageFailed(f"{name}: {error}") from error


def check_memory(folder: Path, copies: int = 1) -> None:
    """Is there room to open a checkpoint in 32 bits so many times at once? Its files are not read for it.

    Raises:
        StageFailed: there is less; else the stage would be killed without a word.
    """
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            names = weights.keys()
            count += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    needed, room = copies * count * 4, memory_here()
    if needed > room:
        raise StageFailed(
            f"{folder} has {count:,} parameters: {copies} x {count * 4 / GIB:.1f} GiB in 32 bits, and there "
            f"are {room / GIB:.1f} GiB of memory: raise `memory` in `meta` of this stage (dvc.yaml), or take a "
            "larger machine"
        )


def memory_here(limit: Path = LIMIT) -> int:
    """Bytes that this process may have: what the machine has free, or fewer if its container has a limit."""
    free = int(psutil.virtual_memory().available)
    allowed = limit.read_text("utf-8").strip() if limit.exists() else ""
    return min(free, int(allowed)) if allowed.isdigit() else free


def open_checkpoint(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A Hugging Face checkpoint, or one GGUF file, in 32 bits and with its tokenizer.

    Raises:
        StageFailed: there is none, or no room for it.
    """
    if (folder / "config.json").exists():
        check_memory(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        return model, AutoTokenizer.from_pretrained(folder)
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "no config.json"
        raise StageFailed(
            f"no checkpoint in {folder}: config.json with safetensors, or one GGUF file, is needed, and there "
            f"is {found}; `make setup` pulls the models that ship, `python -m components.fetch` others"
        )
    name = files[0].name
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype="float32", quantization_config=GgufConfig(dequantize=True)
    )
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=name)


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write safetensors, configuration and tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def training_config(section: Training, seed: int) -> TrainingConfig:
    """The library's configuration from a section of params.yaml."""
    return TrainingConfig(**section.model_dump(exclude={"ranks"}), seed=seed)


def use_deepspeed_here() -> None:
    """Settings that DeepSpeed reads from the environment; its compiled parts are kept for all runs."""
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(home() / "torch_extensions"))


def log_to(stage: Stage) -> Callable[[int, dict[str, float]], None]:
    """Numbers of a training to the stage's MLflow run, as they come."""
    return lambda step, numbers: stage.log_metrics(numbers, step)


def write_log(entries: list[dict[str, float]], path: Path) -> None:
    """The log of a training as CSV, for DVC's plots; a number that an entry lacks stays empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(["step", *(name for entry in entries for name in entry)]))
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(entries)
    partial.rename(path)
