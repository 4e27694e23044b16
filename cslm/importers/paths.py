"""The one place where a name from a corpus becomes a path: nothing outside of the corpus is ever opened."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath


class BadPath(ValueError):
    """A file name that must not or cannot be opened; the message says why."""


def inside(root: Path, name: str) -> Path:
    """The existing file `name` of the corpus at `root`.

    Raises:
        BadPath: absolute, with `..`, a link that leads out of the corpus, or no such file.
    """
    relative = PurePosixPath(name)
    if not name or "\0" in name:
        raise BadPath("empty or impossible file name")
    if relative.is_absolute():
        raise BadPath("absolute path refused; paths must be relative to the folder of the corpus")
    if ".." in relative.parts:
        raise BadPath("'..' in the path refused; files must lie in the folder of the corpus")
    path = root / relative
    try:
        if not path.resolve().is_relative_to(root.resolve()):
            raise BadPath("refused: a symbolic link that leads out of the folder of the corpus")
        if not path.is_file():
            raise BadPath("no such file")
    except (OSError, RuntimeError, UnicodeEncodeError) as error:  # too long, a loop of links, half a character
        raise BadPath(f"cannot be opened: {error}") from error
    return path


def inside_any(root: Path, names: Iterable[str]) -> Path:
    """The first of the files `names` that exists in the corpus at `root`.

    Raises:
        BadPath: as `inside`, of the last one.
    """
    refusal = BadPath("no file name")
    for name in names:
        try:
            return inside(root, name)
        except BadPath as error:
            refusal = error
    raise refusal
