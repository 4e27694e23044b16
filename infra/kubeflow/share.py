"""Bring to the DVC remote what tasks need that share nothing else: the run's code, and its data.

The code is an archive of the run's commit without the embedded store, under the name of its git tree. The data
is what the run's `.dvc` files name, out of the cache or of the embedded store.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dags import places, remote_stage, run, snapshot
from dags.dvc_stage import EMBEDDED

if TYPE_CHECKING:
    from dvc.repo import Repo


def share(commit_id: str, tree: str, workspace: Path) -> list[str]:
    """Bring a commit's code and data to CSLM_DVC_REMOTE; names of the data.

    `workspace` is a clone of the commit.

    Raises:
        RunFailed: the data is nowhere, or the remote does not take it.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    os.environ |= places.dvc_environment()
    run.write_dvc_config(workspace, no_scm=True)
    try:
        with Repo(str(workspace)) as repo:
            _share_code(repo, commit_id, tree, workspace)
            return _share_data(repo)
    except (DvcException, BotoCoreError, ClientError, OSError) as error:
        raise run.RunFailed(
            f"the remote {os.environ['CSLM_DVC_REMOTE']} (CSLM_DVC_REMOTE) does not take code and data: "
            f"{error}. Check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights on the "
            "bucket"
        ) from error


def _share_code(repo: Repo, commit_id: str, tree: str, workspace: Path) -> None:
    archive = workspace / ".dvc" / "tmp" / "code.tar.gz"
    archive.parent.mkdir(parents=True, exist_ok=True)
    options = ("--format=tar.gz", f"--output={archive}", commit_id, "--", ".", ":(exclude)store")
    snapshot.git(places.PROJECT, "archive", *options)
    remote = repo.cloud.get_remote(remote_stage.REMOTE)
    file = remote.fs.join(remote.path, remote_stage.code_file(tree))
    remote.fs.makedirs(remote.fs.parent(file), exist_ok=True)
    remote.fs.put_file(str(archive), file)


def _share_data(repo: Repo) -> list[str]:
    """Only data that a stage reads: the pictures of the documents are in DVC too."""
    from dvc.exceptions import DvcException

    readers = repo.index.graph.in_degree()
    inputs = {
        str(Path(stage.path).relative_to(repo.root_dir)): stage
        for stage in repo.index.graph
        if stage.is_data_source and readers[stage]
    }
    for name, stage in inputs.items():
        if not stage.outs_cached():
            try:
                repo.fetch(targets=[stage.addressing], remote=EMBEDDED)
            except DvcException as error:
                raise run.RunFailed(
                    f"{name}: its data is neither in the cache nor in the embedded store ({error}). For a "
                    "corpus of your own: `dvc add` it again in the checkout"
                ) from error
    if inputs:
        repo.push(targets=[stage.addressing for stage in inputs.values()], remote=remote_stage.REMOTE)
    return sorted(inputs)
