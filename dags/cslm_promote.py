"""DAG `cslm_promote`: a candidate becomes the production version, if the gate and a person agree.

It starts by itself when `cslm_train` has registered a candidate, or by hand with the number of a version.

1. **gate** compares the version with production on the same held-out test items, each figure in its direction,
   with a tolerance and 95 % intervals (components/promote/gate.yaml), and gives it the alias `staging`. A worse
   version ends the run here, with the reason.
2. **approve** waits for a person, who sees the gate's table (page *Required actions*) and says why.
3. **promote** moves the alias `production` and archives the version that was there; or, if the person said no,
   **reject** takes the version out of Staging.

`make history` tells who promoted what, when, and why; `cslm_rollback` takes it back.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG, Context, Param, TriggerRule, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from dags import assets, defaults, promotion

log = logging.getLogger("airflow.task")
REJECTION = "rejection"
PATIENCE = timedelta(days=7)
"""How long a candidate waits for a person; afterwards the run fails, and production stays as it is."""


class Approval(ApprovalOperator):
    """Airflow's own keeps who answered, and why, only of a yes; this one of a no, too (XCom `rejection`)."""

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Called with a person's answer."""
        if event.get("chosen_options") == [self.REJECT]:
            said = {key: event[key] for key in ("params_input", "responded_by_user")}
            context["ti"].xcom_push(REJECTION, said)
        return super().execute_complete(context, event)


def asked(context: Mapping[str, Any]) -> tuple[str, int | None]:
    """Model and version: of the candidate whose registration has started the run, else of the parameters."""
    told = context["triggering_asset_events"].get(assets.CANDIDATE)
    extra = told[-1].extra if told else {}
    given = extra if "model" in extra else context["params"]  # somebody else may tell of a candidate, too
    return given["model"], given["version"]


@task
def gate() -> dict[str, Any]:
    """Is it worse than what is in production?"""
    try:
        facts = promotion.gate(*asked(get_current_context()), log.info)
    except promotion.PromotionRefused as error:
        raise AirflowFailException(str(error)) from None
    if facts["version"] == facts["production"]:
        raise AirflowSkipException(f"version {facts['version']} is in production already")
    return facts


@task
def promote(facts: dict[str, Any], approval: dict[str, Any]) -> None:
    """The alias `production` moves; the version that was there is archived."""
    try:
        promotion.promote(facts["model"], facts, *_answer(approval, "approved in Airflow"), log.info)
    except promotion.PromotionRefused as error:
        raise AirflowFailException(str(error)) from None


@task(trigger_rule=TriggerRule.NONE_FAILED)
def reject() -> None:
    """If the person said no: the version leaves Staging, with the reason."""
    context = get_current_context()
    facts, rejection = context["ti"].xcom_pull("gate"), context["ti"].xcom_pull("approve", key=REJECTION)
    if rejection is None:
        raise AirflowSkipException("nobody rejected it")
    said = _answer(rejection, "rejected in Airflow")
    try:
        promotion.reject(facts["model"], facts["version"], *said, log.info)
    except promotion.PromotionRefused as error:
        raise AirflowFailException(str(error)) from None


def _answer(approval: dict[str, Any], otherwise: str) -> tuple[str, str]:
    """Who answered, and the reason that was given."""
    by = (approval.get("responded_by_user") or {}).get("name") or "nobody known"
    return by, (approval.get("params_input") or {}).get("reason") or otherwise


with DAG(
    dag_id="cslm_promote",
    description="Gate, a person's approval, and the move to production",
    doc_md=__doc__,
    schedule=[assets.CANDIDATE],
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=8,  # one that waits for a person holds up no newer candidate
    is_paused_upon_creation=False,
    default_args=defaults.arguments("release") | {"execution_timeout": timedelta(minutes=30)},
    tags=["cslm", "release"],
    params={
        "model": Param("cslm", type="string", description="Registered model"),
        "version": Param(
            None, type=["integer", "null"], minimum=1, description="Number of the version; empty: the candidate"
        ),
    },
) as cslm_promote:
    compared = gate()
    approve = Approval(
        task_id="approve",
        subject="{% set facts = ti.xcom_pull('gate') %}Version {{ facts['version'] }} of {{ facts['model'] }} "
        "into production?",
        body="{{ ti.xcom_pull('gate')['report'] }}",
        params={"reason": Param("", type="string", description="Why, or why not; it stays with the version")},
        response_timeout=PATIENCE,
        notifiers=[defaults.Asking()],
        retries=0,
    )
    compared >> approve
    promote(compared, approve.output) >> reject()
