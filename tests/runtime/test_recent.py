"""Snapshots that are kept recent by a thread."""

from __future__ import annotations

import threading
import time

import pytest

from tierwise.runtime import recent
from tierwise.runtime.recent import RECENT_S, RecentProbe, recent_probe
from tierwise.runtime.resources import Resources


class Counted:
    """Says how often it was asked, and by which threads."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.broken = False

    def __call__(self) -> Resources:
        if self.broken:
            raise OSError("no such file")
        self.threads.append(threading.get_ident())
        return Resources(available_bytes=len(self.threads), total_bytes=1, threads=1)


def test_it_is_kept_recent_by_another_thread() -> None:
    asked = Counted()
    probe = RecentProbe(asked)
    first = probe()
    assert asked.threads == [threading.get_ident()]
    assert probe() is first
    time.sleep(2 * RECENT_S)
    again = probe()
    assert again.available_bytes > first.available_bytes
    assert threading.get_ident() not in asked.threads[1:]


def test_the_thread_rests_when_nobody_asks_and_starts_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recent, "EVERY_S", 0.01)
    monkeypatch.setattr(recent, "REST_AFTER_S", 0.05)
    asked = Counted()
    probe = RecentProbe(asked)
    probe()
    ends = time.monotonic() + 10
    while any(t.name == "tierwise-resources" for t in _own(probe)):
        assert time.monotonic() < ends
        time.sleep(0.01)
    count = len(asked.threads)
    time.sleep(0.1)
    assert len(asked.threads) == count
    time.sleep(RECENT_S)
    assert probe().available_bytes == count + 1
    assert _own(probe)


def test_an_error_is_told_to_who_asks_next() -> None:
    asked = Counted()
    probe = RecentProbe(asked)
    probe()
    asked.broken = True
    time.sleep(2 * RECENT_S)
    with pytest.raises(OSError, match="no such file"):
        probe()
    asked.broken = False
    assert probe().available_bytes > 1


def test_this_machine() -> None:
    found = recent_probe()
    assert found.available_bytes > 0
    assert recent_probe().total_bytes == found.total_bytes


def _own(probe: RecentProbe) -> list[threading.Thread]:
    thread = probe._thread
    return [thread] if thread is not None and thread.is_alive() else []
