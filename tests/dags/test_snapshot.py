"""A run's commit holds what the user sees on disk, and costs the user's branch, index and files nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dags import snapshot


def _git(path: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", path, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One commit; then a staged change, an unstaged change, a deletion, an untracked and an ignored file."""
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL", "EMAIL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    _git(tmp_path, "init", "--quiet", "--initial-branch=main")
    _git(tmp_path, "config", "user.useConfigOnly", "true")
    for name in ("staged", "edited", "deleted", "params.yaml"):
        (tmp_path / name).write_text("old\n")
    (tmp_path / ".gitignore").write_text("ignored\n")
    _git(tmp_path, "add", "--all")
    _git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "first")
    return tmp_path


def _disturb(repository: Path) -> None:
    (repository / "staged").write_text("new\n")
    _git(repository, "add", "staged")
    (repository / "edited").write_text("new\n")
    (repository / "deleted").unlink()
    (repository / "untracked").write_text("new\n")
    (repository / "ignored").write_text("new\n")


def test_uncommitted_changes_are_in_the_commit_and_still_uncommitted(repository: Path) -> None:
    _disturb(repository)
    before = _git(repository, "status", "--porcelain"), (repository / ".git" / "index").read_bytes()
    made = snapshot.commit(repository, "", {"params.yaml": b"merged\n"}, "run")
    assert (_git(repository, "status", "--porcelain"), (repository / ".git" / "index").read_bytes()) == before
    assert _git(repository, "for-each-ref", "--format=%(refname)") == "refs/heads/main"
    assert set(_git(repository, "ls-tree", "--name-only", made).split()) == {
        ".gitignore",
        "staged",
        "edited",
        "untracked",
        "params.yaml",
    }
    assert [_git(repository, "show", f"{made}:{name}") for name in ("staged", "edited", "params.yaml")] == [
        "new",
        "new",
        "merged",
    ]
    assert _git(repository, "rev-parse", f"{made}^") == _git(repository, "rev-parse", "main")
    assert (repository / "params.yaml").read_text() == "old\n"


def test_clean_work_tree_is_its_own_commit(repository: Path) -> None:
    assert snapshot.commit(repository, "", {}, "run") == _git(repository, "rev-parse", "main")
    assert snapshot.commit(repository, "", {"params.yaml": b"old\n"}, "run") == _git(
        repository, "rev-parse", "main"
    )


def test_ref_ignores_the_work_tree(repository: Path) -> None:
    _disturb(repository)
    made = snapshot.commit(repository, "main", {"params.yaml": b"merged\n"}, "run")
    assert _git(repository, "diff", "--name-only", "main", made) == "params.yaml"


def test_commit_without_a_git_identity_has_the_projects(repository: Path) -> None:
    made = snapshot.commit(repository, "", {"params.yaml": b"x\n"}, "run")
    assert _git(repository, "log", "-1", "--format=%an", made) == "CSLM pipeline"
    _git(repository, "config", "user.name", "Mei")
    _git(repository, "config", "user.email", "mei@localhost")
    made = snapshot.commit(repository, "", {"params.yaml": b"y\n"}, "run")
    assert _git(repository, "log", "-1", "--format=%an", made) == "Mei"


def test_forgotten_corpus_is_not_copied_into_git(repository: Path) -> None:
    (repository / "corpus").mkdir()
    with (repository / "corpus" / "big.wav").open("wb") as file:
        file.truncate(60 * 2**20)
    with pytest.raises(snapshot.SnapshotFailed, match=r"60 MB .* most in corpus: .*dvc add corpus"):
        snapshot.commit(repository, "", {}, "run")


def test_branch_of_another_run_is_not_overwritten(repository: Path) -> None:
    made = snapshot.commit(repository, "", {"params.yaml": b"x\n"}, "run")
    assert snapshot.branch(repository, "runs/a", made, "Results") == made
    for other in ({"params.yaml": b"y\n"}, {}):
        commit = snapshot.commit(repository, "", other, "run")
        with pytest.raises(snapshot.SnapshotFailed, match="another name"):
            snapshot.branch(repository, "runs/a", commit, "Results")
    assert _git(repository, "rev-parse", "runs/a") == made


def test_a_repeated_run_goes_on_with_the_commit_below_its_results(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = snapshot.commit(repository, "", {"params.yaml": b"x\n"}, "run")
    snapshot.branch(repository, "runs/a", made, "Results")
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2001-01-01T00:00:00Z")
    again = snapshot.commit(repository, "", {"params.yaml": b"x\n"}, "run")
    assert again != made, "the time is in a commit's id"
    assert snapshot.branch(repository, "runs/a", again, "Results") == made
    for result in ("first", "forced"):
        (repository / "ignored").write_text(result)
        snapshot.add_files(repository, "runs/a", {"dvc.lock": repository / "ignored"}, "Results")
    assert snapshot.branch(repository, "runs/a", again, "Results") == made


def test_clone_has_the_commit_without_the_store(repository: Path, tmp_path: Path) -> None:
    (repository / "store").mkdir()
    (repository / "store" / "blob").write_text("x")
    made = snapshot.commit(repository, "", {}, "run")
    snapshot.clone(repository, made, tmp_path / "clone")
    assert (tmp_path / "clone" / "staged").exists()
    assert not (tmp_path / "clone" / "store").exists()
    assert _git(tmp_path / "clone", "rev-parse", "HEAD") == made


def test_a_shallow_clone_can_run_what_it_holds_uncommitted(repository: Path, tmp_path: Path) -> None:
    _git(
        repository, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--allow-empty", "-q", "-m", "second"
    )
    shallow = tmp_path / "shallow"
    _git(repository, "clone", "--quiet", "--depth", "1", f"file://{repository}", str(shallow))
    (shallow / "edited").write_text("new\n")
    made = snapshot.commit(shallow, "", {}, "run")
    snapshot.clone(shallow, made, tmp_path / "work")
    assert (tmp_path / "work" / "edited").read_text() == "new\n"
    assert _git(tmp_path / "work", "status", "--porcelain") == ""
