"""What params.yaml and profiles/NAME.yaml say of a phase that is planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The numbers of a phase that its cost depends on."""

    rows: int
    """Rows of one step, over all ranks."""
    length: int
    """Tokens of a row."""
    micro_batch_tokens: int | None = None
    """Most tokens that a rank works on at once; None: all of its part of a step."""
    epochs: float = 1.0
    max_steps: int | None = None
    """Fewer, if the epochs have more."""
    gradient_checkpointing: bool = False


def recipe(profile: str, phase: str, project: Path = PROJECT) -> Recipe:
    """How the profile trains a phase; `sample` is params.yaml itself.

    Raises:
        ValueError: a file is missing, no YAML, or lacks a number; the message names it.
    """
    overlay = project / "profiles" / f"{profile}.yaml"
    files = [*([overlay] if profile != "sample" else []), project / "params.yaml"]
    try:
        contents = [yaml.safe_load(file.read_text("utf-8")) for file in files]
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"the profile {profile} cannot be read: {error}") from error
    lengths = [_value(contents, "compose", name) for name in (f"{phase}_length", "length")]
    length = next((each for each in lengths if each), None)
    batch, epochs = _value(contents, phase, "batch_tokens"), _value(contents, phase, "epochs")
    micro = _value(contents, phase, "micro_batch_tokens")
    if not length or not batch:
        raise ValueError(
            f"{files[0]}: compose.length and {phase}.batch_tokens are needed, here or in params.yaml"
        )
    return Recipe(
        rows=max(1, batch // length),
        length=length,
        micro_batch_tokens=micro,
        epochs=epochs or Recipe.epochs,
        max_steps=_value(contents, phase, "max_steps"),
        gradient_checkpointing=bool(_value(contents, phase, "gradient_checkpointing")),
    )


def _value(contents: Sequence[Mapping[str, Any]], section: str, key: str) -> Any:
    """What the first of the files that has the key says; None if none has it."""
    return next((content[section][key] for content in contents if key in (content.get(section) or {})), None)
