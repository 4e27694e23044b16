"""DAG `cslm_add_language`: a registered version learns one more language, and keeps those it has.

1. **check** finds the version, and what it was trained on.
2. **train** starts `cslm_train` from it with the profile `add-language`, on the corpora of the new language and
   on all that the version has seen: speech units stay what they are; sounds, words and voices are added; both
   phases go on (as the paper adds one: speech with text, and translations to a known language).
3. **compare** tells in its log what the languages of before have gained and lost.

What comes out is a candidate like any other, which starts `cslm_promote`. An example is in docs/languages.md.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, Param, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

from dags import continuation, defaults, failures, languages, parameters, places, promotion

log = logging.getLogger("airflow.task")
PROFILE = "add-language"
LONGEST = timedelta(days=14)


@task
def check() -> dict[str, Any]:
    """Can the language be added? If so, from which version, and what `cslm_train` is started with."""
    params = get_current_context()["params"]
    try:
        with failures.readable():
            version, overrides = languages.parameters_with(
                params["model"], params["base"], params["language"], params["corpora"]
            )
    except (languages.CannotAdd, continuation.CannotContinue) as error:
        raise AirflowFailException(str(error)) from None
    return {
        "version": version,
        "conf": {
            "profile": params["profile"],
            "base": str(version),
            "overrides": overrides | {"register.model": params["model"]} | (params["overrides"] or {}),
            "why": f"{params['language']} is added to version {version}",
        },
    }


@task
def compare(facts: dict[str, Any]) -> None:
    """Tell what the languages of before have gained and lost."""
    context = get_current_context()
    made = context["ti"].xcom_pull("register", dag_id="cslm_train", run_id=context["run_id"])
    try:
        promotion.compare(context["params"]["model"], made, facts["version"], log.info)
    except promotion.PromotionRefused as error:
        raise AirflowFailException(str(error)) from None


with DAG(
    dag_id="cslm_add_language",
    description="A registered version learns one more language",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    default_args=defaults.arguments("training"),
    tags=["cslm", "training"],
    params={
        "language": Param("es", type="string", description="Code of the new language"),
        "corpora": Param(
            {"spanish": {"format": "shards", "path": "data/spanish"}},
            type="object",
            description="Its corpora, as params.yaml lists them: name, format, path, ...",
        ),
        "base": Param("production", type="string", description="Version to add to, by number or alias"),
        "model": Param("cslm", type="string", description="Registered model"),
        "profile": Param(
            PROFILE, enum=parameters.profiles(places.PROJECT), description="How long and how fast to train"
        ),
        "overrides": Param({}, type=["object", "null"], description="Single parameters"),
    },
) as cslm_add_language:
    facts = check()
    train = TriggerDagRunOperator(
        task_id="train",
        trigger_dag_id="cslm_train",
        trigger_run_id="{{ run_id }}",  # who clears this task goes on with the same training
        reset_dag_run=True,
        retries=0,  # the training has its own
        conf="{{ ti.xcom_pull('check')['conf'] | tojson }}",
        wait_for_completion=True,
        deferrable=True,
        poke_interval=30,
        execution_timeout=LONGEST,
    )
    facts >> train >> compare(facts)
