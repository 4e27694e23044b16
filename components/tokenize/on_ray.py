"""Shards spread over the workers of Ray (https://docs.ray.io) by Ray Data: `tokenize.engine: ray`.

Each worker is an actor with a core, or a GPU if the tokenizer can use one, that opens the tokenizer once. What
goes through Ray is names and counts: workers read shards and write units where this process would, so the nodes
of a cluster share these folders. RAY_ADDRESS names a cluster that this machine has joined; without it a Ray of
this process alone works on the cores of the stage, and ends with it.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from components.tokenize.shards import Progress, Recipe, ShardFailed, at_work, encode_shard
from cslm.tokenizer import COSYVOICE, open_tokenizer

ADDRESS = "RAY_ADDRESS"
CODE = Path(__file__).absolute().parents[2]
OBJECTS_B = 128 * 2**20
"""Memory that a Ray of our own shares among its processes: little, as a container may have little of it."""
KNOCK_S = 10
"""How long a cluster may take to answer."""
DEATHS = 3
"""Of workers over one shard, after which it is given up; Ray Data would begin it anew for ever."""


class EngineFailed(Exception):
    """Ray does not do its work; the message says what to do."""


def encode_on_ray(tokenizer: Path, recipe: Recipe, todo: Sequence[Path], folder: Path) -> Iterator[Progress]:
    """Write the units of all shards to `folder`, many at once; tell when one is there.

    Raises:
        ShardFailed: one cannot be encoded; those that are finished stay.
        EngineFailed: no Ray, no cluster, or workers die.
    """
    _set_environment()
    try:
        import ray.data
    except ImportError as error:
        raise EngineFailed(
            f"tokenize.engine is ray, and its package is not in this environment ({error}): `make setup` "
            "installs what requirements/components.txt has, ray among it; tokenize.engine=local needs none"
        ) from error
    with _ray():
        workers, gpus = _workers((tokenizer / COSYVOICE).exists(), len(todo))
        if gpus:
            recipe = replace(recipe, provider=recipe.provider or "cuda")
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        names = [str(shard.absolute()) for shard in todo]
        done = ray.data.from_items(names, override_num_blocks=len(names)).map_batches(
            _Worker,
            fn_constructor_args=(tokenizer.absolute(), recipe, folder.absolute()),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=gpus,
        )
        try:
            for row in done.iter_rows():
                if row["error"]:
                    raise ShardFailed(row["error"])
                yield Progress(row["utterances"], row["seconds"], 1)
        except ray.exceptions.UserCodeException:  # an error of ours, with its traceback
            raise
        except ray.exceptions.RayError as error:
            raise EngineFailed(
                f"Ray has ended early: {_line(error)}. Shards that are finished are kept: run this again, or "
                "take tokenize.engine=local"
            ) from error


class _Worker:
    """An actor: the name of a shard in, what became of it out."""

    def __init__(self, tokenizer: Path, recipe: Recipe, folder: Path) -> None:
        self._recipe, self._folder, self._missing = recipe, folder, ""
        for path in (tokenizer, folder):
            if not path.is_dir():
                self._missing = (
                    f"node {platform.node()} of the Ray cluster has no {path}: its nodes must share the "
                    "project's folder and CSLM_HOME, at the same paths"
                )
                return
        torch.set_num_threads(1)  # a core is all it has
        try:
            self._tokenizer = open_tokenizer(tokenizer, recipe.provider, recipe.batch_seconds)
        except (ValueError, RuntimeError) as error:
            self._missing = f"node {platform.node()} of the Ray cluster: {error}"

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        [shard] = batch["item"]
        error, told = self._missing, list[Progress]()
        if at_work(self._folder).count(Path(shard).stem) >= DEATHS:
            error = (
                f"{DEATHS} workers of Ray have died over {shard}, most likely for want of memory: lower "
                "tokenize.batch_seconds or give them more, then run this again: finished shards are kept"
            )
        if not error:
            try:
                told = list(encode_shard(self._tokenizer, self._recipe, Path(shard), self._folder))
            except ShardFailed as failure:
                error = str(failure)
        row = {
            "error": error,
            "utterances": sum(each.utterances for each in told),
            "seconds": sum(each.seconds for each in told),
        }
        return {name: np.array([value]) for name, value in row.items()}


def _set_environment() -> None:
    """What Ray reads when it is imported: nobody is told, and a Ray of our own answers to its token alone."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    if not os.environ.get(ADDRESS):
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@contextmanager
def _ray() -> Iterator[None]:
    """The cluster of RAY_ADDRESS, or a Ray of our own on the cores of the stage."""
    import ray

    address = os.environ.get(ADDRESS) or "local"
    options: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="cslm-ray-", ignore_cleanup_errors=True) as scratch:
        if address == "local":
            options |= {"num_cpus": torch.get_num_threads(), "include_dashboard": False, "_temp_dir": scratch}
            options |= {"_node_ip_address": "127.0.0.1", "object_store_memory": OBJECTS_B}
        else:  # workers that have been started elsewhere run this run's code
            code = os.pathsep.join([str(CODE), *filter(None, [os.environ.get("PYTHONPATH")])])
            options |= {"runtime_env": {"env_vars": {"PYTHONPATH": code}}}
        try:
            if address != "local":
                _knock(address)  # Ray itself tries for minutes
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # which is what Ray raises when it does not start in time
            if address == "local":
                raise EngineFailed(
                    f"Ray does not start here: {error}; tokenize.engine=local needs none"
                ) from error
            raise EngineFailed(
                f"Ray at {address!r} ({ADDRESS}) cannot be used: {_line(error)}. HOST:PORT of a cluster is "
                "needed that this machine has joined (ray start), with the same versions of Ray and Python; "
                f"without {ADDRESS} the cores of this machine are used"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


def _knock(address: str) -> None:
    """Whether anybody listens at HOST:PORT.

    Raises:
        OSError, ValueError: nobody does, or it is no such address.
    """
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), KNOCK_S):
        pass


def _workers(on_gpus: bool, shards: int) -> tuple[int, int | None]:
    """How many workers there is work and room for, and the GPUs that each of them gets."""
    import ray

    room: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    kind = "GPU" if on_gpus and room.get("GPU", 0) >= 1 else "CPU"
    if room.get(kind, 0) < 1:
        raise EngineFailed("the Ray cluster has no core for this (see ray status): add nodes, run this again")
    return min(shards, int(room[kind])), 1 if kind == "GPU" else None


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
