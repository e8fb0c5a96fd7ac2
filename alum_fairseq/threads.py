"""How many threads are worth their while: as many as cores are idle.

Threads that wait for a core that others use make each other slower: on two busy cores two threads
take several times as long as one.
"""

from __future__ import annotations

import os


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def idle_cores() -> int:
    """Those of them that nobody used in the last minute, at least one."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, min(cores(), round(cores() - load)))


if __name__ == "__main__":  # for train.sh, without the time that torch takes to be imported
    print(idle_cores())
