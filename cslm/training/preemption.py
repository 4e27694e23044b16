"""A training whose machine is taken away: SIGTERM ends it after the step that it is in, with a checkpoint.

Clusters send it before they take a node back, and so do Kubernetes, Docker, DVC's caller and `kill`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Preempted(RuntimeError):
    """The training was told to end; its checkpoint is whole, and the same call goes on from it."""


@contextmanager
def asked_to_end() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come since. Outside of a program's main thread it ends that at once, as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
