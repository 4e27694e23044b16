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
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import typer

from components.settings import Settings
from components.stage import Stage, StageFailed, home, write_json
from components.validate import counts, suites, tables
from components.validate.tables import SIDES
from cslm.scratch import file_of, scratch_database
from cslm.validation import drift, leaks
from cslm.validation.checks import Check, Limits, pair_checks, utterance_checks
from cslm.validation.statistics import Statistics

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


def measure_all(
    corpora: tables.Corpora, limits: Limits, database: sqlite3.Connection
) -> tuple[dict[str, Statistics], dict[str, list[Check]]]:
    """Statistics of every table, with the reasons of all checks, and the row checks themselves."""
    checks = {"utterances": utterance_checks(limits)}
    checks |= {table: pair_checks(sides, limits) for table, sides in SIDES.items()}
    longest = limits.max_duration_s
    measured = {"utterances": tables.measure_utterances(corpora, checks["utterances"], longest, database)}
    measured |= {table: tables.measure_texts(table, corpora, checks[table], database) for table in SIDES}
    for table, rows in measured.items():
        rows.refuse(leaks.repeated_ids(rows))
        if table == "utterances":
            rows.refuse(leaks.repeated_audio(rows))
            rows.refuse(leaks.shared_speakers(rows, limits.speakers_apart))
        if table == "dialogues":
            speech = ("question_speech", "answer_speech")
            rows.refuse(leaks.heldout_speech(rows, speech, measured["utterances"]))
    heldout = leaks.HeldOutTexts(database)
    for table, rows in measured.items():
        heldout.add(rows, LEAK_KEYS[table])
    for table, rows in measured.items():
        rows.refuse(leaks.shared_texts(rows, LEAK_KEYS[table]))
    return measured, checks


def run_suites(
    run: suites.Suites,
    measured: Mapping[str, Statistics],
    checks: Mapping[str, list[Check]],
    max_quarantined: float,
    speakers_apart: Sequence[str],
) -> None:
    """The suites of each table: as it was delivered, and what was accepted of it."""
    for table, rows in measured.items():
        if not rows:
            continue
        columns = ", ".join(rows.columns)
        delivered = f"SELECT {columns} FROM {table}"
        leaking = _leaking(rows, speakers_apart)
        accepted = f"SELECT {columns}, number IN ({leaking}) AS leak FROM {table} WHERE reason IS NULL"
        keys = ["id", "audio_hash"] if table == "utterances" else ["id"]
        for name, query, names, mostly in (
            (f"{table}_delivered", delivered, rows.columns, 1 - max_quarantined),
            (f"{table}_accepted", accepted, [*rows.columns, "leak"], 1.0),
        ):
            wanted = [suites.columns(names), *suites.expectations_of(checks[table], mostly)]
            wanted += [suites.unique(key, mostly) for key in keys]
            wanted += [suites.between("leak", 0, 0)] if "leak" in names else []
            if query is delivered or rows.accepted:
                run.check_query(name, query, wanted)


def _leaking(rows: Statistics, speakers_apart: Sequence[str]) -> str:
    """Numbers of accepted training rows that share text or speaker with held-out rows: there should be none."""
    found = {number for number, _ in leaks.shared_texts(rows, LEAK_KEYS[rows.name])}
    if rows.name == "utterances":
        found |= {number for number, _ in leaks.shared_speakers(rows, speakers_apart)}
    return ", ".join(map(str, sorted(found)))


def run_share_suite(
    run: suites.Suites,
    measured: Mapping[str, Statistics],
    rejected: Mapping[str, int],
    languages: list[str],
    max_quarantined: float,
) -> pd.DataFrame:
    """How much of each table was refused, and what remains of each language; the frame it was decided on."""
    counts = []
    for table, rows in measured.items():
        delivered = rows.rows + rejected[table]
        refused = rows.refused + rejected[table]
        share = refused / delivered if delivered else 0.0
        counts.append({"id": table, "delivered": delivered, "refused": refused, "refused_share": share})
    shares = pd.DataFrame(counts)
    run.check("refused", shares, [suites.between("refused_share", high=max_quarantined)])
    spoken = dict(measured["utterances"].ask("language, count(*) FROM {accepted} GROUP BY language"))
    remaining = pd.DataFrame([{"id": each, "utterances": spoken.get(each, 0)} for each in languages])
    run.check("remaining", remaining, [suites.between("utterances", low=1)])
    return shares


