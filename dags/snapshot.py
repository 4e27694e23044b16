"""Git commits of a run, made without touching the user's branch, index or files.

`commit` takes the work tree as it is (uncommitted changes included) through an index of its own; `clone`
makes a private work tree of such a commit; `add_files` records results on the run's branch. All is done
with git's plumbing commands.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

MAX_UNTRACKED_MB = 50
"""More untracked data than this is a corpus that somebody forgot to give to DVC, not source code."""


class SnapshotFailed(Exception):
    """The commit cannot be made; the message says why and what to do."""


def git(project: Path, *arguments: str, stdin: bytes | None = None, index: Path | None = None) -> str:
    """Standard output of a git command, stripped.

    Raises:
        SnapshotFailed: git refuses; the message is git's own.
    """
    environment = dict(os.environ)
    environment.pop("GIT_DIR", None)
    environment.pop("GIT_WORK_TREE", None)
    if index is not None:
        environment["GIT_INDEX_FILE"] = str(index)
    command = ["git", "-C", str(project), "-c", "core.hooksPath=/dev/null", *arguments]
    result = subprocess.run(command, input=stdin, env=environment, capture_output=True, check=False)
    if result.returncode:
        raise SnapshotFailed(f"git {arguments[0]} in {project}: {result.stderr.decode().strip()}")
    return result.stdout.decode().strip()


def commit(project: Path, ref: str, changed: Mapping[str, bytes], message: str) -> str:
    """Id of a commit of `ref` (empty: the work tree), with the content of `changed` files replaced.

    An existing commit is returned where nothing differs from it. The new commit belongs to no branch.
    """
    head = resolve(project, ref or "HEAD")
    with tempfile.TemporaryDirectory(prefix="cslm-index-") as folder:
        index = Path(folder) / "index"
        if ref:
            git(project, "read-tree", head or "", index=index)
        else:
            _refuse_data(project)
            _copy_index(project, index)
            git(project, "add", "--all", index=index)
        for path, content in changed.items():
            blob = git(project, "hash-object", "-w", "--stdin", stdin=content)
            git(project, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", index=index)
        tree = git(project, "write-tree", index=index)
    if head and tree == git(project, "rev-parse", f"{head}^{{tree}}"):
        return head
    return _commit_tree(project, tree, head, message)


def add_files(project: Path, branch: str, files: Mapping[str, Path], message: str) -> str:
    """Commit `files` (path in the repository -> file on disk) on top of `branch`; the new id of the branch."""
    parent = git(project, "rev-parse", f"refs/heads/{branch}")
    with tempfile.TemporaryDirectory(prefix="cslm-index-") as folder:
        index = Path(folder) / "index"
        git(project, "read-tree", parent, index=index)
        for path, source in files.items():
            blob = git(project, "hash-object", "-w", "--no-filters", str(source.absolute()))
            git(project, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", index=index)
        tree = git(project, "write-tree", index=index)
    if tree == git(project, "rev-parse", f"{parent}^{{tree}}"):
        return parent
    child = _commit_tree(project, tree, parent, message)
    git(project, "update-ref", f"refs/heads/{branch}", child, parent)
    return child


def branch(project: Path, name: str, commit_id: str, results: str) -> str:
    """Make the branch; or the commit to go on with, of one that is there already (a repeated task or run).

    That commit has the same files as `commit_id`. On top of it may lie only commits with `results` as their
    subject.

    Raises:
        SnapshotFailed: the branch exists with other files: the run's name is taken.
    """
    if resolve(project, f"refs/heads/{name}") is None:
        git(project, "update-ref", f"refs/heads/{name}", commit_id, "0" * 40)
        return commit_id
    wanted = git(project, "rev-parse", f"{commit_id}^{{tree}}")
    for line in git(project, "log", "--first-parent", "--format=%H %T %s", f"refs/heads/{name}").splitlines():
        made, tree, subject = line.split(" ", 2)
        if tree == wanted:
            return made
        if subject != results:
            break
    raise SnapshotFailed(
        f"branch {name} is there already with other code, data or parameters: give the run another name, or "
        "start a new one in place of clearing this"
    )


def resolve(project: Path, ref: str) -> str | None:
    """The commit that `ref` names; None if HEAD or a branch has none.

    Raises:
        SnapshotFailed: `ref` is some other name that means nothing here.
    """
    try:
        return git(project, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    except SnapshotFailed:
        if ref == "HEAD" or ref.startswith("refs/heads/"):
            return None
        raise SnapshotFailed(f"ref {ref!r} names no commit in {project}; `git log --all` lists them") from None


def clone(project: Path, commit_id: str, target: Path) -> None:
    """A work tree of the commit at `target`, sharing the project's objects and without the embedded store."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    git(project, "init", "--quiet", "--template=", str(target))
    _share_objects(project, target)
    git(target, "config", "advice.detachedHead", "false")
    git(target, "sparse-checkout", "set", "--no-cone", "/*", "!/store/")
    git(target, "checkout", "--quiet", "--detach", commit_id)


def _share_objects(project: Path, target: Path) -> None:
    """Let `target` read the project's objects, those of no branch and those of a shallow clone among them.

    `git clone --shared` refuses a shallow source.
    """
    common = Path(git(project, "rev-parse", "--path-format=absolute", "--git-common-dir"))
    alternates = target / ".git" / "objects" / "info" / "alternates"
    alternates.parent.mkdir(parents=True, exist_ok=True)
    alternates.write_text(f"{common / 'objects'}\n", "utf-8")
    if (common / "shallow").exists():
        shutil.copy2(common / "shallow", target / ".git" / "shallow")


def tracked(project: Path, commit_id: str, path: str) -> bool:
    """Whether a file or folder is in the commit."""
    return bool(git(project, "ls-tree", "--name-only", commit_id, "--", path.rstrip("/")))


def text(project: Path, commit_id: str, path: str) -> str | None:
    """Content of a file in the commit; None if it is not there."""
    return git(project, "show", f"{commit_id}:{path}") if tracked(project, commit_id, path) else None


def _copy_index(project: Path, index: Path) -> None:
    """Start from the user's index: its file times save hashing every file again."""
    original = Path(git(project, "rev-parse", "--absolute-git-dir")) / "index"
    if original.exists():
        shutil.copy2(original, index)


def _refuse_data(project: Path) -> None:
    names = git(project, "ls-files", "--others", "--exclude-standard", "-z").split("\0")
    sizes = {name: (project / name).lstat().st_size for name in names if name and (project / name).exists()}
    total = sum(sizes.values()) / 2**20
    if total > MAX_UNTRACKED_MB:
        largest = max(sizes, key=lambda name: sizes[name])
        folder = os.path.dirname(largest) or largest
        raise SnapshotFailed(
            f"{total:.0f} MB of files are known neither to git nor to DVC, most in {folder}: a run would copy "
            f"them into git. Give them to DVC (.venv/orchestrator/bin/dvc add {folder}) or to .gitignore"
        )


def _commit_tree(project: Path, tree: str, parent: str | None, message: str) -> str:
    parents = ["-p", parent] if parent else []
    return git(project, *_identity(project), "commit-tree", tree, *parents, "-m", message)


def _identity(project: Path) -> list[str]:
    """The user's own name on the commit, or the project's where git knows none."""
    try:
        git(project, "var", "GIT_COMMITTER_IDENT")
        git(project, "var", "GIT_AUTHOR_IDENT")
        return []
    except SnapshotFailed:
        return ["-c", "user.name=CSLM pipeline", "-c", "user.email=cslm@localhost"]
