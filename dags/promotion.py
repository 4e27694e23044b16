"""The registry's stages, as the tasks of `cslm_promote` and `cslm_rollback` move versions through them.

The work is that of `components.promote`, a command like every component; here is only how it is called. While
MLflow is away each raises `run.MachineAway`, which Airflow tries again.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dags import places, run
from dags.dvc_stage import TRY_AGAIN


class PromotionRefused(Exception):
    """The command refused; its own words say why and what to do."""


def gate(model: str, version: int | None, log: Callable[[str], None]) -> dict[str, Any]:
    """Compare a version with production: model, version, production (0: none), and the report for a person.

    Raises:
        PromotionRefused: the version is worse, or cannot be compared.
    """
    with TemporaryDirectory() as folder:
        out = Path(folder) / "gate.json"
        chosen = [] if version is None else ["--version", str(version)]
        _promote(["gate", "--model", model, "--out", str(out), *chosen], log)
        facts = json.loads(out.read_text("utf-8"))
    return {
        "model": model,
        "version": facts["version"],
        "production": facts["production"] or 0,
        "report": facts["report"],
    }


def compare(model: str, version: int, against: int, log: Callable[[str], None]) -> None:
    """Compare a version with another one, and log the report; nothing moves.

    Raises:
        PromotionRefused: there is no such version.
    """
    _promote(["compare", "--model", model, "--version", str(version), "--against", str(against)], log)


def promote(model: str, facts: dict[str, Any], by: str, reason: str, log: Callable[[str], None]) -> None:
    """Put the version that was compared into production, if what it was compared with still is there.

    Raises:
        PromotionRefused: something else is in production now, or the gate refuses.
    """
    compared = ["--version", str(facts["version"]), "--expect-production", str(facts["production"])]
    _promote(["promote", "--model", model, "--by", by, "--reason", reason, *compared], log)


def reject(model: str, version: int, by: str, reason: str, log: Callable[[str], None]) -> None:
    """Note that a version is not wanted in production.

    Raises:
        PromotionRefused: it is there already.
    """
    _promote(["reject", "--model", model, "--version", str(version), "--by", by, "--reason", reason], log)


def roll_back(model: str, by: str, reason: str, request: str, log: Callable[[str], None]) -> None:
    """Put the version that was in production before back there, once for each `request`.

    Raises:
        PromotionRefused: there is none.
    """
    _promote(["rollback", "--model", model, "--by", by, "--reason", reason, "--request", request], log)


def _promote(arguments: list[str], log: Callable[[str], None]) -> None:
    ended = subprocess.run(
        [run.python(), "-m", "components.promote", *arguments],
        cwd=places.PROJECT,
        env=places.component_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    for line in (ended.stdout + ended.stderr).splitlines():
        log(line)
    if ended.returncode == TRY_AGAIN:
        raise run.MachineAway(ended.stderr.strip())
    if ended.returncode:
        raise PromotionRefused(ended.stderr.strip() or f"the command ended with code {ended.returncode}")
