"""Sequences packed into rows of one length, without padding between them and without attention across.

    row      | doc A          | doc B     | doc C   | pad |
    position | 0 1 2 3 4 5 6 7| 0 1 2 3 4 | 0 1 2 3 | 0 1 |

Positions restart with each document, from which transformers derives a block-diagonal causal mask.
Rows are filled from windows of `WINDOW` sequences, so memory is flat; what would leave a row half empty waits
for the next window, as long sequences may come before the short ones that fill the gaps. Nothing is cut: a
sequence that is too long is left out, counted, and listed in `too_long.jsonl`.
"""

from __future__ import annotations

import bisect
import json
import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from cslm.sequences import IGNORE, Sequence

log = logging.getLogger("cslm")

WINDOW = 16_384
ROWS_PER_SHARD = 4096
FULL = 0.98
WAITING = 0.75
"""Share of a window that may wait for the next one; the rest of it is for new sequences."""
LISTENING = "listening"
"""Task of what is to be understood in the user's turn, with the language of the sequence."""
TOO_LONG = "too_long.jsonl"
PLANES = ("input_ids", "labels", "position_ids", "task", "understood")


@dataclass
class PackedManifest:
    """What a folder of packed rows holds; tasks are named `task.language` and numbered in order."""

    length: int
    rows: int = 0
    tokens: int = 0
    """Tokens that are not padding."""
    tasks: list[str] = field(default_factory=list)
    sequences: dict[str, int] = field(default_factory=dict)
    task_tokens: dict[str, int] = field(default_factory=dict)
    too_long: dict[str, int] = field(default_factory=dict)
    heaviest_row: int = 0
    """The one with the most tokens that have a loss: these get logits, which take the most memory."""

    @property
    def utilization(self) -> float:
        """Share of the rows that is not padding."""
        return self.tokens / (self.rows * self.length) if self.rows else 0.0


