"""A failure that is explained ends its task without a traceback through our code, and mostly for good."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from dags import continuation, graph, parameters, run, snapshot, tracking

EXPLAINED = (
    run.RunFailed,
    snapshot.SnapshotFailed,
    tracking.TrackingFailed,
    parameters.BadParameters,
    graph.BadGraph,
    continuation.CannotContinue,
)


@contextmanager
def readable() -> Iterator[None]:
    """Let the task fail with the message alone.

    Raises:
        AirflowException: a machine or a server is away, so Airflow may try again.
        AirflowFailException: for every other failure that has an explanation; another try would end alike.
    """
    try:
        yield
    except (run.MachineAway, tracking.TrackingAway) as error:
        raise AirflowException(str(error)) from None
    except EXPLAINED as error:
        raise AirflowFailException(str(error)) from None
