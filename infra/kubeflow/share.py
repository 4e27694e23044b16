"""Bring to the DVC remote what tasks need that share nothing else: the run's code, and the data it starts from.

The code is an archive of the run's commit without the embedded store, under the name of its git tree. The data is
what the run's `.dvc` files name: out of the cache, or of the embedded store.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from dags import places, remote_stage, run, snapshot
from dags.dvc_stage import EMBEDDED


def share(commit_id: str, tree: str, workspace: Path) -> list[str]:
    """Bring a commit's code and data to CSLM_DVC_REMOTE; names of the data. `workspace` is a clone of the commit.

    Raises:
        RunFailed: the data is nowhere, or the remote does not take it.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    os.environ |= places.dvc_environment()
    run.write_dvc_config(workspace, no_scm=True)
    archive = workspace / ".dvc" / "tmp" / "code.tar.gz"
    archive.parent.mkdir(parents=True, exist_ok=True)
    snapshot.git(
        places.PROJECT,
        *("archive", "--format=tar.gz", f"--output={archive}", commit_id, "--", ".", ":(exclude)store"),
    )
    try:
        with Repo(str(workspace)) as repo:
            remote = repo.cloud.get_remote(remote_stage.REMOTE)
            file = remote.fs.join(remote.path, remote_stage.code_file(tree))
            remote.fs.makedirs(remote.fs.parent(file), exist_ok=True)
            remote.fs.put_file(str(archive), file)
            dependents = repo.index.graph.in_degree()
            inputs = [
                stage for stage in repo.index.graph if stage.is_data_source and dependents[stage]
            ]
            names = sorted(stage.addressing for stage in inputs)
            if missing := [stage.addressing for stage in inputs if not stage.outs_cached()]:
                repo.fetch(targets=missing, remote=EMBEDDED)
            if names:
                repo.push(targets=names, remote=remote_stage.REMOTE)
    except (DvcException, BotoCoreError, ClientError, OSError) as error:
        raise run.RunFailed(
            f"the remote {os.environ['CSLM_DVC_REMOTE']} (CSLM_DVC_REMOTE) did not take code and data: {error}. "
            "Check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights on the bucket"
        ) from error
    return names
