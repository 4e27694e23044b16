"""A page to talk to the registered model: ask by voice, file or keyboard, hear the answer while it is made.

Run:  python -m components.chat        (make chat)

Serves the version of the model that has the alias `production`, else `candidate`, on 127.0.0.1.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import mlflow
import typer
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository

from components.chat.page import build, serve
from components.register.result import RESULT, Damaged, result_digest, verify
from components.stage import give_up, home, tracking_uri
from cslm.conversation import Assistant

ALIASES = ("production", "candidate")
ASK_AGAIN_S = 15


def main(
    name: Annotated[str, typer.Option(help="registered model")] = "cslm",
    host: Annotated[str, typer.Option(help="address to serve on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to serve on")] = 7860,
    wait: Annotated[bool, typer.Option("--wait", help="wait until a version is registered")] = False,
) -> None:
    """Serve the page until it is interrupted."""
    if wait:
        await_registered(name)
    assistant, title = open_registered(name)
    page = build(assistant, title)
    print(f"talk to {title}: http://{host}:{port}  (Ctrl-C ends)", flush=True)
    serve(page, host, port)


def await_registered(name: str) -> None:
    """Return as soon as a version has one of the aliases."""
    told = False
    while True:
        with suppress(mlflow.MlflowException):  # the registry does not answer yet
            if in_use(name) is not None:
                return
        if not told:
            print(f"no version of {name} is registered at {tracking_uri()} yet: waiting for one", flush=True)
            told = True
        time.sleep(ASK_AGAIN_S)


def in_use(name: str) -> tuple[str, str] | None:
    """Alias and number of the version to serve; None if there is none.

    Raises:
        MlflowException: the registry does not answer.
    """
    client = MlflowClient(tracking_uri())
    for alias in ALIASES:
        try:
            return alias, str(client.get_model_version_by_alias(name, alias).version)
        except mlflow.MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
    return None


def open_registered(name: str) -> tuple[Assistant, str]:
    """The assistant of the version in use, and what to call it.

    Raises:
        SystemExit: no version has one of the aliases, its files are damaged or cannot be used, it cannot speak,
            or the registry or the store of its files does not do its work (75 if that is away).
    """
    mlflow.set_tracking_uri(tracking_uri())
    try:
        found = in_use(name)
    except mlflow.MlflowException as error:
        give_up(
            f"MLflow at {tracking_uri()} does not do its work ({error}); start it (make up), then try again",
            error,
        )
    if found is None:
        sys.exit(f"no version of {name} is registered at {tracking_uri()}; make one first: make demo")
    alias, version = found
    title = f"{name} version {version} ({alias})"
    try:
        folder = files_of(name, version)
    except Damaged as error:
        sys.exit(str(error))
    except (mlflow.MlflowException, Boto3Error, BotoCoreError, ClientError, OSError) as error:
        give_up(
            f"the files of {title} cannot be brought here: {error}. Check that their store answers, "
            f"AWS_ENDPOINT_URL and the keys, and the disk of {home()}, then try again",
            error,
        )
    if not (folder / "decoder").is_dir():
        sys.exit(f"{title} has no speech decoder; run make demo again")
    try:
        return Assistant.load(folder / "model", folder / "tokenizer", folder / "decoder"), title
    except (OSError, ValueError) as error:
        sys.exit(f"{title} cannot be opened: {error}. If an older release registered it, run make demo again")


def files_of(name: str, version: str) -> Path:
    """Folder with all that was registered of a version, checked against its digest.

    Files of this machine are read where they lie. Others are brought to `$CSLM_HOME/chat/NAME/VERSION`, where
    the next start finds them; those of another version go when a new one comes.

    Raises:
        Damaged: it is something else now.
    """
    registered, uri = MlflowClient().get_model_version(name, version), f"models:/{name}/{version}"
    where = ModelsArtifactRepository.get_underlying_uri(uri)  # type: ignore[no-untyped-call]  # MLflow's
    if urlsplit(where).scheme in ("", "file"):
        return _whole(Path(mlflow.artifacts.download_artifacts(uri)), registered)
    kept = home() / "chat" / name / version
    if kept.is_dir() and RESULT in registered.tags:
        with suppress(Damaged, OSError, ValueError):  # it is brought again
            return _whole(kept, registered)
    shutil.rmtree(kept.parent, ignore_errors=True)
    partial = kept.with_name(f".{version}.partial")
    partial.mkdir(parents=True)
    mlflow.artifacts.download_artifacts(uri, dst_path=str(partial))
    partial.rename(kept)
    return _whole(kept, registered)


def _whole(folder: Path, registered: ModelVersion) -> Path:
    """The artifacts in the folder of a version's model, if their digest is that of the version."""
    artifacts = folder / "artifacts"
    evaluation = artifacts / "evaluation.json"
    if evaluation.exists():  # else an older release registered it
        parts = [artifacts / part for part in ("model", "tokenizer", "decoder")]
        digest = result_digest(parts, json.loads(evaluation.read_text("utf-8")))
        verify(registered, RESULT, digest)
    return artifacts


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
