"""The parameters of a run: params.yaml, then profiles/PROFILE.yaml, then single overrides."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import yaml

DEFAULT_PROFILE = "sample"


class BadParameters(ValueError):
    """The profile or an override cannot be applied; the message says which and what is allowed."""


def profiles(project: Path) -> list[str]:
    """Names that `PROFILE=` takes; `sample` is params.yaml itself."""
    return sorted({DEFAULT_PROFILE, *(path.stem for path in (project / "profiles").glob("*.yaml"))})


def merged(project: Path, profile: str, overrides: dict[str, Any]) -> dict[str, Any] | None:
    """The parameters of a run, or None if they are just what params.yaml says.

    `overrides` maps dotted keys to values: `{"finetune.learning_rate": 1e-4}`.

    Raises:
        BadParameters: no such profile, or a file is not a YAML mapping.
    """
    if profile not in profiles(project):
        raise BadParameters(f"no profile {profile!r}; there are: {', '.join(profiles(project))}")
    overlay = project / "profiles" / f"{profile}.yaml"
    if not overrides and not overlay.exists():
        return None
    base = read(project / "params.yaml")
    params = copy.deepcopy(base)
    if overlay.exists():
        params = overlaid(params, {"profile": profile, **read(overlay)})
    for key, value in overrides.items():
        params = overlaid(params, _nested(key, value))
    return None if params == base else params


def given(text: str) -> dict[str, Any]:
    """`finetune.learning_rate=2e-4 seed=2` -> values as JSON where they are JSON, else as YAML.

    Raises:
        BadParameters: a part is no KEY=VALUE, or its value cannot be read.
    """
    pairs = {}
    for part in text.split():
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise BadParameters(f"SET={text!r}: {part!r} is not KEY=VALUE, such as finetune.learning_rate=2e-4")
        try:
            pairs[key] = json.loads(value)
            continue
        except json.JSONDecodeError:
            pass  # 2e-4 is a number in JSON alone, a word without quotes in YAML alone
        try:
            pairs[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise BadParameters(
                f"SET={text!r}: {value!r} is not a value; lists are written [a,b], text as it is"
            ) from error
    return pairs


def read(path: Path) -> dict[str, Any]:
    """A YAML mapping."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise BadParameters(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise BadParameters(f"{path}: a mapping of sections is needed, not {type(content).__name__}")
    return content


def overlaid(base: dict[str, Any], overlay: dict[str, Any], inside: str = "") -> dict[str, Any]:
    """`base` with the values of `overlay`: mappings merge, everything else replaces.

    A corpus set to null is left out of the run: there is no other way to take away what params.yaml lists.
    """
    result = dict(base)
    for key, value in overlay.items():
        if inside == "corpora" and value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = overlaid(result[key], value, key)
        else:
            result[key] = value
    return result


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)
