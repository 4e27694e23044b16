"""A project of three tiny stages that uses this checkout's own dags/ and infra/, to test the mechanics."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.end_to_end.checkout import ORCHESTRATOR

PYTHON = str(ORCHESTRATOR)
"""Who has Airflow and DVC, whoever runs the test."""
CHECKOUT = Path(__file__).absolute().parents[2]

DVC_YAML = """\
stages:
  ingest:
    foreach: ${corpora}
    do:
      cmd: python -m components.toy ingest ${key} ${item.path}
      deps: ["${item.path}"]
      params: ["corpora.${key}"]
      outs: ["work/corpora/${key}"]
      metrics: ["metrics/ingest/${key}.json"]
  double:
    desc: Two times the number
    cmd: python -m components.toy double
    deps: [work/corpora, components/toy.py]
    params: [double]
    outs: [work/doubled, report/validation]
    metrics: [metrics/double.json]
  final:
    cmd: python -m components.toy final
    deps: [work/doubled]
    params: [final]
    outs: [work/final, report/evaluation]
    meta: {gpus: 1}
    metrics: [metrics/evaluation.json]
"""

PARAMS = """\
profile: sample
corpora:
  one: {path: data/in}
double:
  factor: 2
final:
  plus: 1
  mode: work
"""

PROFILE = """\
double: {factor: 3}
"""

STAGES = """\
import json, os, pathlib, re, sys, time

def param(name):
    return re.search(name + r": *([a-z0-9]+)", pathlib.Path("params.yaml").read_text()).group(1)

def write(path, value):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value)

what = sys.argv[1]
calls = pathlib.Path(os.environ["CSLM_HOME"], "calls.txt")
with calls.open("a") as file:
    file.write(what + "\\n")
if what == "ingest":
    write(f"work/corpora/{sys.argv[2]}/number", pathlib.Path(sys.argv[3], "number").read_text())
    for name in (f"ingest-{sys.argv[2]}-done", "ingest-other-done"):
        write(f"{os.environ['CSLM_HOME']}/checkpoints/{name}/finished", "")
    write(f"metrics/ingest/{sys.argv[2]}.json", json.dumps({"rows": 1, "mlflow_run_id": "made-it"}))
elif what == "double":
    for done in range(3):
        print(f"progress: {done}/3 numbers", flush=True)
    number = int(pathlib.Path("work/corpora/one/number").read_text())
    chance = pathlib.Path(os.environ["CSLM_HOME"], "chance")
    more = int(chance.read_text()) if chance.exists() else 0  # what no dep tells of
    write("work/doubled/number", str(number * int(param("factor")) + more))
    write("report/validation/statistics.json", json.dumps({param("profile"): {"number": number}}))
    for name, mark in (("double-done", "finished"), ("double-other", "step"), ("final-done", "finished")):
        write(f"{os.environ['CSLM_HOME']}/checkpoints/{name}/{mark}", "")
    print("note: doubled one number", flush=True)
    write("metrics/double.json", json.dumps({"nested": {"value": 1.5}}))
else:
    if param("mode") == "fail":
        sys.exit("final: the number 13 is unlucky; set final.mode to work")
    if param("mode") == "hang" and not pathlib.Path(os.environ["CSLM_HOME"], "pid").exists():
        write(os.environ["CSLM_HOME"] + "/pid", str(os.getpid()))
        time.sleep(600)
    if param("mode") == "preempted":
        checkpoint = pathlib.Path(os.environ["CSLM_HOME"], "checkpoints", "final-half", "step")
        if not checkpoint.exists():
            write(checkpoint, "20")
            sys.exit(75)
        print("note: goes on from step " + checkpoint.read_text(), flush=True)
    if param("mode") == "wait":
        write(os.environ["CSLM_HOME"] + "/waits", "")
        while not pathlib.Path(os.environ["CSLM_HOME"], "go").exists():
            time.sleep(0.1)
    value = int(pathlib.Path("work/doubled/number").read_text()) + int(param("plus"))
    write("work/final/number", str(value))
    write("metrics/evaluation.json", json.dumps({"asr": {"en": {"wer": value / 1000}}}))
    row = {"title": "Words wrong", "value": f"{value / 10} %", "interval": "", "paper": "9.8 %"}
    row |= {"target": "≤ 5.0 %", "reached": value <= 50}
    write("report/evaluation/headlines.json", json.dumps([row]))
"""

SETTINGS = """\
import pathlib, sys
if "bogus" in pathlib.Path(sys.argv[1]).read_text():
    sys.exit("params.yaml: final.bogus is not a known key; allowed there: plus, mode")
"""

REGISTER = """\
import json, pathlib
value = json.loads(pathlib.Path("metrics/evaluation.json").read_text())["asr"]["en"]["wer"]
assert pathlib.Path("work/final/number").exists() and pathlib.Path("dvc.lock").exists()
print(f"registered toy with {value}", flush=True)
"""

PROMOTE = """\
import json, os, pathlib, sys
command, *rest = sys.argv[1:]
options = dict(zip(rest[::2], rest[1::2]))
with pathlib.Path(os.environ["CSLM_HOME"], "promote.jsonl").open("a") as file:
    file.write(json.dumps({"command": command, **options}) + "\\n")
if options.get("--version") == "13":
    sys.exit("refused: version 13 is unlucky")
