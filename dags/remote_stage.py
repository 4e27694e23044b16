"""Bring one stage to its end where nothing is shared but a DVC remote: in a task of Kubeflow Pipelines.

Run:  python dags/remote_stage.py --remote s3://bucket/dvc --code TREE --stage tokenize@en --outputs FILE
      python dags/remote_stage.py --remote s3://bucket/dvc --code TREE --register --outputs FILE

The run's code comes from the remote (`code/TREE.tar.gz`, put there by `make kubeflow`), as do its data, the
outputs of other stages and DVC's memory of what has run; the stage's own outputs go there. The workspace and
all caches lie in CSLM_HOME (/tmp/cslm), which may vanish with the container. FILE gets the digests of the
outputs as JSON: what depends on this stage has them among its inputs, so that Kubeflow's cache of tasks knows
its data. `--register` gathers all results and makes a version of them.

Like dags/dvc_stage.py it lies in the images and imports nothing else of this project.
Exit codes: those of dags/dvc_stage.py; 3 also where the code is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from dags import dvc_stage

if TYPE_CHECKING:
    from dvc.repo import Repo

REMOTE = "runs"
DEFAULT_HOME = "/tmp/cslm"


def main() -> int:
    arguments = _arguments()
    dvc_stage.lead_group()
    home = Path(os.environ.get("CSLM_HOME") or DEFAULT_HOME).absolute()
    workspace = home / "workspace"
    os.environ |= {
        "CSLM_HOME": str(home),
        dvc_stage.REMOTE: arguments.remote,
        "DVC_GLOBAL_CONFIG_DIR": str(home / "dvc" / "global"),
        "DVC_SYSTEM_CONFIG_DIR": str(home / "dvc" / "system"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "PYTHONPATH": str(workspace),
    }
    return dvc_stage.exit_code(lambda: _work(arguments, home, workspace), pull=True)


def code_file(tree: str) -> str:
    """Where the remote has the code of a run, by the git tree of its commit."""
    return f"code/{tree}.tar.gz"


def _work(arguments: argparse.Namespace, home: Path, workspace: Path) -> None:
    from dvc.repo import Repo

    shutil.rmtree(workspace, ignore_errors=True)
    (workspace / ".dvc" / "tmp").mkdir(parents=True)
    _write_config(workspace, home, arguments.remote)
    with Repo(str(workspace)) as repo:
        _unpack_code(repo, arguments.code, workspace)
    (workspace / "dvc.lock").unlink(missing_ok=True)  # as in dags/run.py
    os.chdir(workspace)
    with Repo() as repo:
        repo.stage_cache.pull(None)
        if arguments.register:
            dvc_stage.restore_all(repo, pull=True)
            digests = {}
        else:
            state = dvc_stage.bring(repo, arguments.stage, arguments.force, pull=True)
            print(f"{arguments.stage}: {state}", flush=True)
            digests = _digests(repo, arguments.stage)
    if arguments.register:
        ended = subprocess.run(["python", "-m", "components.register"], check=False)
        if ended.returncode:
            sys.exit(ended.returncode)
    arguments.outputs.parent.mkdir(parents=True, exist_ok=True)
    arguments.outputs.write_text(json.dumps(digests, sort_keys=True), "utf-8")


def _write_config(workspace: Path, home: Path, remote: str) -> None:
    """The remote stands for the checkout's embedded store too: `make kubeflow` brings the data there."""
    lines = [
        "[core]",
        "    no_scm = true",
        f"    remote = {REMOTE}",
        f"    site_cache_dir = {home / 'dvc' / 'site'}",
        "[cache]",
        f"    dir = {home / 'dvc-cache'}",
        "    type = reflink,hardlink,symlink,copy",
    ]
    for name in (REMOTE, dvc_stage.EMBEDDED):
        lines += [f"['remote \"{name}\"']", f"    url = {remote}", "    verify = true"]
    (workspace / ".dvc" / "config.local").write_text("\n".join(lines) + "\n", "utf-8")


def _unpack_code(repo: Repo, tree: str, workspace: Path) -> None:
    remote = repo.cloud.get_remote(REMOTE)
    archive = workspace / ".dvc" / "tmp" / "code.tar.gz"
    try:
        remote.fs.get_file(remote.fs.join(remote.path, code_file(tree)), str(archive))
    except FileNotFoundError as error:
        raise dvc_stage.Missing(
            f"{os.environ[dvc_stage.REMOTE]} has no {code_file(tree)}: `make kubeflow` with that "
            f"{dvc_stage.REMOTE} brings the code there"
        ) from error
    with tarfile.open(archive) as file:  # of Debian 12's Python, which knows no filter for members yet
        root = workspace.resolve()
        outside = [each.name for each in file if not (root / each.name).resolve().is_relative_to(root)]
        if outside:
            raise dvc_stage.Missing(
                f"{code_file(tree)} of {os.environ[dvc_stage.REMOTE]} holds {outside[0]}, which lies outside "
                "of the workspace: it is not what `make kubeflow` brings there"
            )
        file.extractall(workspace)
    archive.unlink()


def _digests(repo: Repo, address: str) -> dict[str, str]:
    """Path -> DVC's digest of each output that another stage reads: a report differs each time it is made."""
    from dvc.repo import lock_repo

    [stage] = repo.stage.collect(address)
    with lock_repo(repo):
        stage.save()
    read = {Path(dep.def_path) for each in repo.index.stages for dep in each.deps}
    return {
        out.def_path: str(out.hash_info.value)
        for out in stage.outs
        if any(dep.is_relative_to(out.def_path) or Path(out.def_path).is_relative_to(dep) for dep in read)
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--remote", required=True, help="URL of the DVC remote that tasks share")
    parser.add_argument("--code", required=True, metavar="TREE", help="git tree of the run's commit")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--stage", help="DVC's name of the stage, such as tokenize@en")
    what.add_argument("--register", action="store_true", help="make a version of all results")
    parser.add_argument("--force", action="store_true", help="run the stage even if it is cached")
    parser.add_argument("--outputs", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
