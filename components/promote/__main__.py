"""Move versions of the registered model through the registry's stages, and tell who moved what, and why.

Run:  python -m components.promote gate                       candidate against production, figure by figure
      python -m components.promote compare --against 3        candidate against any version; nothing moves
      python -m components.promote promote --reason "..."     candidate -> production, if the gate lets it
      python -m components.promote reject --reason "..."      candidate is not wanted in production
      python -m components.promote rollback --reason "..."    the version before is in production again
      python -m components.promote history --on 2026-11-27    what was there at the end of that day

Needs only the MLflow server (MLFLOW_TRACKING_URI, or this checkout's own). Exit code 1 if the gate refuses,
75 if that server is away.
"""

from __future__ import annotations

import datetime
import getpass
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import mlflow
import typer
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from mlflow.entities.model_registry import ModelVersion

from components.promote.gate import REFUSED, Check, compare, figures_alone, incomparable, load_rules, table
from components.promote.registry import PRODUCTION, STAGING, Registry, RegistryFailed, Release
from components.stage import give_up, tracking_uri, write_json

CANDIDATE = "candidate"
FIRST = "nothing is in production yet, so there is nothing to lose"


class OtherUnreadable(RegistryFailed):
    """What was measured of the version to be replaced cannot be read; a person may do without it."""


Model = Annotated[str, typer.Option(help="registered model")]
Version = Annotated[
    int | None, typer.Option(help="number of the version; by default the one with alias candidate")
]
By = Annotated[str, typer.Option(help="who decides")]
Reason = Annotated[str, typer.Option(help="why; it stays in the history")]

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def gate(
    model: Model = "cslm",
    version: Version = None,
    out: Annotated[Path | None, typer.Option(help="also write the result to this JSON file")] = None,
) -> None:
    """Compare a version with production on the same held-out items, and stage it if it may pass."""
    registry = _registry(model)
    candidate, current = _candidate(registry, version), registry.at(PRODUCTION)
    checks, why = judge(registry, candidate, current)
    lines = list(describe(candidate, current, checks, why))
    if out is not None:
        facts: dict[str, Any] = {
            "version": int(candidate.version),
            "production": int(current.version) if current else None,
            "passed": not why,
            "refused_because": why,
            "checks": [asdict(check) for check in checks],
            "report": "\n".join(lines),
        }
        write_json(out, facts)
    print("\n".join(lines))
    if why:
        registry.refuse(candidate, "gate", why)
        sys.exit(f"refused: {why}")
    staged = registry.at(STAGING)
    if candidate.version not in {each.version for each in (staged, current) if each}:
        registry.stage(candidate, "gate", "the gate let it pass")


@app.command(name="compare")
def compare_versions(
    against: Annotated[int, typer.Option(help="version to compare with")],
    model: Model = "cslm",
    version: Version = None,
) -> None:
    """Compare a version with any other one on the same held-out items; nothing moves."""
    registry = _registry(model)
    candidate, other = _candidate(registry, version), registry.numbered(against)
    checks, why = judge(registry, candidate, other)
    print("\n".join(describe(candidate, other, checks, why)))


@app.command()
def promote(
    reason: Reason,
    by: By = "",
    model: Model = "cslm",
    version: Version = None,
    expect_production: Annotated[
        int | None, typer.Option(help="refuse if another version is in production now (0: none)")
    ] = None,
    despite_gate: Annotated[bool, typer.Option(help="promote what the gate refuses")] = False,
) -> None:
    """Put a version into production and archive the one that was there."""
    registry = _registry(model)
    candidate, current = _candidate(registry, version), registry.at(PRODUCTION)
    now = int(current.version) if current else 0
    if expect_production is not None and now not in (expect_production, int(candidate.version)):
        sys.exit(
            f"version {now} is in production now, not {expect_production} as when it was compared; "
            "compare again (gate), then promote"
        )
    if now == int(candidate.version) and not registry.unfinished("promoted", candidate):
        print(f"version {candidate.version} is in production already")
        return
    try:
        checks, why = judge(registry, candidate, current)
    except OtherUnreadable as error:
        if not despite_gate:
            raise
        checks, why = [], str(error)
    if why and not despite_gate:
        sys.exit(f"refused: {why} (python -m components.promote gate shows all figures)")
    reason = f"{reason} [despite the gate: {why}]" if why else reason
    figures = {check.name: check.candidate for check in checks if check.candidate is not None}
    report = "\n".join(describe(candidate, current, checks, why))
    registry.promote(candidate, by or getpass.getuser(), reason, figures, report)
    print(f"version {candidate.version} is in production" + (f", version {now} is archived" if now else ""))


@app.command()
def reject(reason: Reason, by: By = "", model: Model = "cslm", version: Version = None) -> None:
    """Note that a version is not wanted in production, and why; it leaves Staging."""
    registry = _registry(model)
    candidate, current = _candidate(registry, version), registry.at(PRODUCTION)
    if current and current.version == candidate.version:
        sys.exit(f"version {candidate.version} is in production; take it out (rollback)")
    registry.refuse(candidate, by or getpass.getuser(), reason)
    print(f"version {candidate.version} is refused")


