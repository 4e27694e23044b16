"""Airflow's triggerer watches the pod of a stage, and tells of its end when the scheduler can hear it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.triggers.base import TriggerEvent

SETTLED = timedelta(seconds=10)
"""How long after a task was deferred Airflow 3.3 may still have to read that its first half is over.

A task that goes on before is taken for lost, and tried again (https://github.com/apache/airflow/issues/72716).
"""


class StagePodTrigger(KubernetesPodTrigger):
    """Fires as Airflow's own does, but for a triggerer not before `SETTLED` after the task was deferred."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How Airflow makes it again elsewhere."""
        return f"{type(self).__module__}.{type(self).__qualname__}", super().serialize()[1]

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Watch the pod."""
        async for event in super().run():
            if self.trigger_id is not None:  # else `make demo` runs it: no scheduler is there to miss anything
                left = self.trigger_start_time + SETTLED - datetime.now(UTC)
                await asyncio.sleep(max(left.total_seconds(), 0))
            yield event
