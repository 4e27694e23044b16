"""Stages of a registered model's versions: None -> Staging -> Production -> Archived, and who moved them.

Aliases are the truth (`candidate`, `staging`, `production`); tags on the versions say the same to people, and
MLflow's deprecated stage field is kept in step while it exists. Each move is a run of the MLflow experiment
`NAME-releases`, begun before the alias moves and finished after it: a move that was killed half-way is done to
its end by the same command, and finished runs are the history.
"""

from __future__ import annotations

import datetime
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Literal

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from components.promote.items import DIALOGUES, TRANSCRIPTS, Items, read_items
from components.register.result import FIGURES, Damaged, file_digest, verify
from components.stage import open_experiment

STAGING, PRODUCTION = "staging", "production"
EVALUATION, REPORT = "evaluation.json", "evaluation"
"""Names of the evaluation, and of the folder of its report, among a version's artifacts."""
OVERRULED = {"archived", "refused", "rolled_back_because"}
"""Tags that no longer hold when a version is staged or in production."""
Event = Literal["staged", "promoted", "rolled back"]
IN_PRODUCTION: tuple[Event, ...] = ("promoted", "rolled back")


class RegistryFailed(Exception):
    """A move that cannot be made; the message says why, and what to do."""


@dataclass(frozen=True)
class Release:
    """One move in the history of a model."""

    at: datetime.datetime
    event: Event
    version: int
    before: int | None
    """The version that was there before."""
    by: str
    reason: str
    data_version: str
    git_commit: str
    figures: Mapping[str, float]
    run_id: str
    request: str
    """Name of what asked for it, such as a DAG run; empty for a person at a terminal."""


