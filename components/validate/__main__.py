"""Great Expectations decide what is accepted, what goes to quarantine, and whether the run goes on.

Run:  python -m components.validate

Reads `work/corpora/*` and the sections `validate`, `languages` and `corpora` of params.yaml. Writes
`work/accepted`, `work/quarantine` (every refused row with a reason), `metrics/counts.json` (what was accepted,
in counts that two versions are compared by) and `report/validation` (data docs, and `refused.tsv`: table, id,
file and reason of each refused row). The run stops if too large a share of a table is refused, nothing remains,
or the data drifted from the last accepted version: what `statistics.json` in that report said of the last run
that reached its end, kept in `$CSLM_HOME/reference/validation.json`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import typer

from components.settings import Settings
from components.stage import Stage, StageFailed, home, write_json
from components.validate import counts, suites, tables
from components.validate.tables import SIDES, Measured
from cslm.validation import drift, leaks
from cslm.validation.checks import Check, Limits, pair_checks, utterance_checks

REPORT = "report/validation"
REFUSED = "refused.tsv"
STATISTICS_FILE = "statistics.json"
COUNTS = Path("metrics/counts.json")
STATISTICS = ("duration_s", "characters_per_second")
LEAK_KEYS = {
    "utterances": ("text_key",),
    "dialogues": ("question_key",),
    "translations": ("source_key", "target_key"),
}
"""Texts that training must not share with held-out rows; answers are facts, and may come again."""

log = logging.getLogger("cslm")


def limits_of(settings: Settings) -> Limits:
    """What params.yaml allows."""
    allowed = settings.validate_
    return Limits(
        settings.languages,
        allowed.min_duration_s,
        allowed.max_duration_s,
        allowed.max_clipped,
        allowed.min_level_db,
        allowed.characters_per_second,
        ("heldout_voice",) if allowed.shared_speakers == "allow" else ("heldout_voice", "dev", "test"),
    )


def measure_all(corpora: tables.Corpora, limits: Limits) -> tuple[dict[str, Measured], dict[str, list[Check]]]:
    """Statistics of every table, with the reasons of all checks, and the row checks themselves."""
    checks = {"utterances": utterance_checks(limits)}
    checks |= {table: pair_checks(sides, limits) for table, sides in SIDES.items()}
    measured = {"utterances": tables.measure_utterances(corpora, checks["utterances"], limits.max_duration_s)}
    measured |= {table: tables.measure_texts(table, corpora, checks[table]) for table in SIDES}
    present = {table: rows for table, rows in measured.items() if not rows.frame.empty}
    for table, rows in present.items():
        _check_between_rows(table, rows, measured["utterances"], limits)
    heldout = _heldout_texts(present)
    for table, rows in present.items():
        rows.refuse(leaks.shared_texts(rows.accepted(), LEAK_KEYS[table], heldout))
    return measured, checks


def _check_between_rows(table: str, rows: Measured, utterances: Measured, limits: Limits) -> None:
    rows.refuse(leaks.repeated_ids(rows.accepted()))
    if table == "utterances":
        rows.refuse(leaks.repeated_audio(rows.accepted()))
        rows.refuse(leaks.shared_speakers(rows.accepted(), limits.speakers_apart))
    if table == "dialogues" and not utterances.frame.empty:
        splits = utterances.accepted().set_index("id")["split"]
        rows.refuse(leaks.heldout_speech(rows.accepted(), ("question_speech", "answer_speech"), splits))


def _heldout_texts(measured: Mapping[str, Measured]) -> dict[Any, tuple[str, str]]:
    """Every text of a held-out row of any table, with its split and id."""
    texts: dict[Any, tuple[str, str]] = {}
    for table, rows in measured.items():
        texts |= leaks.heldout_texts(rows.accepted(), LEAK_KEYS[table])
    return texts


def run_suites(
    run: suites.Suites,
    measured: Mapping[str, Measured],
    checks: Mapping[str, list[Check]],
    max_quarantined: float,
    speakers_apart: Sequence[str],
) -> None:
    """The suites of each table: as it was delivered, and what was accepted of it."""
    present = {table: rows for table, rows in measured.items() if not rows.frame.empty}
    heldout = _heldout_texts(present)
    for table, rows in present.items():
        accepted = rows.accepted()
        keys = ["id", "audio_hash"] if table == "utterances" else ["id"]
        for name, frame, mostly in (
            (f"{table}_delivered", rows.frame, 1 - max_quarantined),
            (f"{table}_accepted", accepted.assign(leak=_leaks(table, accepted, heldout, speakers_apart)), 1.0),
        ):
            wanted = [suites.columns(list(frame.columns)), *suites.expectations_of(checks[table], mostly)]
            wanted += [suites.unique(key, mostly) for key in keys]
            wanted += [suites.between("leak", 0, 0)] if "leak" in frame else []
            if not frame.empty:
                run.check(name, frame, wanted)


def _leaks(
    table: str,
    accepted: pd.DataFrame,
    heldout: Mapping[Any, tuple[str, str]],
    speakers_apart: Sequence[str],
) -> pd.Series:
    """1 for each accepted training row that shares text or speaker with held-out rows: none should."""
    found = {index for index, _ in leaks.shared_texts(accepted, LEAK_KEYS[table], heldout)}
    if table == "utterances":
        found |= {index for index, _ in leaks.shared_speakers(accepted, speakers_apart)}
    return pd.Series(accepted.index.isin(list(found)).astype(int), index=accepted.index)


def run_share_suite(
    run: suites.Suites,
    measured: Mapping[str, Measured],
    rejected: Mapping[str, int],
    languages: list[str],
    max_quarantined: float,
) -> pd.DataFrame:
    """How much of each table was refused, and what remains of each language; the frame it was decided on."""
    counts = []
    for table, rows in measured.items():
        delivered = len(rows.frame) + rejected[table]
        refused = len(rows.reasons) + rejected[table]
        share = refused / delivered if delivered else 0.0
        counts.append({"id": table, "delivered": delivered, "refused": refused, "refused_share": share})
    shares = pd.DataFrame(counts)
    run.check("refused", shares, [suites.between("refused_share", high=max_quarantined)])
    utterances = measured["utterances"]
    spoken = [] if utterances.frame.empty else utterances.accepted()["language"].tolist()
    remaining = pd.DataFrame([{"id": language, "utterances": spoken.count(language)} for language in languages])
    run.check("remaining", remaining, [suites.between("utterances", low=1)])
    return shares


def run_drift_suite(
    run: suites.Suites, utterances: pd.DataFrame, remembered: Mapping[str, Any], limit: float
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The present version's statistics to remember, and its distances to the last accepted one."""
    present: dict[str, Any] = {}
    distances = []
    groups = utterances.groupby(["source", "language"]) if not utterances.empty else ()
    for (source, language), rows in groups:
        for statistic in STATISTICS:
            name, values = f"{source}.{language}.{statistic}", rows[statistic].to_numpy(float)
            present[name] = drift.remember(values)
            if name in remembered:
                distances.append(
                    {
                        "id": name,
                        "rows": len(values),
                        "distance": drift.distance(values, remembered[name]),
                        "allowed": drift.allowed(len(values), remembered[name], limit),
                    }
                )
    frame = pd.DataFrame(distances)
    if distances:
        run.check("drift", frame, [suites.at_most("distance", "allowed")])
    return present, frame


