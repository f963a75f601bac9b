"""What other processes do with the cores that this one may use.

The system's load average will not do: it counts this process too, so that a model that answers
without a break would look like a busy machine, and it follows a change only within a minute.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import psutil

SHORTEST_S = 0.4
"""Between two looks: the kernel counts in hundredths of a second."""

_AT_REST = ("idle", "iowait", "guest", "guest_nice")
"""Of `psutil.cpu_times`; what guests take is in "user" and "nice" already."""


class CPUSeconds(NamedTuple):
    """One look.

    Args:
        at: On a clock that never goes back.
        busy: Of the cores together, since the machine was started.
        own: Of this process, all threads together.
        cores: Logical ones that this process may use.
    """

    at: float
    busy: float
    own: float
    cores: int


class OthersLoad:
    """Compares each look with the one before it. Safe to use from many threads.

    Args:
        look: Tells the seconds.
    """

    def __init__(self, look: Callable[[], CPUSeconds] | None = None) -> None:
        self._look = look or cpu_seconds
        self._lock = threading.Lock()
        self._last: CPUSeconds | None = None
        self._share: float | None = None

    def __call__(self) -> float | None:
        """Share (0..1) of the cores that others kept busy since the last look; None at the first.

        Looks that come sooner than `SHORTEST_S` are told the same again.
        """
        with self._lock:
            now, last = self._look(), self._last
            if last is not None and now.at - last.at < SHORTEST_S:
                return self._share
            self._last = now
            if last is None or now.cores != last.cores:
                return self._share
            others = (now.busy - last.busy) - (now.own - last.own)
            self._share = min(1.0, max(0.0, others / ((now.at - last.at) * now.cores)))
            return self._share


def cpu_seconds() -> CPUSeconds:
    """As the system counts them; about 0.1 ms on a few cores."""
    times = psutil.cpu_times(percpu=True)
    if sys.platform == "linux":
        allowed = os.sched_getaffinity(0)
        if max(allowed) < len(times):  # else some cores are off, and the rest not numbered through
            times = [times[core] for core in allowed]
    busy = sum(sum(one) - sum(getattr(one, rest, 0.0) for rest in _AT_REST) for one in times)
    return CPUSeconds(time.monotonic(), busy, time.process_time(), len(times))


others_load = OthersLoad()
"""Of this process: what `probe` asks."""
