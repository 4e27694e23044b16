"""A failure that is explained already ends its task: no retry, and no traceback through our code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.sdk.exceptions import AirflowFailException

from dags import run, snapshot, tracking


@contextmanager
def readable() -> Iterator[None]:
    """Let the task fail with the message alone.

    Raises:
        AirflowFailException: for every failure of a run that has an explanation.
    """
    try:
        yield
    except (run.RunFailed, snapshot.SnapshotFailed, tracking.TrackingFailed) as error:
        raise AirflowFailException(str(error)) from None