def run_drift_suite(
    run: suites.Suites, utterances: Statistics, remembered: Mapping[str, Any], limit: float
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The present version's statistics to remember, and its distances to the last accepted one."""
    present: dict[str, Any] = {}
    distances = []
    for source, language in utterances.groups("source", "language"):
        for statistic in STATISTICS:
            name = f"{source}.{language}.{statistic}"
            values = utterances.values(statistic, {"source": source, "language": language})
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
    with Stage("validate") as stage, scratch_database(home()) as database:
        os.environ["SQLITE_TMPDIR"] = str(file_of(database).parent)  # where it sorts what is large
        validate(stage, database)


def validate(stage: Stage, database: sqlite3.Connection) -> None:
    """The whole stage.

    Raises:
        StageFailed: an expectation on a whole table was not met.
    """
    settings = stage.settings.validate_
    corpora = {key: Path("work/corpora") / key for key in stage.settings.corpora}
    tables.check_schemas(corpora)
    limits = limits_of(stage.settings)
    measured, checks = measure_all(corpora, limits, database)
    with stage.output("work/accepted") as accepted:
        with stage.output("work/quarantine") as refused:
            for rows in measured.values():
                tables.sort_rows(rows, corpora, accepted, refused)
            rejected = tables.pass_rejected(corpora, refused)
        run = suites.Suites(file_of(database))
        run_suites(run, measured, checks, settings.max_quarantined, limits.speakers_apart)
        shares = run_share_suite(run, measured, rejected, stage.settings.languages, settings.max_quarantined)
        reference = home() / "reference" / "validation.json"
        remembered = _read_reference(reference)
        utterances, profile = measured["utterances"], stage.settings.profile
        present, distances = run_drift_suite(run, utterances, remembered.get(profile, {}), settings.max_drift)
        with stage.output(REPORT) as report:
            write_json(report / STATISTICS_FILE, {profile: present})
            count = tables.list_refused(corpora, measured.values(), report / REFUSED)
            run.write_docs(report, f"{count} rows were refused", REFUSED)
        if count:
            print(f"note: {count} rows refused, see {REPORT}/{REFUSED}", flush=True)
        held_out = "1 FROM {accepted} WHERE split = 'test' LIMIT 1"
        if not any(measured[table].ask(held_out) for table in ("utterances", "dialogues")):
            print("note: no row has the split test, without which the evaluation fails", flush=True)
        texts = {table: measured[table].accepted for table in SIDES}
        write_json(COUNTS, counts.count(utterances, texts))
        mlflow.log_artifacts(REPORT, "validation")
        short = {table: leaks.not_looked_for(rows, LEAK_KEYS[table]) for table, rows in measured.items()}
        stage.log_metrics(_metrics(run, shares, distances, utterances) | {"heldout_not_looked_for": short})
        _tell(shares, distances, measured, short)
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
    run: suites.Suites, shares: pd.DataFrame, distances: pd.DataFrame, utterances: Statistics
) -> dict[str, Any]:
    rows = shares.set_index("id")
    hours = dict(utterances.ask("language, sum(duration_s) / 3600 FROM {accepted} GROUP BY language"))
    return {
        "accepted": (rows["delivered"] - rows["refused"]).to_dict(),
        "refused": rows["refused"].to_dict(),
        "refused_share": rows["refused_share"].to_dict(),
        "hours": hours,
        "expectations": run.run,
        "failed_expectations": len(run.failures),
        "drift": {} if distances.empty else distances.set_index("id")["distance"].to_dict(),
    }


def _tell(
    shares: pd.DataFrame,
    distances: pd.DataFrame,
    measured: Mapping[str, Statistics],
    short: Mapping[str, int],
) -> None:
    for row in shares.itertuples():
        log.info("validate: %s: %s delivered, %s refused", row.id, row.delivered, row.refused)
        name = str(row.id)
        for refused, reason in measured[name].ask(f"id, reason FROM {name} WHERE reason IS NOT NULL LIMIT 3"):
            log.info("  %s: %s", refused, reason)
        if short[name]:
            log.info("validate: %s: %s held-out texts say too little to be looked for", name, short[name])
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
