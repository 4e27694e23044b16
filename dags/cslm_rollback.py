"""DAG `cslm_rollback`: the version that was in production before is there again.

Started by hand, with a reason, which stays in the history (`make history`). The version that is taken out is
archived, and `cslm_promote` refuses it from then on.

A run takes off one version, however often it is tried or cleared; to go back one more, trigger another run.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from airflow.sdk import DAG, Param, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

from dags import defaults, promotion

log = logging.getLogger("airflow.task")


@task
def roll_back() -> None:
    """The alias `production` moves back by one version."""
    context = get_current_context()
    params = context["params"]
    by = context["dag_run"].triggering_user_name or "nobody known"
    try:
        promotion.roll_back(params["model"], by, params["reason"], context["run_id"], log.info)
    except promotion.PromotionRefused as error:
        raise AirflowFailException(str(error)) from None


with DAG(
    dag_id="cslm_rollback",
    description="The previous production version is in production again",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    default_args=defaults.arguments("release") | {"execution_timeout": timedelta(minutes=30)},
    tags=["cslm", "release"],
    params={
        "model": Param("cslm", type="string", description="Registered model"),
        "reason": Param(type="string", minLength=3, description="Why; it stays in the history"),
    },
) as cslm_rollback:
    roll_back()
