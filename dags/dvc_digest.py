"""Print the digest of each file or folder as DVC takes it, as JSON; null where there is nothing.

Run:  python dags/dvc_digest.py PATH...

A program of its own, run in the checkout, for the reason that dvc_stage.py is one. What has not changed since
the last time is not read again: DVC remembers it by size and time.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Digests of the paths that the arguments name."""
    from dvc.dependency.base import DependencyDoesNotExistError
    from dvc.repo import Repo
    from dvc.stage import PipelineStage, create_stage

    digests: dict[str, str | None] = {}
    with Repo() as repo:
        for path in sys.argv[1:]:
            stage = create_stage(PipelineStage, repo, "dvc.yaml", name="look", cmd="true", deps=[path])
            try:
                stage.save_deps()
            except DependencyDoesNotExistError:
                digests[path] = None
            else:
                digests[path] = stage.deps[0].hash_info.value
    print(json.dumps(digests))


if __name__ == "__main__":
    main()
