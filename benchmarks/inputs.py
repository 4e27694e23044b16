"""What the benchmarks work on: the sample corpus, brought through the stages before training.

Run:  python -m benchmarks.inputs      (two minutes; the benchmarks do it themselves when it is needed)

The stages' own commands run in `$CSLM_HOME/benchmarks/inputs`, which is made anew when the corpus, the models
that ship, a parameter or the code has changed. DVC and Airflow have no part in it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.results import ROOT

LINKED = ("params.yaml", "dvc.yaml", "models.yaml", "data", "models")
STAGES = (
    "ingest --corpus assistant",
    "validate",
    "train_tokenizer",
    "text_model",
    "tokenize --language en",
    "tokenize --language zh",
    "backbone",
    "align",
    "compose",
)


def prepared() -> Path:
    """The folder with `work/accepted`, `work/tokenizer`, `work/backbone`, `work/train`.

    Raises:
        SystemExit: the sample corpus is not there, or a stage failed.
    """
    folder = home() / "inputs"
    mark, digest = folder / "made-of", _digest()
    if mark.exists() and mark.read_text("utf-8") == digest:
        return folder
    if not (ROOT / "data" / "sample").exists() or not (ROOT / "models" / "cslm").exists():
        sys.exit("the sample corpus and the base models are not here: run `make setup`")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    for stage in STAGES:
        print(f"inputs: {stage} ...", flush=True)
        component(stage, folder)
    mark.write_text(digest, "utf-8")
    return folder


def home() -> Path:
    """Where the benchmarks keep their state."""
    return Path(os.environ.get("CSLM_HOME") or ROOT / "var").absolute() / "benchmarks"


def component(command: str, folder: Path) -> float:
    """Run `python -m components.COMMAND` in a folder, apart from the user's MLflow; most memory it had, in MB.

    Raises:
        SystemExit: it failed; what it printed is told.
    """
    unwanted = ("MLFLOW", "CSLM", "AIRFLOW")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    environment = kept | {"CSLM_HOME": str(folder / "var"), "PYTHONPATH": str(ROOT)}
    log = folder / "log"
    with log.open("wb") as out:
        arguments = [sys.executable, "-m", f"components.{command.split()[0]}", *command.split()[1:]]
        process = subprocess.Popen(arguments, cwd=folder, env=environment, stdout=out, stderr=out)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # so that Popen waits for it no more
    if process.returncode:
        sys.exit(f"{command} failed in {folder}:\n{log.read_text('utf-8', errors='replace')[-3000:]}")
    return usage.ru_maxrss / 1024


def _digest() -> str:
    digest = hashlib.sha256(sys.version.encode())
    for path in _sources():
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def _sources() -> Iterator[Path]:
    yield from (ROOT / name for name in ("params.yaml", "benchmarks/inputs.py"))
    for pattern in ("data/*.dvc", "models/*.dvc", "cslm/**/*.py", "components/**/*.py"):
        yield from sorted(ROOT.glob(pattern))


if __name__ == "__main__":
    print(prepared())
