"""DAG `cslm_retrain`: train again, every night or when a corpus has grown, if there is a reason to.

**decide** compares the data of this checkout (DVC's digests) with what the production version was trained on,
and looks at that version's age. Its log says why it trains, or why not. **train** then starts `cslm_train` from
the production version's weights, with another seed, on all corpora: the old ones are the replay. Data that has
drifted too far stops there, in `validate` (`validate.max_drift`), before anything is trained. What comes out is
a candidate, which starts `cslm_promote`.

Who puts new shards into a corpus tells Airflow so, and training begins within the minute:

    dvc add data/mine
    curl -X POST http://127.0.0.1:8080/api/v2/assets/events -H "Authorization: Bearer $TOKEN" \\
         -H 'Content-Type: application/json' -d '{"asset_id": ID_OF_cslm-corpus}'
"""

from __future__ import annotations

import datetime
import logging
import os
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, Param, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from dags import assets, defaults, parameters, places, retraining

log = logging.getLogger("airflow.task")
NIGHTLY = "0 2 * * *"


@task
def decide() -> dict[str, Any]:
    """Is there a reason to train? If so, what `cslm_train` is started with."""
    params = get_current_context()["params"]
    now = datetime.datetime.now(datetime.UTC)
    decision = retraining.decide(params["model"], params["profile"], params["max_age_days"], now)
    log.info("%s: %s", "train" if decision.train else "do not train", decision.why)
    if not decision.train:
        raise AirflowSkipException(decision.why)
    return {
        "profile": params["profile"],
        "base": "production",
        "overrides": {"seed": int(f"{now:%Y%m%d}")},
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
    default_args=defaults.arguments("training") | {"execution_timeout": datetime.timedelta(minutes=10)},
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
    },
) as cslm_retrain:
    decision = decide()
    decision >> TriggerDagRunOperator(
        task_id="train",
        trigger_dag_id="cslm_train",
        conf="{{ ti.xcom_pull('decide') | tojson }}",
    )
