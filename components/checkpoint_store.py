"""Checkpoints in an object store as well, so that a training goes on when its machine is lost.

    export CSLM_CHECKPOINTS=s3://bucket/checkpoints

While a training works, a thread brings every state of its checkpoint folder to the store:

    STAGE-KEY/files/SHA256              what the files hold, each once
    STAGE-KEY/states/00000007.json      which files make a state: path -> SHA256

A state is written last, so one that was interrupted is not there. The newest two are kept. Who starts the same
training elsewhere takes the newest state whose files are all there and are what they were (sha256); so does a
machine that has begun it, if another one has come further since. boto3 reads endpoint, keys, region and CA from
the environment, splits large files, and tries again when the store stumbles.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from components.stage import StageFailed

URI = "CSLM_CHECKPOINTS"
ADDRESS = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(/(?P<prefix>.*?))?/*")
WHOLE = "whole"
"""A folder of a checkpoint counts once it holds a file of this name (cslm.training)."""
FINISHED = "finished"
NEWEST = "newest_in_store"
"""In a checkpoint folder, and in no state: the newest one when it was brought to the store or taken from it."""
STEP = re.compile(r"checkpoint-(\d+)/")
"""How the path of a file of a checkpoint begins; other work than a training of the language model has none."""
KEPT = 2
EVERY_S = 15.0
LONGEST_S = 600.0
"""The longest pause between two tries when the store is away."""
LAST_S = 600.0
"""How long the end of a training waits for its last state to be brought away."""
SWEPT = datetime.timedelta(days=1)
"""Age from which the checkpoints of a finished training are removed: its result is in DVC's cache since."""
ATTEMPTS = 5
REFUSED = (Boto3Error, BotoCoreError, ClientError, OSError)


