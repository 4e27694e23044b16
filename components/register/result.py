"""What makes a result distinct, where it came from, and its key figures."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from mlflow.entities.model_registry import ModelVersion

from components.settings import Corpus
from components.stage import flatten

RESULT, FIGURES = "result_digest", "evaluation_digest"
"""Tags of a version: `result_digest` of all of it, and `file_digest` of its evaluation."""
VOLATILE = ("mlflow_run_id", "latency", "dnsmos", "speaker_similarity", "speech_dnsmos")
DECIMALS = 6
SPLITS = {"test": "", "dev": "dev.", "held-out voice": "heldout_voice."}
SHOWN = ("wer", "cer", "exact_match", "f1", "off_target", "bleu", "similarity", "speedup_over_full_chain")


class Damaged(Exception):
    """Files of a version are not those that were registered; the message says which, where, and what to do."""


def result_digest(folders: list[Path], evaluation: Mapping[str, Any]) -> str:
    """SHA-256 over every file of `folders` and the evaluation, without what the clock or a rerun changes.

    Left out: run ids, latencies, and the judges' marks for sound, which follow from the rest. Numbers count to
    six decimals: threads add up in any order.
    """
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            digest.update(f"{name} {file_digest(path)}\n".encode())
    digest.update(json.dumps(_stable(evaluation), sort_keys=True).encode())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify(version: ModelVersion, tag: str, digest: str) -> None:
    """Compare the digest of what was read of a version with the tag that it got when it was registered, if any.

    Raises:
        Damaged: they differ.
    """
    if digest != version.tags.get(tag, digest):
        raise Damaged(
            f"{version.name} version {version.version}: what lies at {version.source} is not what was "
            f"registered: its digest is {digest[:12]}..., and the version's tag {tag} says "
            f"{version.tags[tag][:12]}.... Bring the files back from a backup (docs/operators.md), or train it "
            "again (make demo)"
        )


def _stable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _stable(item) for key, item in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [_stable(item) for item in value]
    return round(value, DECIMALS) if isinstance(value, float) else value


def git_commit() -> str | None:
    """The commit of this run: `CSLM_GIT_COMMIT`, or the checkout's; None outside of git."""
    if commit := os.environ.get("CSLM_GIT_COMMIT"):
        return commit
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout.strip() or None


def data_version(corpora: Mapping[str, Corpus]) -> str | None:
    """`KEY=MD5` of each corpus, as DVC tracks it (`PATH.dvc`, else dvc.lock); None if it tracks none."""
    lock = yaml.safe_load(Path("dvc.lock").read_text("utf-8")) if Path("dvc.lock").exists() else {}
    stages = lock.get("stages", {})
    versions = {key: _md5(key, corpus, stages) for key, corpus in corpora.items()}
    return ", ".join(f"{key}={md5}" for key, md5 in sorted(versions.items()) if md5) or None


def _md5(key: str, corpus: Corpus, stages: Mapping[str, Any]) -> str | None:
    pointer = Path(f"{corpus.path.rstrip('/')}.dvc")
    if pointer.exists():
        return str(yaml.safe_load(pointer.read_text("utf-8"))["outs"][0]["md5"])
    for dependency in stages.get(f"ingest@{key}", {}).get("deps", []):
        if dependency["path"] == corpus.path and "md5" in dependency:
            return str(dependency["md5"])
    return None


def figures_table(evaluation: Mapping[str, Any]) -> str:
    """Markdown table of the key figures, a column for each split."""
    flat = flatten(evaluation)
    prefixes = tuple(prefix for prefix in SPLITS.values() if prefix)
    names = [name for name in flat if name.split(".")[-1] in SHOWN and not name.startswith(prefixes)]
    lines = [f"| metric | {' | '.join(SPLITS)} |", "|---" * (1 + len(SPLITS)) + "|"]
    for name in names:
        cells = (_cell(flat.get(prefix + name)) for prefix in SPLITS.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"
