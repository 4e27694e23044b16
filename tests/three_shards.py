"""Accepted speech in three shards, the second without English, and a tokenizer that has learnt nothing."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from cslm.audio import encode_flac
from cslm.shards import UTTERANCE, ShardWriter, read_rows
from cslm.tokenizer.speech_tokenizer import SpeechTokenizer, TokenizerConfig

ROOT = Path(__file__).parents[1]
LANGUAGES = ("en", "zh", "en", "zh", "zh", "zh", "en", "en", "en")
UTTERANCES = "work/accepted/utterances"
PARAMS: dict[str, Any] = {
    "profile": "test",
    "languages": ["en", "zh"],
    "corpora": {"made": {"format": "shards", "path": "unused"}},
    "train_tokenizer": {"steps": 1},
    "train_decoder": {"checkpoint": "unused"},
    "text_model": {"steps": 1},
    "pretrain": {"learning_rate": 0.001},
    "finetune": {"learning_rate": 0.001},
}


def make(project: Path) -> None:
    """All that stage tokenize reads; rows 0, 3 and 6 are held out, the others are training speech."""
    shutil.copy(ROOT / "dvc.yaml", project)
    set_tokenize(project)
    torch.manual_seed(1)
    config = TokenizerConfig(hidden=32, layers=1, levels=[4, 4], labels=["a", "b"])
    SpeechTokenizer(config).save(project / "work/tokenizer")
    noise = np.random.default_rng(1)
    with ShardWriter(project / UTTERANCES, UTTERANCE, rows_per_shard=3) as shards:
        for number, language in enumerate(LANGUAGES):
            samples = noise.normal(0, 0.1, 8000 + 1600 * number).astype(np.float32)
            row = {"id": f"u{number}", "audio": encode_flac(samples), "duration_s": len(samples) / 16_000}
            row |= {"sample_rate": 16_000, "text": "ab", "language": language, "speaker": "s", "source": "made"}
            shards.write(row | {"split": "train" if number % 3 else "dev"})


def make_of_sample(project: Path) -> None:
    """The same with the sample's tokenizer, and 24 of its English utterances in the three shards."""
    make(project)
    shutil.rmtree(project / "work/tokenizer")
    shutil.copytree(ROOT / "models/tokenizer", project / "work/tokenizer")
    shutil.rmtree(project / UTTERANCES)
    spoken = (row for row in read_rows(ROOT / "data/sample/speech") if row["language"] == "en")
    with ShardWriter(project / UTTERANCES, UTTERANCE, rows_per_shard=8) as shards:
        for row in islice(spoken, 24):
            shards.write(row)


def set_tokenize(project: Path, **section: Any) -> None:
    """Write params.yaml with these keys under `tokenize`."""
    section = {"batch_seconds": 2.0, "speeds": [0.9], **section}
    (project / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "tokenize": section}), "utf-8")


def damage(shard: Path) -> None:
    """Cut the second utterance of a shard short."""
    rows = pq.read_table(shard).to_pylist()
    rows[1]["audio"] = rows[1]["audio"][:1000]
    pq.write_table(pa.Table.from_pylist(rows, UTTERANCE), shard)


def files(folder: Path) -> dict[str, bytes]:
    """What is in a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