def main() -> None:
    """Check all corpora (work/corpora); accept, quarantine or stop."""
    with Stage("validate") as stage:
        validate(stage)


def validate(stage: Stage) -> None:
    """The whole stage.

    Raises:
        StageFailed: an expectation on a whole table was not met.
    """
    settings = stage.settings.validate_
    corpora = {key: Path("work/corpora") / key for key in stage.settings.corpora}
    tables.check_schemas(corpora)
    limits = limits_of(stage.settings)
    measured, checks = measure_all(corpora, limits)
    with stage.output("work/accepted") as accepted:
        with stage.output("work/quarantine") as refused:
            for table, rows in measured.items():
                tables.sort_rows(table, corpora, rows.reasons, accepted, refused)
            rejected = tables.pass_rejected(corpora, refused)
        run = suites.Suites()
        run_suites(run, measured, checks, settings.max_quarantined, limits.speakers_apart)
        shares = run_share_suite(run, measured, rejected, stage.settings.languages, settings.max_quarantined)
        reference = home() / "reference" / "validation.json"
        remembered = _read_reference(reference)
        utterances = measured["utterances"]
        kept = utterances.frame if utterances.frame.empty else utterances.accepted()
        profile = stage.settings.profile
        present, distances = run_drift_suite(run, kept, remembered.get(profile, {}), settings.max_drift)
        with stage.output(REPORT) as report:
            write_json(report / STATISTICS_FILE, {profile: present})
            count = tables.list_refused(corpora, measured, report / REFUSED)
            run.write_docs(report, f"{count} rows were refused", REFUSED)
        if count:
            print(f"note: {count} rows refused, see {REPORT}/{REFUSED}", flush=True)
        texts = {table: len(rows.accepted()) for table, rows in measured.items() if table in SIDES}
        write_json(COUNTS, counts.count(kept, texts))
        mlflow.log_artifacts(REPORT, "validation")
        stage.log_metrics(_metrics(run, shares, distances, kept))
        _tell(shares, distances, measured)
        if run.failures:
            raise StageFailed(_complaint(run, shares, reference))


