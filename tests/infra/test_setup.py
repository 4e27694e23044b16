"""Setup names what is missing; the locks are whole; the Makefile lists its targets."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).absolute().parents[2]


def test_missing_system_packages_are_named_with_the_command(tmp_path: Path) -> None:
    """A PATH with coreutils only, as on a bare machine."""
    for name in ("dirname", "grep", "bash", "cat", "sha256sum", "env"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    result = subprocess.run(
        [CHECKOUT / "infra" / "setup.sh"],
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "apt-get install -y git make g++ python3 python3-venv python3-dev" in result.stderr


@pytest.mark.parametrize("name", ["orchestrator", "components"])
def test_lock_pins_every_wish_exactly(name: str) -> None:
    def packages(path: Path) -> dict[str, str]:
        lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
        matches = [re.fullmatch(r"([A-Za-z0-9_.-]+)(\[[^]]*\])?(.*)", line) for line in lines if line]
        return {re.sub(r"[-_.]+", "-", m.group(1)).lower(): m.group(3) for m in matches if m}

    lock = packages(CHECKOUT / "requirements" / f"{name}.txt")
    wishes = packages(CHECKOUT / "requirements" / f"{name}.in")
    assert set(wishes) - set(lock) == set()
    assert all(version.startswith("==") for version in lock.values())
    assert not any(re.search(r"nvidia|triton|torchaudio", package) for package in lock)


def test_make_alone_lists_the_targets() -> None:
    result = subprocess.run(["make", "-C", CHECKOUT], capture_output=True, text=True, check=True)
    for target in ("setup", "demo", "from-scratch", "up", "down", "test", "lint", "clean"):
        assert re.search(rf"^ +make {target} +\S", result.stdout, re.MULTILINE), target


def test_clean_asks_and_spares_on_no(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("x")
    result = subprocess.run(
        ["make", "-C", CHECKOUT, "clean"],
        input="n\n",
        text=True,
        capture_output=True,
        check=False,
        env=os.environ | {"CSLM_HOME": str(tmp_path)},
    )
    assert result.returncode != 0
    assert (tmp_path / "kept").exists()
