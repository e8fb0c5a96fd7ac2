"""Processes that do not outlive who started them."""

from __future__ import annotations

import os
import signal
import threading
import time


def end_with(parent: int) -> None:
    """From now on, end this process and what it started as soon as its parent is gone.

    Args:
        parent: the parent's process. This one must lead a process group of its own.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
