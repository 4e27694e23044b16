"""Packed rows in an object store: a training reads those that it needs, and keeps them on its machine's disk.

    s3://bucket/folder/SHA256.npy   a shard as `cslm.packing.pack` writes it, under the digest of what it holds
    KEPT/SHA256.npy                 on the disk: the same file, with a hole where no row was read yet

Each row has a checksum (CRC-32), which is not in the store. A row is taken from the disk if it is what its
checksum says, else from the store; so a hole, a row that is half written and one that has rotted are alike.
What was read is kept while the disk has room, so that a later epoch asks for little or nothing. Any number of
processes may share KEPT.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import threading
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from pyarrow import fs

log = logging.getLogger("cslm")

FREE = 0.1
"""Share of the disk that stays free, as for checkpoints: what is read beyond that is not kept."""
ATTEMPTS = 8
"""How often a store is asked that does not answer; the pauses between grow to seconds."""
OPEN = 256
"""Files of a store that are open at most."""
REFUSES = re.compile(r"AWS Error (ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|NO_SUCH_BUCKET)")
REFUSES_FILES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
AGAIN = "run compose again, which brings it there (make demo FORCE=compose)"


class StoreRefuses(OSError):
    """The store does not let who asks read or write; the message says what to check."""


class StoreAway(StoreRefuses, ConnectionError):
    """The store does not do its work now, and may do it later."""


class RowsLost(ValueError):
    """A shard is not in the store, or not what was written; the message says which one."""


@dataclass(frozen=True)
class Shard:
    """A file of rows in a store."""

    name: str
    rows: int
    offset: int
    """Bytes before the first row."""


@dataclass(frozen=True)
class RowSource:
    """From where a training reads rows, and where it keeps what it has read."""

    store: str
    """As for `RowStore`."""
    kept: str
    """Folder on the disk of each machine."""


class RowStore:
    """A folder of shards in an object store.

    Args:
        uri: `s3://bucket/folder`, with keys, endpoint, region and CA from the environment (AWS_ACCESS_KEY_ID,
            AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, AWS_CA_BUNDLE); or `file:///folder` on
            a volume that all machines share.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        where = urlsplit(uri)
        self._files: fs.FileSystem = fs.LocalFileSystem()
        self._root = where.path
        if where.scheme == "s3":
            self._root = f"{where.netloc}{where.path}".rstrip("/")
            self._files = fs.S3FileSystem(
                endpoint_override=os.environ.get("AWS_ENDPOINT_URL"),
                region=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
                tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE"),
                retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            )
        self._opened = lru_cache(OPEN)(lambda name: self._files.open_input_file(self._at(name)))

    def put(self, path: Path, rows: int, row_bytes: int) -> Shard:
        """Bring a file that ends with `rows` rows there, if it is not yet.

        Raises:
            StoreRefuses: the store does not take it.
            StoreAway: it does not answer.
        """
        size = path.stat().st_size
        with path.open("rb") as file:
            name = f"{hashlib.file_digest(file, 'sha256').hexdigest()}.npy"
        try:
            if isinstance(self._files, fs.LocalFileSystem):
                self._files.create_dir(self._root)
            if self._files.get_file_info(self._at(name)).size != size:
                fs.copy_files(str(path), self._at(name), fs.LocalFileSystem(), self._files)
        except OSError as error:
            raise self._refusal(error) from error
        return Shard(name, rows, size - rows * row_bytes)

    def read(self, name: str, offset: int, size: int) -> bytes:
        """So many bytes of a shard; threads may ask at once.

        Raises:
            RowsLost: there is no such shard.
            StoreRefuses: the store does not let who asks read it.
            StoreAway: it does not answer.
        """
        try:
            content: bytes = self._opened(name).read_at(size, offset)
        except FileNotFoundError as error:
            raise RowsLost(
                f"{self.uri} (compose.store) has no {name}, which is to be trained on: {AGAIN}"
            ) from error
        except OSError as error:
            raise self._refusal(error) from error
        return content

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _refusal(self, error: OSError) -> StoreRefuses:
        final = error.errno in REFUSES_FILES or REFUSES.search(str(error))
        check = "that the volume is mounted here, its rights and its free space"
        if self.uri.startswith("s3://"):
            check = "AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights on the bucket"
        return (StoreRefuses if final else StoreAway)(
            f"the store of packed rows, {self.uri} (compose.store), does not do its work: {error}. "
            f"Check {check}, then run this again"
        )


class KeptRows:
    """What was read from a store, on this machine's disk.

    Args:
        folder: of the files.

    Attributes:
        turned_away: how many rows were read that the disk did not take; each is read anew when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.turned_away = folder, 0
        self._counting = threading.Lock()

    def read(self, name: str, offset: int, size: int) -> bytes:
        """So many bytes of a file, or fewer: what it lacks was not kept."""
        try:
            file = os.open(self.folder / name, os.O_RDONLY)
        except OSError:
            return b""
        try:
            return os.pread(file, size, offset)
        finally:
            os.close(file)

    def keep(self, name: str, offset: int, content: bytes) -> None:
        """Write a row into its place, if the disk takes it; the first one that it does not is told."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            disk = shutil.disk_usage(self.folder)
            if disk.free < FREE * disk.total + len(content):
                free, total = disk.free / 1e9, disk.total / 1e9
                raise OSError(f"{free:.1f} of its {total:.1f} GB are free, and {FREE:.0%} stay so")
            file = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(file, content, offset)
            finally:
                os.close(file)
        except OSError as error:
            with self._counting:  # threads read ahead
                self.turned_away += 1
                first = self.turned_away == 1
            if first:
                log.warning(
                    "rows from the store (compose.store) are not kept in %s, so they are read anew each time: "
                    "%s. Make room there, or give another disk (CSLM_ROWS)",
                    self.folder,
                    error,
                )


class StoredRows:
    """The rows of a shard that lies in a store; `rows[i]` is (planes, length) int32, as of a mapped array.

    Args:
        shape: of a row.
        checks: CRC-32 of each row.
        kept: what this machine has read.
    """

    def __init__(
        self,
        store: RowStore,
        shard: Shard,
        shape: tuple[int, int],
        checks: npt.NDArray[np.uint32],
        kept: KeptRows,
    ) -> None:
        self._store, self._shard, self._shape, self._checks, self._kept = store, shard, shape, checks, kept
        self._bytes = shape[0] * shape[1] * np.dtype(np.int32).itemsize

    def __len__(self) -> int:
        return self._shard.rows

    def __getitem__(self, index: int) -> npt.NDArray[np.int32]:
        """One row; threads may ask at once.

        Raises:
            RowsLost: it is not in the store, or not what was written.
            StoreRefuses: the store does not let who asks read it.
            StoreAway: it does not answer.
        """
        name, check = self._shard.name, int(self._checks[index])
        offset = self._shard.offset + index * self._bytes
        content = self._kept.read(name, offset, self._bytes)
        if not self._is_whole(content, check):
            content = self._store.read(name, offset, self._bytes)
            if not self._is_whole(content, check):
                raise RowsLost(
                    f"{name} in {self._store.uri} (compose.store) is not what was written: "
                    f"remove it and {AGAIN}"
                )
            self._kept.keep(name, offset, content)
        return np.frombuffer(content, np.int32).reshape(self._shape)

    def _is_whole(self, content: bytes, check: int) -> bool:
        return len(content) == self._bytes and zlib.crc32(content) == check
