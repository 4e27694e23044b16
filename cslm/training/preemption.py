"""A training whose machine is taken away: SIGTERM ends it after the step that it is in, with a checkpoint.

Clusters send it before they take a node back, and so do Kubernetes, DVC's caller and `kill`. The program then
ends with a code of its own (`cslm.training.ranks.PREEMPTED`), by which whoever started it knows to try again.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Preempted(RuntimeError):
    """The training was told to end; its checkpoint is whole, and the same call goes on from it."""


@contextmanager
def asked_to_end(then: Callable[[], object] | None = None) -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come since; `then` is called when it comes.

    Outside of a program's main thread it ends the program at once, as ever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = threading.Event()

    def note(*_: object) -> None:
        came.set()
        if then is not None:
            then()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
