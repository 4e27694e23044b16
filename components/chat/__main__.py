"""A page to talk to the registered model: ask by voice, file or keyboard, hear the answer while it is made.

Run:  python -m components.chat        (make chat)

Serves the version of the model that has the alias `production`, else `candidate`, on 127.0.0.1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import mlflow
import typer
from mlflow import MlflowClient

from components.chat.page import build, serve
from components.stage import tracking_uri
from cslm.conversation import Assistant

ALIASES = ("production", "candidate")


def main(
    name: Annotated[str, typer.Option(help="registered model")] = "cslm",
    host: Annotated[str, typer.Option(help="address to serve on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to serve on")] = 7860,
) -> None:
    """Serve the page until it is interrupted."""
    assistant, title = open_registered(name)
    page = build(assistant, title)
    print(f"talk to {title}: http://{host}:{port}  (Ctrl-C ends)", flush=True)
    serve(page, host, port)


def open_registered(name: str) -> tuple[Assistant, str]:
    """The assistant of the version in use, and what to call it.

    Raises:
        SystemExit: no version has one of the aliases, or it cannot speak.
    """
    mlflow.set_tracking_uri(tracking_uri())
    client = MlflowClient()
    for alias in ALIASES:
        try:
            version = client.get_model_version_by_alias(name, alias)
        except mlflow.MlflowException:
            continue
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{name}@{alias}")) / "artifacts"
        if not (folder / "decoder").is_dir():
            sys.exit(f"{name} version {version.version} ({alias}) has no speech decoder; run make demo again")
        assistant = Assistant.load(folder / "model", folder / "tokenizer", folder / "decoder")
        return assistant, f"{name} version {version.version} ({alias})"
    sys.exit(f"no version of {name} is registered at {tracking_uri()}; make one first: make demo")


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
