"""What `make kubernetes` refuses, and how the code that it packs arrives on the volume in the cluster."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from dags import places
from infra import cluster

PREPARE = places.PROJECT / "infra" / "kubernetes" / "services" / "prepare.yaml"

pytestmark = pytest.mark.skipif(
    not shutil.which("kubectl"), reason="needs kubectl: apt-get install kubernetes-client"
)


def test_the_code_arrives_as_a_bundle_again_and_again(tmp_path: Path) -> None:
    """The container `code` with its own script: what is cut off is not taken, and the next commit follows."""
    job = yaml.safe_load(PREPARE.read_text("utf-8"))
    *shell, text = job["spec"]["template"]["spec"]["initContainers"][0]["command"]
    text = (
        text.replace("/tmp/", f"{tmp_path}/")
        .replace("/cslm/", f"{tmp_path}/volume/")
        .replace("sleep 2", "sleep 0.1")
    )
    source, bundle = tmp_path / "source", tmp_path / "code.bundle"
    _git("init", "--quiet", str(source))
    for number in ("one", "two"):
        (source / "file").write_text(number)
        _git("-C", str(source), "add", "file")
        _git("-C", str(source), "-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "-m", number)
        commit = _git("-C", str(source), "rev-parse", "HEAD").strip()
        variables = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "CSLM_COMMIT": commit}
        with subprocess.Popen([*shell, text], env=variables, stderr=subprocess.DEVNULL) as waiting:
            _git("-C", str(source), "bundle", "create", "--quiet", str(tmp_path / "whole"), "HEAD")
            bundle.write_bytes((tmp_path / "whole").read_bytes()[:-20])
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(1)
            bundle.write_bytes((tmp_path / "whole").read_bytes())
            assert waiting.wait(60) == 0
        assert (tmp_path / "volume" / "checkout" / "file").read_text() == number


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"CSLM_REGISTRY": ""}, "CSLM_REGISTRY is not set"),
        ({"OVERLAY": "nowhere"}, "infra/kubernetes/overlays has all, "),
        ({"OVERLAY": "gpu"}, "it must have ../../services"),
    ],
)
def test_what_cannot_be_made_is_said(
    variables: dict[str, str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {
        "CSLM_HOME": str(tmp_path),
        "CSLM_REGISTRY": "registry.example.org",
        **variables,
    }.items():
        monkeypatch.setenv(name, value)
    assert cluster.main() == 1
    assert said in capsys.readouterr().err
    assert not list((tmp_path / "kubernetes").glob("*.bundle"))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout
