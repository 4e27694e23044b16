"""List the DAGs with their schedules, and check that each can be imported.

Run:  make dags

Exit code 1 if a DAG file cannot be imported; Airflow's pages would not show it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from dags import places
from infra import airflow_local


def main() -> int:
    # Before Airflow is imported: it reads them once. It would tell how it reads the folder.
    os.environ.update(airflow_local.environment() | {"AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"})
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(places.PROJECT / "dags")
    for name, dag in sorted(bag.dags.items()):
        print(f"{name:<16} {schedule(dag)}\n{'':<16} {dag.description}")
    for path, error in bag.import_errors.items():
        print(f"\n{path} cannot be imported:\n{error}", file=sys.stderr)
    return 1 if bag.import_errors else 0


def schedule(dag: Any) -> str:
    """When a DAG starts by itself, in words."""
    timetable = dag.timetable
    condition = getattr(timetable, "asset_condition", None)
    assets = [asset.name for asset in condition.objects] if condition is not None else []
    times = getattr(getattr(timetable, "timetable", timetable), "expression", "")
    parts = [f"at {times} UTC"] if times else []
    parts += [f"when {', '.join(assets)} changes"] if assets else []
    return ", or ".join(parts) or "by hand"


if __name__ == "__main__":
    sys.exit(main())