def pack(sequences: Iterable[Sequence], folder: Path, length: int, pad_id: int, seed: int) -> PackedManifest:
    """Write rows to `folder/rows-00000.npy` (rows, 5, length; int32) and `manifest.json`.

    What is longer than a row is in `too_long.jsonl`, one line a sequence: item, task, language, tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = PackedManifest(length)
    counts, tokens, too_long = Counter[str](), Counter[str](), Counter[str]()
    rng = random.Random(seed)

    def fitting(left_out: TextIO) -> Iterator[Sequence]:
        for sequence in sequences:
            name = f"{sequence.task}.{sequence.language}"
            if len(sequence.input_ids) > length:
                too_long[name] += 1
                entry = {"item": sequence.item, "task": sequence.task, "language": sequence.language}
                left_out.write(json.dumps(entry | {"tokens": len(sequence.input_ids)}) + "\n")
                continue
            counts[name] += 1
            tokens[name] += len(sequence.input_ids)
            listening = f"{LISTENING}.{sequence.language}"
            for task in (name, listening) if sequence.understood else (name,):
                if task not in manifest.tasks:
                    manifest.tasks.append(task)
            yield sequence

    shard: list[npt.NDArray[np.int32]] = []
    shards = most = 0

    def flush() -> None:
        nonlocal shards
        if shard:
            np.save(folder / f"rows-{shards:05d}.npy", np.stack(shard))
            shards += 1
            shard.clear()

    with (folder / TOO_LONG).open("w", encoding="utf-8") as left_out:
        stream = fitting(left_out)
        waiting: list[Sequence] = []
        while window := [*waiting, *islice(stream, WINDOW - len(waiting))]:
            sizes = [len(sequence.input_ids) for sequence in window]
            rows = fill_rows(sizes, length, rng.randrange(2**32))
            waiting = []
            if len(window) == WINDOW:  # more may come
                rows, later = _set_aside(rows, sizes, length)
                waiting = [window[i] for i in later]
            rng.shuffle(rows)
            for row in rows:
                packed = _row([window[i] for i in row], length, pad_id, manifest.tasks)
                losses = int((packed[[1, 4]] != IGNORE).sum())  # labels, and what is understood
                if losses > most:
                    most, manifest.heaviest_row = losses, manifest.rows
                shard.append(packed)
                manifest.rows += 1
                if len(shard) == ROWS_PER_SHARD:
                    flush()
    flush()
    manifest.tokens = sum(tokens.values())
    manifest.sequences, manifest.task_tokens = dict(counts), dict(tokens)
    manifest.too_long = dict(too_long)
    for name, count in too_long.items():
        log.warning(
            "%d sequences of %s are longer than %d: left out (%s lists them)", count, name, length, TOO_LONG
        )
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1) + "\n", "utf-8")
    return manifest


def fill_rows(lengths: SequenceOf[int], capacity: int, seed: int) -> list[list[int]]:
    """Groups of indices whose lengths sum to at most `capacity`, nearly all of them exactly.

    A row begins with the longest sequence left, takes random ones while there is room for many, and ends
    with the one or two that fill it best.
    """
    rng = random.Random(seed)
    pool: dict[int, list[int]] = {}
    for index in rng.sample(range(len(lengths)), len(lengths)):
        pool.setdefault(lengths[index], []).append(index)
    sizes = sorted(pool)
    many = 3 * sum(lengths) / max(1, len(lengths))

    def take(size: int) -> int:
        index = pool[size].pop()
        if not pool[size]:
            sizes.remove(size)
        return index

    rows: list[list[int]] = []
    while sizes:
        free = capacity - sizes[-1]
        row = [take(sizes[-1])]
        while sizes and sizes[0] <= free:
            fitting = sizes[: bisect.bisect_right(sizes, free)]
            ending = [rng.choice(fitting)] if free > many else _best_ending(fitting, pool, free)
            row += [take(size) for size in ending]
            free -= sum(ending)
        rows.append(row)
    return rows


def _set_aside(
    rows: list[list[int]], sizes: SequenceOf[int], capacity: int
) -> tuple[list[list[int]], list[int]]:
    """The rows that are full, and the sequences of the others: those of the emptiest rows first."""
    full: list[list[int]] = []
    later: list[int] = []
    for row in sorted(rows, key=lambda row: sum(sizes[i] for i in row)):
        if sum(sizes[i] for i in row) >= FULL * capacity or len(later) + len(row) > WAITING * WINDOW:
            full.append(row)
        else:
            later += row
    return full, later


def _best_ending(sizes: SequenceOf[int], pool: Mapping[int, SequenceOf[int]], free: int) -> list[int]:
    """The one or two of the ascending `sizes` whose sum comes closest to `free` from below."""
    best = [sizes[-1]]
    low, high = 0, len(sizes) - 1
    while low <= high:
        pair = [sizes[low], sizes[high]]
        if sum(pair) > free or (low == high and len(pool[sizes[low]]) < 2):
            high -= 1
        else:
            best = max(best, pair, key=sum)
            low += 1
    return best


def _row(sequences: list[Sequence], length: int, pad_id: int, tasks: list[str]) -> npt.NDArray[np.int32]:
    row = np.zeros((len(PLANES), length), np.int32)
    row[0], row[1], row[4] = pad_id, IGNORE, IGNORE
    end = 0
    for sequence in sequences:
        first, end = end, end + len(sequence.input_ids)
        row[0, first:end] = sequence.input_ids
        row[1, first + 1 : end] = sequence.labels[1:]  # nothing precedes the first token
        row[2, first:end] = np.arange(end - first)
        row[3, first:end] = tasks.index(f"{sequence.task}.{sequence.language}")
        for position, token in sequence.understood.items():
            row[4, first + position] = token
    row[2, end:] = np.arange(length - end)
    return row


class PackedRows(Dataset[dict[str, Any]]):
    """The rows of a folder that `pack` wrote, mapped into memory: `{plane: (length,) int64}` each.

    Raises:
        FileNotFoundError: no manifest there.
    """

    def __init__(self, folder: Path) -> None:
        self.manifest = PackedManifest(**json.loads((folder / "manifest.json").read_text("utf-8")))
        self._shards = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("rows-*.npy"))]
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    def __len__(self) -> int:
        return self.manifest.rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = self._shards[shard][index - self._ends[shard]]
        return {name: torch.from_numpy(row[i].astype(np.int64)) for i, name in enumerate(PLANES)}
