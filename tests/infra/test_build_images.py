"""What `make images` brings beside the images."""

from __future__ import annotations

import os
import re
import sys
from ast import literal_eval
from pathlib import Path

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
