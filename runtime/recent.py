"""What the machine could spare a moment ago, for decisions, which must not wait to be told.

A thread of its own asks while there are decisions to make, and rests when there were none for a
while.
"""

from __future__ import annotations

import threading
import time

from tierwise.runtime.resources import ResourceProbe, Resources, probe

RECENT_S = 1.0
"""Seconds for which a snapshot is good enough to decide by."""

EVERY_S = 0.4
"""Between two snapshots."""

REST_AFTER_S = 20.0
"""Without a question."""


class RecentProbe:
    """The latest snapshot, if it is recent; else a new one. Safe to use from many threads.

    What a tier is loaded into is to be asked of ``ask`` itself.

    Args:
        ask: Takes the snapshots.
    """

    def __init__(self, ask: ResourceProbe = probe) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._latest: tuple[float, Resources] | None = None
        self._asked = 0.0
        self._thread: threading.Thread | None = None

    def __call__(self) -> Resources:
        self._asked = now = time.monotonic()
        latest = self._latest
        if self._thread is None or not self._thread.is_alive():  # as after a fork, too
            self._start()
        if latest is None or now - latest[0] >= RECENT_S:
            latest = self._look()
        return latest[1]

    def _look(self) -> tuple[float, Resources]:
        found = time.monotonic(), self._ask()
        self._latest = found
        return found

    def _start(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._watch, name="tierwise-resources", daemon=True
                )
                self._thread.start()

    def _watch(self) -> None:
        while time.monotonic() - self._asked < REST_AFTER_S:
            time.sleep(EVERY_S)
            try:
                self._look()
            except Exception:  # noqa: BLE001 - whoever asks next is told
                return


recent_probe = RecentProbe()
"""Of this machine."""