def _read_reference(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise StageFailed(f"{path} is not readable ({error}); remove it: the next run makes it anew") from error
    return content if isinstance(content, dict) else {}


def _metrics(
    run: suites.Suites, shares: pd.DataFrame, distances: pd.DataFrame, kept: pd.DataFrame
) -> dict[str, Any]:
    rows = shares.set_index("id")
    hours = {} if kept.empty else (kept.groupby("language")["duration_s"].sum() / 3600).to_dict()
    return {
        "accepted": (rows["delivered"] - rows["refused"]).to_dict(),
        "refused": rows["refused"].to_dict(),
        "refused_share": rows["refused_share"].to_dict(),
        "hours": hours,
        "expectations": run.run,
        "failed_expectations": len(run.failures),
        "drift": {} if distances.empty else distances.set_index("id")["distance"].to_dict(),
    }


def _tell(shares: pd.DataFrame, distances: pd.DataFrame, measured: Mapping[str, Measured]) -> None:
    for row in shares.itertuples():
        log.info("validate: %s: %s delivered, %s refused", row.id, row.delivered, row.refused)
        for number, reason in list(measured[str(row.id)].reasons.items())[:3]:
            log.info("  %s: %s", measured[str(row.id)].frame["id"][number], reason)
    if distances.empty:
        log.info("validate: no reference of an earlier version yet; drift is checked from the next run on")
    else:
        log.info("validate: largest drift %.3f", distances["distance"].max())


def _complaint(run: suites.Suites, shares: pd.DataFrame, reference: Path) -> str:
    lines = [f"{len(run.failures)} of {run.run} expectations are not met:"]
    lines += [f"  {failure}" for failure in run.failures]
    if not (shares["delivered"] - shares["refused"])[shares["id"] == "utterances"].any():
        lines.append("  no utterances remain after validation")
    if any(failure.suite == "drift" for failure in run.failures):
        lines.append(f"  if the change is meant: raise validate.max_drift, or remove {reference}")
    lines.append(f"  what was refused, and why: {REPORT}/{REFUSED} and {REPORT}/index.html")
    return "\n".join(lines)


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
