"""The time to a model: a run of `make from-scratch` beside another one, stage by stage.

Run:  make from-scratch RUN=now
      python -m benchmarks.from_scratch var/runs/now ../before/main/var/runs/first

Both are folders that a run leaves behind, of one machine; nothing is trained here. A run of another profile is
refused, and one with a stage that came from the cache, which would be no time at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.results import RESULTS, Measured, record

PROFILE = "from-scratch"
TARGET = "ratio <= 0.5"


def main(
    ours: Annotated[Path, typer.Argument(help="results of a run")],
    before: Annotated[Path, typer.Argument(help="results of the run that it is compared with")],
    results: Annotated[Path, typer.Option(help="where to write")] = RESULTS,
) -> None:
    """Compare two runs that are done."""
    now, then = minutes(ours), minutes(before)
    for stage in dict.fromkeys((*then, *now)):
        print(f"{stage:18} {now.get(stage, 0.0):6.1f} {then.get(stage, 0.0):6.1f} min")
    what, against = "From random weights to a registered model", f"the same, {_name(before)}"
    took = Measured(what, against, now["all"], then["all"], "min", 1, TARGET)
    record({"from_scratch": took}, results)


def minutes(results: Path) -> dict[str, float]:
    """Minutes of each stage of a run, and of `all` of it.

    Raises:
        SystemExit: it has not come to its end, or not everything in it was made from random weights.
    """
    events = _events(results)
    if not events or events[-1]["state"] != "finished":
        raise SystemExit(f"{results}: this run has not come to its end")
    if events[0]["profile"] != PROFILE:
        raise SystemExit(f"{results}: of the profile {events[0]['profile']}, which begins with trained models")
    if cached := [event["stage"] for event in events if event["state"] == "cached"]:
        raise SystemExit(f"{results}: from the cache, so without their time: {', '.join(cached)}")
    took = {event["stage"]: event["seconds"] / 60 for event in events if event["state"] == "ran"}
    return took | {"all": (events[-1]["time"] - events[0]["time"]) / 60}


def _name(results: Path) -> str:
    """What a run is told apart by."""
    prepared = _events(results)[0]
    return f"run {prepared['run']} of commit {prepared['commit'][:7]}"


def _events(results: Path) -> list[dict[str, Any]]:
    file = results / "events.jsonl"
    if not file.exists():
        raise SystemExit(f"{file} is not there: give the folder that a run has left behind, var/runs/NAME")
    events = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [event for event in events if (event["stage"], event["state"]) != ("", "failed")]  # of earlier tries


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