class Registry:
    """The versions of one registered model."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.client = MlflowClient()

    def at(self, alias: str) -> ModelVersion | None:
        """The version that has an alias."""
        try:
            return self.client.get_model_version_by_alias(self.model, alias)
        except mlflow.MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def numbered(self, number: int) -> ModelVersion:
        """The version of this number.

        Raises:
            RegistryFailed: there is none.
        """
        try:
            return self.client.get_model_version(self.model, str(number))
        except mlflow.MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise RegistryFailed(f"{self.model} has no version {number}") from error

    def evaluation(self, version: ModelVersion) -> dict[str, Any]:
        """What was measured of a version before it was registered.

        Raises:
            RegistryFailed: it was registered without its evaluation, or with another one.
        """
        with TemporaryDirectory() as folder:
            try:
                path = self._download(version, EVALUATION, folder)
                verify(version, FIGURES, file_digest(path))
                return dict(json.loads(path.read_text("utf-8")))
            except Damaged as error:
                raise RegistryFailed(str(error)) from error
            except (mlflow.MlflowException, OSError) as error:
                raise RegistryFailed(
                    f"{EVALUATION} of {self.model} version {version.version} cannot be read ({error}). If its "
                    "files are there, an older release registered it without: train it again (make demo)"
                ) from error

    def items(self, version: ModelVersion) -> dict[str, Items]:
        """What each test item added to a version's figures; empty if it was registered without.

        Raises:
            RegistryFailed: its files are no such items.
        """
        listed = mlflow.artifacts.list_artifacts(artifact_uri=self._uri(version, REPORT))
        if not {TRANSCRIPTS, DIALOGUES} <= {Path(file.path).name for file in listed}:
            return {}
        with TemporaryDirectory() as folder:
            files = (self._download(version, f"{REPORT}/{name}", folder) for name in (TRANSCRIPTS, DIALOGUES))
            try:
                return read_items(*files)
            except (ValueError, KeyError) as error:
                raise RegistryFailed(
                    f"the test items of {self.model} version {version.version} ({REPORT}/{TRANSCRIPTS}, "
                    f"{DIALOGUES}) are damaged ({error!r}): train it again (make demo); if it is in "
                    "production, promote another one with --despite-gate"
                ) from error

    def _download(self, version: ModelVersion, name: str, folder: str) -> Path:
        uri = self._uri(version, name)
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))

    def _uri(self, version: ModelVersion, name: str) -> str:
        return f"models:/{self.model}/{version.version}/artifacts/{name}"

    def stage(self, version: ModelVersion, by: str, reason: str) -> None:
        """Give `version` the alias `staging`."""
        self._move("staged", version, STAGING, by, reason)

    def refuse(self, version: ModelVersion, by: str, reason: str) -> None:
        """Note that `version` is not wanted in production; it leaves Staging."""
        if (staged := self.at(STAGING)) and staged.version == version.version:
            self.client.delete_registered_model_alias(self.model, STAGING)
            self._tag(version, {"stage": "None"})
            self._legacy(version, "None")
        self._tag(version, {"refused": f"{_now()} by {by}: {reason}"})

    def promote(
        self, version: ModelVersion, by: str, reason: str, figures: Mapping[str, float], report: str
    ) -> None:
        """Put `version` into production and archive what was there; `report` (Markdown) stays with the move."""
        self._move("promoted", version, PRODUCTION, by, reason, figures, report)

    def roll_back(self, by: str, reason: str, request: str = "") -> ModelVersion:
        """Put the version that was in production before back there; `request` names who asks, for `answered`.

        Raises:
            RegistryFailed: nothing is in production, or nothing was before.
        """
        current = self.at(PRODUCTION)
        if current is None:
            raise RegistryFailed(f"no version of {self.model} is in production: there is nothing to roll back")
        reached = self._reached()
        if reached[-1:] != [int(current.version)] and self.unfinished("rolled back", current):
            self._move("rolled back", current, PRODUCTION, by, reason, request=request)
            return current
        if reached[-1:] != [int(current.version)] or len(reached) < 2:
            raise RegistryFailed(
                f"the history of {self.model} knows no version that was in production before version "
                f"{current.version}; promote the one you want (components.promote promote --version N)"
            )
        version = self.numbered(reached[-2])
        self._tag(current, {"rolled_back_because": reason})
        self._move("rolled back", version, PRODUCTION, by, reason, request=request)
        return version

    def answered(self, request: str) -> Release | None:
        """The finished move that this request has made; None if there is none, or the request has no name."""
        return next((each for each in self.history() if request and each.request == request), None)

    def _reached(self) -> list[int]:
        """Versions in production, each on the one that it replaced: a rollback takes the last one off."""
        stack: list[int] = []
        for release in self.history():
            if release.event == "promoted":
                stack.append(release.version)
            elif release.event == "rolled back":
                stack.pop()
        return stack

    def _move(
        self,
        event: Event,
        version: ModelVersion,
        alias: str,
        by: str,
        reason: str,
        figures: Mapping[str, float] = MappingProxyType({}),
        report: str = "",
        request: str = "",
    ) -> None:
        before = self.at(alias)
        run_id = self._begin(event, version, before, {"by": by, "reason": reason, "request": request})
        for name, value in figures.items():
            self.client.log_metric(run_id, name, value)
        if report:
            self.client.log_text(run_id, report, "gate.md")
        if before is not None and before.version != version.version:
            if alias == PRODUCTION:
                self._tag(before, {"stage": "Archived", "archived": f"{_now()} by {by}: {reason}"})
                self._legacy(before, "Archived")
            else:
                self._tag(before, {"stage": "None"})
                self._legacy(before, "None")
        self.client.set_registered_model_alias(self.model, alias, version.version)
        if alias == PRODUCTION and (staged := self.at(STAGING)) and staged.version == version.version:
            self.client.delete_registered_model_alias(self.model, STAGING)
        self._tag(version, {"stage": alias.title(), event.replace(" ", "_"): f"{_now()} by {by}: {reason}"})
        self._legacy(version, alias.title())
        for name in OVERRULED & version.tags.keys():
            self.client.delete_model_version_tag(self.model, version.version, name)
        self.client.set_terminated(run_id)

    def _begin(
        self, event: Event, version: ModelVersion, before: ModelVersion | None, asked: Mapping[str, str]
    ) -> str:
        """The run that stands for this move: a new one, or the one that a killed move has left."""
        tags = {
            "event": event,
            "model": self.model,
            "version": version.version,
            "before": before.version if before else "",
            **asked,
            **{name: version.tags.get(name, "") for name in ("data_version", "git_commit")},
        }
        if run_id := self.unfinished(event, version):
            if before is not None and before.version == version.version:
                del tags["before"]  # the killed move had moved the alias already, and knows it
            for name, text in tags.items():
                self.client.set_tag(run_id, name, text)
            return run_id
        experiment = open_experiment(f"{self.model}-releases")
        run = self.client.create_run(experiment, run_name=f"version {version.version} {event}", tags=tags)
        return str(run.info.run_id)

    def unfinished(self, event: Event, version: ModelVersion) -> str:
        """Id of the run that a killed move of this version has left; empty if there is none."""
        experiment = self.client.get_experiment_by_name(f"{self.model}-releases")
        if experiment is None:
            return ""
        runs = self.client.search_runs(
            [experiment.experiment_id],
            f"attributes.status = 'RUNNING' and tags.event = '{event}' and tags.version = '{version.version}'",
        )
        return str(runs[0].info.run_id) if runs else ""

    def history(self) -> list[Release]:
        """All moves, the oldest first."""
        experiment = self.client.get_experiment_by_name(f"{self.model}-releases")
        if experiment is None:
            return []
        runs: list[Any] = []
        token = None
        while True:
            page = self.client.search_runs(
                [experiment.experiment_id],
                "attributes.status = 'FINISHED'",
                order_by=["attributes.end_time ASC"],
                page_token=token,
            )
            runs += page
            token = page.token
            if not token:
                return [_release(run) for run in runs]

    def in_production(self, when: datetime.datetime) -> Release | None:
        """The move that put into production what was there at `when`."""
        moves = [each for each in self.history() if each.event in IN_PRODUCTION and each.at <= when]
        return moves[-1] if moves else None

    def _tag(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        for name, text in tags.items():
            self.client.set_model_version_tag(self.model, version.version, name, text)

    def _legacy(self, version: ModelVersion, stage: str) -> None:
        """MLflow's own stage, which is going to be removed."""
        if move := getattr(self.client, "transition_model_version_stage", None):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                move(self.model, version.version, stage)


def _now() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S UTC}"


def _release(run: Any) -> Release:
    tags = run.data.tags
    return Release(
        at=datetime.datetime.fromtimestamp(run.info.end_time / 1000, datetime.UTC),
        event=tags["event"],
        version=int(tags["version"]),
        before=int(tags["before"]) if tags["before"] else None,
        by=tags["by"],
        reason=tags["reason"],
        data_version=tags["data_version"],
        git_commit=tags["git_commit"],
        figures=dict(run.data.metrics),
        run_id=run.info.run_id,
        request=tags.get("request", ""),
    )
