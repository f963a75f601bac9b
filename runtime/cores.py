"""The processor's cores, which all models of this process share.

llama.cpp computes with OpenMP, which gives every thread that calls it helpers of its own. Between
two operations they spin, a few microseconds, unless the process has more of them than there are
cores: then GNU's libgomp lets them sleep instead (``gomp_throttled_spin_count_var``), and each of
a thousand operations of a step wakes them through the kernel. SmolLM2-135M on two cores, two
models loaded and used in turn: 27 ms a token instead of 11.5. So whoever has nothing to do sends
its helpers away, and models compute one after the other where the cores do not suffice for both.
"""

from __future__ import annotations

import os
import threading
from collections import deque

from llama_cpp import llama_cpp as bindings

from tierwise.runtime.resources import probe

_SOFT = 1  # omp_pause_soft: all can be had again


def release_workers() -> None:
    """Ends the calling thread's OpenMP helpers; its next computation makes new ones.

    Takes 50 µs, and the next step 100 more. Does nothing where llama.cpp was built without
    OpenMP, or with a version before 5.0.
    """
    pause = getattr(bindings._lib, "omp_pause_resource_all", None)
    if pause is not None:
        pause(_SOFT)


class Turns:
    """Grants cores in order of arrival.

    Args:
        cores: How many there are.
    """

    def __init__(self, cores: int) -> None:
        self.cores = self._free = cores
        self._lock = threading.Lock()
        self._queue: deque[tuple[int, threading.Lock]] = deque()

    def take(self, threads: int) -> int:
        """Waits until so many cores (or all there are) are free; returns how many, for `give`."""
        threads = min(threads, self.cores)
        with self._lock:
            if not self._queue and threads <= self._free:
                self._free -= threads
                return threads
            entry = threads, threading.Lock()
            entry[1].acquire()
            self._queue.append(entry)
        try:
            entry[1].acquire()
        except BaseException:  # Ctrl-C: it must not be handed to one who has gone
            with self._lock:
                granted = entry not in self._queue
                if not granted:
                    self._queue.remove(entry)
            self.give(threads if granted else 0)
            raise
        return threads

    def give(self, threads: int) -> None:
        """Gives back what `take` returned, and the next in the queue its turn."""
        if self._queue:
            release_workers()
        with self._lock:
            self._free += threads
            while self._queue and self._queue[0][0] <= self._free:
                wanted, turn = self._queue.popleft()
                self._free -= wanted
                turn.release()


_turns = Turns(probe().threads)


def turns() -> Turns:
    """Those of this process."""
    return _turns


def _forget() -> None:
    """In a fork's child nobody computes, whatever the parent was doing."""
    global _turns
    _turns = Turns(_turns.cores)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
