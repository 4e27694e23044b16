"""Sequences packed into rows of one length, without padding between them and without attention across.

    row      | doc A          | doc B     | doc C   | pad |
    position | 0 1 2 3 4 5 6 7| 0 1 2 3 4 | 0 1 2 3 | 0 1 |

Positions restart with each document, from which transformers derives a block-diagonal causal mask.
Rows are filled from windows of `WINDOW` sequences, so memory is flat; what would leave a row half empty waits
for the next window, as long sequences may come before the short ones that fill the gaps. Nothing is cut: a
sequence that is too long is left out, counted, and listed in `too_long.jsonl`. Rows lie in the folder, or in an
object store (`cslm.row_store`), from where they are read one by one.
"""

from __future__ import annotations

import bisect
import json
import logging
import random
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from cslm.row_store import KeptRows, RowSource, RowStore, Shard, StoredRows
from cslm.sequences import IGNORE, Sequence

log = logging.getLogger("cslm")

WINDOW = 16_384
ROWS_PER_SHARD = 4096
FULL = 0.98
WAITING = 0.75
"""Share of a window that may wait for the next one; the rest of it is for new sequences."""
LISTENING = "listening"
"""Task of what is to be understood in the user's turn, with the language of the sequence."""
TOO_LONG, CHECKS = "too_long.jsonl", "checks.npy"
PLANES = ("input_ids", "labels", "position_ids", "task", "understood")
READERS = 8
"""Rows that are read from a store at once."""


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
    shards: list[Shard] = field(default_factory=list)
    """In a store, in order; none if the rows are in the folder."""

    @property
    def utilization(self) -> float:
        """Share of the rows that is not padding."""
        return self.tokens / (self.rows * self.length) if self.rows else 0.0


