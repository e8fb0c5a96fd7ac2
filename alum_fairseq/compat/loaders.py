"""fairseq's thread that loads batches ahead ends in time."""

from __future__ import annotations

import atexit
import queue
import sys
import threading
from typing import Any


def stop_abandoned_loaders() -> None:
    """Let fairseq's thread that loads batches ahead end when nobody can ask it for more.

    Else every validation that ``--max-valid-steps`` cuts short leaves one behind, with the batches
    that it has loaded. Can go when fairseq 0.12's BufferedIterator does it.
    """
    from fairseq.data.iterators import BufferedIterator

    BufferedIterator.__del__ = _abandon


def _abandon(batches: Any) -> None:
    consumer = getattr(batches, "_consumer", None)
    # Garbage may be collected anywhere, even where this thread holds the lock already.
    if consumer is not None and consumer._queue.mutex.acquire(blocking=False):
        consumer._max_len = 0  # it ends after the batch that it is at
        consumer._queue.queue.clear()
        consumer._queue.maxsize = sys.maxsize  # it may be waiting for room
        consumer._queue.not_full.notify_all()
        consumer._queue.mutex.release()


def stop_loaders_at_exit() -> None:
    """Let fairseq's thread that loads batches ahead end before the interpreter does.

    It is a daemon, and Python before 3.14 ends daemons where they are: inside torch's C++ that
    aborts the whole process ("terminate called without an active exception", exit status 134),
    now and then, after training is done and saved. Can go when fairseq stops its thread.
    """
    atexit.unregister(_stop_loaders)
    atexit.register(_stop_loaders)


def _stop_loaders() -> None:
    from fairseq.data.iterators import BackgroundConsumer

    for thread in threading.enumerate():
        if isinstance(thread, BackgroundConsumer):
            thread._max_len = 0  # it ends after the batch that it is at
            while thread.is_alive():
                try:  # it may be waiting for room
                    thread._queue.get(timeout=0.05)
                except queue.Empty:
                    thread.join(0.05)
