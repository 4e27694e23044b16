"""Setup names what is missing; the locks are whole; the Makefile lists its targets."""

from __future__ import annotations

import os
import re
import shlex
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


@pytest.mark.parametrize("name", ["orchestrator", "components", "data", "dvc", "kubeflow"])
def test_lock_pins_every_wish_exactly_and_by_hash(name: str) -> None:
    lock = _locked(name)
    files = (CHECKOUT / "requirements" / f"{name}{part}.in" for part in ("", "-tests"))
    wishes = "\n".join(path.read_text() for path in files if path.exists())
    named = {_normal(match) for match in re.findall(r"^([A-Za-z0-9_.-]+)", wishes, re.MULTILINE)}
    assert named - set(lock) == set()
    assert not any(re.search(r"nvidia|triton|torchaudio", package) for package in lock)
    assert [package for package, (_, hashes) in lock.items() if not hashes] == (
        ["torch"] if name == "components" else []
    )


@pytest.mark.parametrize(("part", "whole"), [("data", "components"), ("dvc", "orchestrator")])
def test_an_image_gets_the_versions_of_the_whole_environment(part: str, whole: str) -> None:
    versions = {package: version for package, (version, _) in _locked(whole).items()}
    assert {package: version for package, (version, _) in _locked(part).items()}.items() <= versions.items()


def _locked(name: str) -> dict[str, tuple[str, int]]:
    """Package -> its version and how many hashes it has."""
    text = (CHECKOUT / "requirements" / f"{name}.txt").read_text()
    blocks = re.findall(
        r"^([A-Za-z0-9_.-]+)==(\S+)((?: \\\n +--hash=sha256:[0-9a-f]{64})*)$", text, re.MULTILINE
    )
    return {_normal(package): (version, hashes.count("--hash")) for package, version, hashes in blocks}


def _normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def test_make_alone_lists_the_targets() -> None:
    result = subprocess.run(["make", "-C", CHECKOUT], capture_output=True, text=True, check=True)
    for target in ("setup", "demo", "from-scratch", "up", "down", "test", "lint", "clean"):
        assert re.search(rf"^ +make {target} +\S", result.stdout, re.MULTILINE), target


def test_clean_asks_and_spares_on_no(tmp_path: Path) -> None:
    (tmp_path / "dvc-cache").mkdir()
    assert _clean(tmp_path, "n\n").returncode != 0
    assert (tmp_path / "dvc-cache").exists()


def test_clean_removes_what_runs_have_left(tmp_path: Path) -> None:
    (tmp_path / "var" / "dvc-cache").mkdir(parents=True)
    (tmp_path / "var" / "dvc-cache").chmod(0o500)
    done = _clean(tmp_path / "var", "y\n")
    assert (done.returncode, (tmp_path / "var").exists()) == (0, False), done.stderr


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        ("documents", "it has nothing of what runs leave behind"),
        ("home", "home is in it"),
        ("", "home is in it"),
        ("repository", "it is a git repository"),
    ],
)
def test_clean_removes_no_folder_that_is_not_ours(tmp_path: Path, folder: str, why: str) -> None:
    """CSLM_HOME may have been set wrongly, or for something else."""
    for name in ("documents", "home/dvc-cache", "repository/.git", "repository/dvc-cache", "dvc-cache"):
        (tmp_path / name).mkdir(parents=True)
    refused = _clean(tmp_path / folder, "y\n", HOME=str(tmp_path / "home"))
    assert refused.returncode != 0
    assert why in refused.stderr and "set CSLM_HOME" in refused.stderr
    assert (tmp_path / "documents").exists() and (tmp_path / "home" / "dvc-cache").exists()
    assert (tmp_path / "repository" / ".git").exists()


def test_clean_does_not_remove_the_checkout() -> None:
    assert f"{CHECKOUT} is in it" in _clean(CHECKOUT.parent, "n\n").stderr
    assert f"{CHECKOUT} is in it" in _clean(Path("/"), "n\n").stderr


@pytest.mark.parametrize(
    ("target", "given", "called"),
    [
        ("chat", [], ["components.chat", "--name", "cslm", "--port", "7860"]),
        (
            "chat",
            ["MODEL=cslm-smollm2", "CHAT_PORT=7861"],
            ["components.chat", "--name", "cslm-smollm2", "--port", "7861"],
        ),
        ("history", [], ["components.promote", "history", "--model", "cslm"]),
        (
            "history",
            ["MODEL=cslm-smollm2", "ON=2026-11-27"],
            ["components.promote", "history", "--model", "cslm-smollm2", "--on", "2026-11-27"],
        ),
    ],
)
def test_chat_and_history_take_another_model(target: str, given: list[str], called: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CHAT_PORT"}
    made = subprocess.run(
        ["make", "-C", CHECKOUT, "--no-print-directory", "--dry-run", target, *given],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert shlex.split(made.stdout.splitlines()[-1])[-len(called) :] == called, made.stdout


def _clean(home: Path, answer: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "-C", CHECKOUT, "clean"],
        input=answer,
        text=True,
        capture_output=True,
        check=False,
        env=os.environ | variables | {"CSLM_HOME": str(home)},
    )
