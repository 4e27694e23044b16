"""End the runs that a `make demo` left open when it was killed or interrupted.

Run:  python -m dags.interrupted

Airflow believes such a run to be running for ever: it would hold the DAG's only place and the pool's slots, and
every later run would wait for it. Containers of its stages may still work. Only to be called where no demo runs
(infra.airflow_local.only_demo).
"""

from __future__ import annotations

import os

from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, State, TaskInstanceState
from airflow.utils.types import DagRunTriggeredByType
from sqlalchemy import select


def main() -> int:
    """Mark them failed, with the tasks that had not ended, and remove their containers; how many there were."""
    with create_session() as session:
        open_runs = select(DagRun).where(
            DagRun.triggered_by == DagRunTriggeredByType.TEST, DagRun.state.in_(State.unfinished_dr_states)
        )
        runs = session.scalars(open_runs).all()
        for run in runs:
            for task in run.get_task_instances(session=session):
                if task.state not in State.finished:
                    task.set_state(TaskInstanceState.FAILED, session=session)
            run.set_state(DagRunState.FAILED)
    if os.environ.get("CSLM_RUNNER") == "docker":
        from dags.runners import docker

        docker.remove_leftovers()
    return len(runs)


if __name__ == "__main__":
    main()
