"""DAG `cslm_retrain`: train again, every night or when a corpus has grown, if there is a reason to.

**decide** compares the data of this checkout with what the production version was trained on, and looks at that
version's age. Where DVC's digests differ, the new data is taken in and validated (a training that follows finds
that in the cache), and it must have grown or drifted enough: `min_growth`, `min_drift`. Less waits until the
version is old. Its log, and its XCom `why`, say why it trains, or why not. Data that cannot be used, or has
drifted too far (`validate.max_drift`), fails here, before anything is trained. While `cslm_train` is queued or
running it starts no other: a training may take days, and what comes out of it changes the answer.

**train** then starts `cslm_train` from the production version's weights, with another seed, on all corpora: the
old ones are the replay. What comes out is a candidate, which starts `cslm_promote`.

Who puts new shards into a corpus tells Airflow so, and they are looked at within the minute:

    dvc add data/mine
    make corpus-landed
"""

from __future__ import annotations

import datetime
import logging
import os
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, Param, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from dags import assets, defaults, drift, failures, parameters, places, retraining

log = logging.getLogger("airflow.task")
NIGHTLY = "0 2 * * *"
BUSY = (
    "a run of cslm_train is queued or running, and what comes out of it is looked at first; "
    "this is asked again at the next time of the schedule, or trigger cslm_retrain when that run has ended"
)
LONGEST = datetime.timedelta(hours=12)
"""A large corpus takes hours to be taken in."""


@task
def decide() -> dict[str, Any]:
    """Is there a reason to train? If so, what `cslm_train` is started with."""
    context = get_current_context()
    params, profile, now = context["params"], context["params"]["profile"], datetime.datetime.now(datetime.UTC)
    limits = retraining.Limits(params["max_age_days"], params["min_growth"], params["min_drift"])
    name = f"retrain-{now:%Y%m%d-%H%M%S}"
    with failures.readable():
        if context["ti"].get_dr_count("cslm_train", states=["queued", "running"]):
            decision = retraining.Decision(False, BUSY)
        else:
            decision = retraining.decide(
                params["model"], profile, limits, now, lambda: drift.of_checkout(name, profile, log.info)
            )
    log.info("%s: %s", "train" if decision.train else "do not train", decision.why)
    context["ti"].xcom_push("why", decision.why)
    if not decision.train:
        raise AirflowSkipException(decision.why)
    return {
        "profile": profile,
        "base": "production",
        "overrides": {"seed": int(f"{now:%Y%m%d}"), "register.model": params["model"]},
        "why": decision.why,
    }


with DAG(
    dag_id="cslm_retrain",
    description="Every night, or when data arrives: train again if there is a reason",
    doc_md=__doc__,
    schedule=AssetOrTimeSchedule(
        timetable=CronTriggerTimetable(os.environ.get("CSLM_RETRAIN_CRON") or NIGHTLY, timezone="UTC"),
        assets=[assets.CORPUS],
    ),
    start_date=datetime.datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    default_args=defaults.arguments("training") | {"execution_timeout": LONGEST},
    tags=["cslm", "training"],
    params={
        "model": Param("cslm", type="string", description="Registered model"),
        "profile": Param(
            parameters.DEFAULT_PROFILE,
            enum=parameters.profiles(places.PROJECT),
            description="params.yaml, changed by profiles/PROFILE.yaml",
        ),
        "max_age_days": Param(
            30, type="number", exclusiveMinimum=0, description="Train again after so many days, new data or not"
        ),
        "min_growth": Param(
            10,
            type="number",
            exclusiveMinimum=0,
            description="New data is worth a training if hours or speakers of a language, dialogues or "
            "translations have grown (or shrunk) by so many per cent",
        ),
        "min_drift": Param(
            0.2,
            type="number",
            exclusiveMinimum=0,
            maximum=1,
            description="... or if durations, levels or speech rates have drifted so far (Kolmogorov and "
            "Smirnov's distance, 0 to 1)",
        ),
    },
) as cslm_retrain:
    decision = decide()
    decision >> TriggerDagRunOperator(
        task_id="train",
        trigger_dag_id="cslm_train",
        trigger_run_id="retrain__{{ run_id }}",  # who clears this task goes on with the same training
        reset_dag_run=True,
        conf="{{ ti.xcom_pull('decide') | tojson }}",
    )