@app.command()
def rollback(
    reason: Reason,
    by: By = "",
    model: Model = "cslm",
    request: Annotated[
        str, typer.Option(help="name of this request: asked again by the same name, nothing moves")
    ] = "",
) -> None:
    """Put the version that was in production before back there."""
    registry = _registry(model)
    if done := registry.answered(request):
        at = f"{done.at:%Y-%m-%d %H:%M:%S} UTC"
        print(f"{request} has put version {done.version} back already, at {at}: nothing moves")
        return
    current = registry.at(PRODUCTION)
    version = registry.roll_back(by or getpass.getuser(), reason, request)
    archived = current.version if current else "-"
    print(f"version {version.version} is in production again, version {archived} is archived")


@app.command()
def history(
    model: Model = "cslm",
    on: Annotated[
        str, typer.Option(help="only what was in production at the end of this day (YYYY-MM-DD)")
    ] = "",
) -> None:
    """Who moved which version when, from which data, on which figures, and why."""
    registry = _registry(model)
    if not on:
        releases = registry.history()
        print(
            "\n".join(line for release in releases for line in _told(release)) if releases else _nothing(model)
        )
        return
    try:
        day = datetime.datetime.strptime(on, "%Y-%m-%d").replace(tzinfo=datetime.UTC)
    except ValueError:
        sys.exit(f"--on {on!r} is no day: YYYY-MM-DD is needed, such as 2026-11-27")
    found = registry.in_production(day + datetime.timedelta(days=1, microseconds=-1))
    print("\n".join(_told(found)) if found else f"nothing was in production at the end of {on} (UTC)")


def judge(registry: Registry, candidate: ModelVersion, current: ModelVersion | None) -> tuple[list[Check], str]:
    """All checks against another version, and why this one may not replace it (empty if it may).

    Raises:
        RegistryFailed: what was measured of this one cannot be read.
        OtherUnreadable: that of the other one.
    """
    evaluation = registry.evaluation(candidate)
    if because := candidate.tags.get("rolled_back_because"):
        return [], f"version {candidate.version} was in production and taken out again ({because})"
    rules = load_rules()
    if current is None or current.version == candidate.version:
        return compare(evaluation, evaluation, rules), ""
    its_items = registry.items(candidate)
    try:
        production, items = registry.evaluation(current), registry.items(current)
    except RegistryFailed as error:
        raise OtherUnreadable(str(error)) from error
    if reason := incomparable(evaluation, production):
        return [], f"versions {candidate.version} and {current.version} cannot be compared: {reason}"
    checks = compare(evaluation, production, rules, (its_items, items))
    failed = [check.name for check in checks if check.verdict in REFUSED]
    return checks, f"worse than version {current.version}: {', '.join(failed)}" if failed else ""


def describe(
    candidate: ModelVersion, current: ModelVersion | None, checks: list[Check], why: str
) -> Iterator[str]:
    """Markdown for the person who decides."""
    against = f" against version {current.version}" if current else f": {FIRST}"
    if current and PRODUCTION in current.aliases:
        against += ", which is in production"
    yield f"**Version {candidate.version}** of {candidate.name}{against}"
    yield ""
    for tag in ("git_commit", "data_version", "profile", "pipeline_run"):
        yield f"- {tag}: `{candidate.tags.get(tag, '-')}`"
    yield ""
    if checks:
        yield from table(checks) if current else figures_alone(checks)
        yield ""
    yield f"Gate: {'refused, ' + why if why else 'passed'}"


def _told(release: Release) -> Iterator[str]:
    before = (
        f" (before: version {release.before})" if release.before and release.before != release.version else ""
    )
    at = f"{release.at:%Y-%m-%d %H:%M:%S} UTC"
    yield f"{at}  version {release.version} {release.event} by {release.by}{before}"
    yield f"    why     {release.reason}"
    yield f"    data    {release.data_version or '-'}"
    yield f"    commit  {release.git_commit or '-'}"
    if release.figures:
        yield "    on      " + ", ".join(
            f"{name} {value:.4g}" for name, value in sorted(release.figures.items())
        )


def _nothing(model: str) -> str:
    return f"no version of {model} has been staged or promoted yet at {tracking_uri()}"


def _registry(model: str) -> Registry:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    mlflow.set_tracking_uri(tracking_uri())
    return Registry(model)


def _candidate(registry: Registry, version: int | None) -> ModelVersion:
    found = registry.at(CANDIDATE) if version is None else registry.numbered(version)
    if found is None:
        raise RegistryFailed(
            f"no version of {registry.model} is a candidate at {tracking_uri()}; train one first: make demo"
        )
    return found


def run() -> None:
    """The program: failures that are explained end it with one line."""
    try:
        app()
    except RegistryFailed as error:
        give_up(str(error), error)
    except mlflow.MlflowException as error:
        give_up(
            f"MLflow at {tracking_uri()} does not do its work ({error}); start it (make up), then try again",
            error,
        )
    except (Boto3Error, BotoCoreError, ClientError, OSError) as error:
        give_up(f"the store of MLflow's files does not do its work ({error}); then try again", error)


if __name__ == "__main__":
    run()