if command == "gate":
    facts = {"version": 7, "production": None, "report": "| figure | **better** |"}
    pathlib.Path(options["--out"]).write_text(json.dumps(facts))
"""
"""Stands for components.promote, whose own tests work on a real registry (tests/components/test_promote.py)."""


def make(path: Path) -> Path:
    """A committed git project at `path` with one DVC-tracked input, whose data is in its embedded store."""
    files = {
        "dvc.yaml": DVC_YAML,
        "params.yaml": PARAMS,
        "profiles/triple.yaml": PROFILE,
        "components/__init__.py": "",
        "components/toy.py": STAGES,
        "components/settings.py": SETTINGS,
        "components/register/__init__.py": "",
        "components/register/__main__.py": REGISTER,
        "components/promote/__init__.py": "",
        "components/promote/__main__.py": PROMOTE,
        "data/in/number": "21",
    }
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    for name in ("dags", "infra"):
        shutil.copytree(CHECKOUT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        (path / name).parent.mkdir(exist_ok=True)
        shutil.copy(CHECKOUT / name, path / name)
    python = path / ".venv" / "components" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(os.path.realpath(PYTHON))
    run(path, "git", "init", "--quiet", "--initial-branch=main")
    run(path, PYTHON, "-m", "dvc", "add", "--quiet", "data/in")
    run(path, PYTHON, "-m", "dvc", "push", "--quiet", "-r", "embedded")
    shutil.rmtree(path / ".dvc" / "cache")
    run(path, "git", "add", "--all")
    run(path, "git", "commit", "--quiet", "--message", "toy")
    return path


def contained(path: Path) -> str:
    """Let the stages of a toy work in containers; name of the image that they need."""
    shutil.copytree(CHECKOUT / "requirements", path / "requirements")
    (path / "components" / "toy").mkdir()
    (path / "components" / "toy" / "Dockerfile").write_text("FROM localhost/another-one\n")
    graph = yaml.safe_load((path / "dvc.yaml").read_text())
    for row in graph["stages"].values():
        row.get("do", row)["meta"] = {"image": "toy", "cpus": 1, "memory": "1Gi"}
    (path / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))
    run(path, "git", "add", "--all")
    run(path, "git", "commit", "--quiet", "--message", "contained")
    return run(path, PYTHON, "-c", "from dags import images; print(images.name('toy'))").strip()


def environment(path: Path) -> dict[str, str]:
    """The surroundings of the toy: its own CSLM_HOME, git identity and DVC folders, nothing of the caller's."""
    callers = ("AIRFLOW", "CSLM", "MLFLOW", "DVC", "GIT", "PYTHON")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(callers)}
    identity = {
        f"GIT_{who}_{what}": "toy@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    return (
        kept
        | identity
        | {
            "CSLM_HOME": str(path / "var"),
            "DVC_SITE_CACHE_DIR": str(path / "var" / "dvc" / "site"),
            "DVC_NO_ANALYTICS": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "OMP_NUM_THREADS": "1",
        }
    )


def run(path: Path, *command: str) -> str:
    """Output of a command in the toy; fails loudly."""
    result = subprocess.run(
        command, cwd=path, env=environment(path), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def demo(path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`make demo` of the toy, with PROFILE, SET, FORCE, REF, RUN as the environment gives them."""
    return subprocess.run(
        [PYTHON, "-m", "infra.demo"],
        cwd=path,
        env=environment(path) | variables,
        capture_output=True,
        text=True,
        check=False,
    )


WITHOUT_AIRFLOW = """
import json, sys
from dags import graph, places, preparation, run
conf = {"profile": "sample", "overrides": {}, "ref": "", "force": [], **json.loads(sys.argv[1])}
stages = graph.read_graph(places.PROJECT / "dvc.yaml")
try:
    facts = preparation.prepare(**conf, log=print)
    for stage in stages.values():
        for item in facts[stage.name] if stage.foreach else [None]:
            print(stage.address(item), run.run_stage(facts, stage, item, print), file=sys.stderr)
    run.register(facts, print)
    print("commit", run.record(facts, print), file=sys.stderr)
except run.RunFailed as error:
    sys.exit(str(error))
"""


def pipeline(path: Path, name: str, remote: Path | str | None = None, **conf: Any) -> subprocess.Popen[str]:
    """The same tasks one after the other without Airflow, which is quicker; stderr tells their states.

    `remote` is where machines share the outputs of stages (CSLM_DVC_REMOTE).
    """
    return subprocess.Popen(
        [PYTHON, "-c", WITHOUT_AIRFLOW, json.dumps({"name": name, **conf})],
        cwd=path,
        env=environment(path) | ({"CSLM_DVC_REMOTE": str(remote)} if remote else {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def states(process: subprocess.Popen[str]) -> dict[str, str]:
    """Stage -> cached or ran, of a pipeline that ended well."""
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    return dict(line.split(" ", 1) for line in told.splitlines() if line.count(" ") == 1)


def events(path: Path, name: str) -> list[dict[str, Any]]:
    """What a run told of itself."""
    lines = (path / "var" / "runs" / name / "events.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def calls(path: Path) -> list[str]:
    """The stages whose command really ran since the last look."""
    file = path / "var" / "calls.txt"
    lines = file.read_text().split() if file.exists() else []
    file.unlink(missing_ok=True)
    return lines