def pack(
    sequences: Iterable[Sequence],
    folder: Path,
    length: int,
    pad_id: int,
    seed: int,
    store: RowStore | None = None,
) -> PackedManifest:
    """Write rows to `folder/rows-00000.npy` (rows, 5, length; int32) and `manifest.json`.

    What is longer than a row is in `too_long.jsonl`, one line a sequence: item, task, language, tokens. With a
    store each shard is brought there when it is full, and the folder has `checks.npy` instead: CRC-32 of each
    row (rows,; uint32).

    Raises:
        StoreRefuses: the store does not take a shard.
        StoreAway: it does not answer.
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

    shards, most = _Shards(folder, store), 0
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
                shards.write(packed)
                manifest.rows += 1
    manifest.shards = shards.finish()
    manifest.tokens = sum(tokens.values())
    manifest.sequences, manifest.task_tokens = dict(counts), dict(tokens)
    manifest.too_long = dict(too_long)
    for name, count in too_long.items():
        log.warning(
            "%d sequences of %s are longer than %d: left out (%s lists them)", count, name, length, TOO_LONG
        )
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1) + "\n", "utf-8")
    return manifest


class _Shards:
    """Writes rows to files of `ROWS_PER_SHARD` in a folder, or through it to a store."""

    def __init__(self, folder: Path, store: RowStore | None) -> None:
        self._folder, self._store = folder, store
        self._rows: list[npt.NDArray[np.int32]] = []
        self._checks = array("I")
        self._full = 0
        self._brought: list[Shard] = []

    def write(self, row: npt.NDArray[np.int32]) -> None:
        """Add one row (5, length)."""
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_SHARD:
            self._flush()

    def finish(self) -> list[Shard]:
        """Write the last rows, and the checks of all if they are in a store; its shards, in order."""
        if self._rows:
            self._flush()
        if self._store is not None:
            np.save(self._folder / CHECKS, np.array(self._checks, np.uint32))
        return self._brought

    def _flush(self) -> None:
        path = self._folder / f"rows-{self._full:05d}.npy"
        np.save(path, np.stack(self._rows))
        if self._store is not None:
            self._brought.append(self._store.put(path, len(self._rows), self._rows[0].nbytes))
            self._checks.extend(zlib.crc32(row.tobytes()) for row in self._rows)
            path.unlink()
        self._full += 1
        self._rows.clear()


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


class _FileRows:
    """The rows of a file in the folder; each is read when it is asked for, so no file stays open."""

    def __init__(self, path: Path) -> None:
        mapped = np.load(path, mmap_mode="r")  # which reads where the rows are, and none of them
        self._path, self._offset, self._rows, self._shape = path, mapped.offset, len(mapped), mapped.shape[1:]

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> npt.NDArray[np.int32]:
        """One row, (planes, length); threads may ask at once."""
        count = int(np.prod(self._shape))
        offset = self._offset + index * count * np.dtype(np.int32).itemsize
        row: npt.NDArray[np.int32] = np.fromfile(self._path, np.int32, count, offset=offset).reshape(
            self._shape
        )
        return row


class PackedRows(Dataset[dict[str, Any]]):
    """The rows of a folder that `pack` wrote: `{plane: (length,) int64}` each.

    Only those rows are read that are asked for, and no file stays open between.

    Args:
        source: the store, and a folder on this machine's disk for what has been read.

    Raises:
        FileNotFoundError: no manifest there.
        ValueError: the rows are in a store, and none is given.
    """

    def __init__(self, folder: Path, source: RowSource | None = None) -> None:
        self.manifest = PackedManifest(**json.loads((folder / "manifest.json").read_text("utf-8")))
        self.manifest.shards = [Shard(**each) for each in self.manifest.shards]  # type: ignore[arg-type]
        self._shards: SequenceOf[_FileRows | StoredRows]
        self._kept: KeptRows | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._coming: dict[int, Future[npt.NDArray[np.int32]]] = {}
        if not self.manifest.shards:
            self._shards = [_FileRows(path) for path in sorted(folder.glob("rows-*.npy"))]
        elif source is None:
            raise ValueError(f"{folder} has no rows, as they are in a store (compose.store): say in which")
        else:
            self._kept = KeptRows(Path(source.kept))
            self._shards = self._stored(RowStore(source.store), self._kept, np.load(folder / CHECKS))
            self._readers = ThreadPoolExecutor(READERS, "rows")
        self._starts = np.cumsum([0, *map(len, self._shards)])

    def _stored(self, store: RowStore, kept: KeptRows, checks: npt.NDArray[np.uint32]) -> list[StoredRows]:
        shards = self.manifest.shards
        of_each = np.split(checks, np.cumsum([shard.rows for shard in shards])[:-1])
        shape = (len(PLANES), self.manifest.length)
        return [
            StoredRows(store, shard, shape, checks, kept) for shard, checks in zip(shards, of_each, strict=True)
        ]

    def __len__(self) -> int:
        return self.manifest.rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        coming = self._coming.pop(index, None)
        row = self._row(index) if coming is None else coming.result()
        return {name: torch.from_numpy(row[i].astype(np.int64)) for i, name in enumerate(PLANES)}

    def read_soon(self, indices: Iterable[int]) -> None:
        """Begin to read rows that will be asked for, if they are in a store."""
        if self._readers is not None:
            self._coming |= {index: self._readers.submit(self._row, index) for index in indices}

    def close(self) -> None:
        """Read no more of what was begun; nothing can be read soon after it."""
        if self._readers is not None:
            self._readers.shutdown(cancel_futures=True)
            self._readers = None
        if self._kept is not None and self._kept.turned_away:
            log.warning(
                "%d rows were read from the store that were not kept in %s",
                self._kept.turned_away,
                self._kept.folder,
            )
        self._coming.clear()

    def _row(self, index: int) -> npt.NDArray[np.int32]:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        row: npt.NDArray[np.int32] = self._shards[shard][int(index - self._starts[shard])]
        return row