class CheckpointStore:
    """The states of one training.

    Args:
        uri: CSLM_CHECKPOINTS.
        name: of the checkpoint folder, STAGE-KEY.

    Raises:
        StageFailed: the address is none of an object store.
    """

    def __init__(self, uri: str, name: str) -> None:
        match = ADDRESS.fullmatch(uri)
        if match is None:
            raise StageFailed(f"{URI}={uri!r} is no place in an object store: s3://bucket/folder, please")
        self._bucket, self._root = match["bucket"], match["prefix"] or ""
        self._uri, self._name = uri, name
        self._s3 = boto3.Session().client(
            "s3",
            config=Config(
                retries={"mode": "standard", "max_attempts": ATTEMPTS},
                connect_timeout=10,
                # Not every store knows boto3's own checksums; digests are compared here.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        self._there: set[str] | None = None
        self._last: dict[str, tuple[int, int]] = {}
        self._digests: dict[tuple[str, tuple[int, int]], str] = {}
        """SHA-256 of what was sent, by path, time of change and size: large files are read once."""
        self._tried = self._failed = 0

    def restore(self, folder: Path, anew: bool = False) -> bool:
        """Make `folder` of the newest whole state; false if there is none that is further than what is there.

        Args:
            anew: work that is finished is done once more, so its states are none; what was begun goes on.

        Raises:
            StageFailed: the store does not answer, or refuses.
        """
        try:
            self._sweep()
            states = self._keys("states/")
            if anew and states and self._finished(states[-1]):
                return False
            for key in reversed(states):
                if self._uri_of(key) == _newest(folder) or self._is_behind(key, folder):
                    return False
                if self._fetch(key, folder):
                    return True
        except REFUSED as error:
            raise StageFailed(
                f"the store of checkpoints, {self._uri} ({URI}), does not do its work: {error}. "
                "Check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's rights, "
                f"or unset {URI}; then run this again"
            ) from error
        return False

    @contextmanager
    def mirrored(self, folder: Path) -> Iterator[None]:
        """Bring each new state of `folder` to the store while the block works, and the last one at its end."""
        stop = threading.Event()

        def work() -> None:
            ended, pause = False, EVERY_S
            while not ended:
                ended = stop.wait(pause)
                pause = EVERY_S if self._try(folder) else min(2 * pause, LONGEST_S)

        thread = threading.Thread(target=work, name="checkpoints", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(LAST_S)
            if self._failed or thread.is_alive():
                unfinished = " and the last one was not waited for" if thread.is_alive() else ""
                print(
                    f"note: {self._failed} of {self._tried} uploads of checkpoints failed{unfinished}",
                    flush=True,
                )

    def _try(self, folder: Path) -> bool:
        try:
            self.upload(folder)
        except REFUSED as error:
            self._tried, self._failed = self._tried + 1, self._failed + 1
            print(f"a checkpoint was not brought to {self._uri}, it is tried again: {error}", flush=True)
            return False
        return True

    def upload(self, folder: Path) -> bool:
        """Bring the present state of `folder` to the store; false if it is there, or changed meanwhile."""
        found = _whole_files(folder)
        if not found or found == self._last:
            return False
        copies = folder.with_name(f".{folder.name}.uploading")
        shutil.rmtree(copies, ignore_errors=True)
        try:
            for path in found:
                (copies / path).parent.mkdir(parents=True, exist_ok=True)
                os.link(folder / path, copies / path)  # the training may remove or replace the file
            if _whole_files(folder) != found:
                return False
            key = self._send(copies, found)
            (folder / NEWEST).write_text(self._uri_of(key), "utf-8")
        except FileNotFoundError:
            return False
        finally:
            shutil.rmtree(copies, ignore_errors=True)
        self._last, self._tried = found, self._tried + 1
        return True

    def _send(self, copies: Path, found: dict[str, tuple[int, int]]) -> str:
        if self._there is None:
            self._there = {PurePosixPath(key).name for key in self._keys("files/")}
        self._digests = {
            (path, facts): self._digests.get((path, facts)) or _digest(copies / path)
            for path, facts in found.items()
        }
        files = {path: digest for (path, _), digest in self._digests.items()}
        for path, digest in files.items():
            if digest not in self._there:
                self._s3.upload_file(str(copies / path), self._bucket, self._key(f"files/{digest}"))
                self._there.add(digest)
        states = self._keys("states/")
        number = int(PurePosixPath(states[-1]).stem) + 1 if states else 1
        key = self._key(f"states/{number:08d}.json")
        body = _State(finished=FINISHED in files, files=files).model_dump_json(indent=1).encode()
        self._s3.put_object(Bucket=self._bucket, Key=key, Body=body)
        self._prune()
        return key

    def _prune(self) -> None:
        states = self._keys("states/")
        needed: set[str] = set()
        for key in states[-KEPT:]:
            with suppress(_Broken):
                needed |= set(self._read(key).files.values())
        old = [key for key in self._keys("files/") if PurePosixPath(key).name not in needed]
        self._remove([*states[:-KEPT], *old])
        self._there = needed

    def _is_behind(self, key: str, folder: Path) -> bool:
        """Whether a state is no further than `folder`: by its steps, or by time where nothing counts them."""
        here = _whole_files(folder)
        if not here:
            return False
        try:
            mine, theirs = _last_step(here), _last_step(self._read(key).files)
        except _Broken:
            return False
        if mine or theirs:
            return mine >= theirs
        written = self._s3.head_object(Bucket=self._bucket, Key=key)["LastModified"]
        return bool(max(changed for changed, _ in here.values()) / 1e9 >= written.timestamp())

    def _fetch(self, key: str, folder: Path) -> bool:
        """Make `folder` of one state; false, and a word why, if that cannot be."""
        partial = folder.with_name(f".{folder.name}.fetching")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            for path, digest in self._read(key).files.items():
                (partial / path).parent.mkdir(parents=True, exist_ok=True)
                self._download(digest, partial / path)
                if _digest(partial / path) != digest:
                    raise _Broken(f"{path} is not what was written")
        except _Broken as error:
            print(f"the checkpoint {key} cannot be used, an older one is looked for: {error}", flush=True)
            shutil.rmtree(partial, ignore_errors=True)
            return False
        for checkpoint in partial.glob("checkpoint-*"):  # the trainer removes the one that changed first
            step = _last_step([f"{checkpoint.name}/"])
            os.utime(checkpoint, (step, step))
        (partial / NEWEST).write_text(self._uri_of(key), "utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        print(f"the work goes on from checkpoint {self._uri_of(key)}", flush=True)
        return True

    def _download(self, digest: str, target: Path) -> None:
        try:
            self._s3.download_file(self._bucket, self._key(f"files/{digest}"), str(target))
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("404", "NoSuchKey"):
                raise
            raise _Broken(f"file {digest} is not there") from error

    def _read(self, key: str) -> _State:
        content = self._s3.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        try:
            return _State.model_validate_json(content)
        except ValidationError as error:
            raise _Broken(str(error)) from error

    def _finished(self, key: str) -> bool:
        try:
            return self._read(key).finished
        except _Broken:
            return False

    def _sweep(self) -> None:
        """Remove what finished trainings of this stage have left."""
        stage = self._name.rpartition("-")[0]
        answer = self._pages(Prefix=f"{self._under(stage)}-", Delimiter="/")
        others = [each["Prefix"] for page in answer for each in page.get("CommonPrefixes", [])]
        for prefix in others:
            content = [each for page in self._pages(Prefix=prefix) for each in page.get("Contents", [])]
            states = sorted(each["Key"] for each in content if "/states/" in each["Key"])
            newest = max((each["LastModified"] for each in content), default=None)
            if not states or newest is None or prefix == f"{self._under(self._name)}/":
                continue
            age = datetime.datetime.now(datetime.UTC) - newest
            if age > SWEPT and self._finished(states[-1]):
                self._remove([each["Key"] for each in content])

    def _keys(self, folder: str) -> list[str]:
        pages = self._pages(Prefix=self._key(folder))
        return sorted(each["Key"] for page in pages for each in page.get("Contents", []))

    def _pages(self, **asked: str) -> Iterator[dict[str, Any]]:
        yield from self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, **asked)

    def _remove(self, keys: list[str]) -> None:
        for key in keys:
            self._s3.delete_object(Bucket=self._bucket, Key=key)

    def _key(self, name: str) -> str:
        return f"{self._under(self._name)}/{name}"

    def _uri_of(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    def _under(self, name: str) -> str:
        return f"{self._root}/{name}" if self._root else name


class _Broken(Exception):
    """A state of which something is missing or wrong."""


def _inside(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(f"{path!r} leads out of the folder")
    return path


class _State(BaseModel):
    """What a state's JSON says."""

    model_config = ConfigDict(extra="forbid")

    finished: bool
    files: dict[Annotated[str, AfterValidator(_inside)], Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
    """Path -> SHA-256 of what it holds."""


def _whole_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Path -> (time of change, size) of every file that is not being written."""
    found = {}
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder)
        whole = len(path.parts) == 1 or (folder / path.parts[0] / WHOLE).exists()
        if file.is_file() and whole and file.suffix != ".partial" and path.name != NEWEST:
            facts = file.stat()
            found[path.as_posix()] = (facts.st_mtime_ns, facts.st_size)
    return found


def _newest(folder: Path) -> str | None:
    file = folder / NEWEST
    return file.read_text("utf-8") if file.exists() else None


def _last_step(paths: Iterable[str]) -> int:
    return max((int(match[1]) for match in map(STEP.match, paths) if match), default=0)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
