"""What `make images` brings beside the images."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from ast import literal_eval
from pathlib import Path
from zipfile import ZipFile

import pytest

from dags import places
from infra import build_images


def test_the_image_of_evaluate_comes_with_what_it_hears_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where they cannot be had, the images are made nevertheless."""
    source = (places.PROJECT / "components" / "evaluate" / "speech.py").read_text("utf-8")
    [judges] = re.findall(r"^JUDGES = (\{.*?^\})", source, re.MULTILINE | re.DOTALL)
    monkeypatch.setenv("CSLM_HOME", str(tmp_path))
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["make images", "evaluate"])
    monkeypatch.setattr(build_images, "container_engine", lambda: "engine")
    monkeypatch.setattr(build_images, "_component", lambda *_: None)
    assert build_images.main() == 0
    told = capfd.readouterr()
    for name in literal_eval(judges):
        assert f"images: without {name} evaluate leaves figures out: make images ONLY=evaluate" in told.out
    assert "pip could not download speechmos==0.0.1.1" in told.err


@pytest.mark.parametrize("cuda", [True, False])
def test_the_images_have_what_the_build_of_torch_for_gpus_needs(
    cuda: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is of the build for processors: without CUDA's libraries, `import torch` fails in an image."""
    index, lock = tmp_path / "index", tmp_path / "requirements" / "components.txt"
    index.mkdir()
    needs = {"torch": ["filelock", *(["nvidia-cublas==13.1.0", "triton"] if cuda else [])]}
    versions = {"torch": "2.13.0", "filelock": "3.0", "nvidia-cublas": "13.1.0", "triton": "3.5"}
    wheels = {name: _wheel(index, name, version, needs.get(name, [])) for name, version in versions.items()}
    _wheel(index, "filelock", "4.0", [])
    lock.parent.mkdir()
    lock.with_suffix(".in").write_text("torch\n", "utf-8")
    digest = hashlib.sha256(wheels["filelock"].read_bytes()).hexdigest()
    lock.write_text(f"torch==2.13.0\nfilelock==3.0 \\\n    --hash=sha256:{digest}\n", "utf-8")
    monkeypatch.setenv("CSLM_COMPONENTS", str(places.components_bin()))
    monkeypatch.setattr(places, "PROJECT", tmp_path)
    monkeypatch.setattr(build_images.images, "tagged", lambda *_: "wheels:one")
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "CSLM_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    folder = build_images._wheels("wheels", ["components"], [])
    listed = (folder / "components.txt").read_text("utf-8").splitlines()
    assert listed[:2] == ["torch==2.13.0", "filelock==3.0"], "nothing but what is locked"
    assert listed[2:] == (["nvidia-cublas==13.1.0", "triton==3.5"] if cuda else [])
    assert len([*folder.glob("*.whl")]) == len(listed), "uv installs what is listed, and finds it there"


def _wheel(folder: Path, name: str, version: str, needs: list[str]) -> Path:
    """An empty package."""
    about = f"{name.replace('-', '_')}-{version}.dist-info"
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    requires = "".join(f"Requires-Dist: {need}\n" for need in needs)
    with ZipFile(path, "w") as wheel:
        wheel.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}"
        )
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return path
