"""The corpora of a run as DVC knows them: name, path, digest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import yaml


@dataclass(frozen=True)
class Dataset:
    """One corpus; `digest` is that of all its files, as `dvc add` took it."""

    name: str
    path: str
    digest: str


def version(data: Iterable[Dataset]) -> str:
    """All corpora of a run in one text, as the tag `data_version` has it: `en=DIGEST, zh=DIGEST`."""
    return ", ".join(sorted(f"{dataset.name}={dataset.digest}" for dataset in data))


def tracked(params: dict[str, Any], read: Callable[[str], str | None]) -> list[Dataset]:
    """Corpora of `params` that have a `.dvc` file of their own; `read` gives a file's text, or None.

    Others (absolute paths, folders in git) have no digest before they are read, and are left out.
    """
    found = []
    for name, corpus in params.get("corpora", {}).items():
        path = str(corpus["path"]).rstrip("/")
        if text := read(f"{path}.dvc"):
            found.append(Dataset(name, path, str(yaml.safe_load(text)["outs"][0]["md5"])))
    return found
