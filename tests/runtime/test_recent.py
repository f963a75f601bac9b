"""Snapshots that are kept recent by a thread."""

from __future__ import annotations

import threading
import time

import pytest
from engine_calls import wait_until

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


def test_it_is_kept_recent_by_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "RECENT_S", 600.0)  # on a busy machine the thread may come late
    asked = Counted()
    probe = RecentProbe(asked)
    first = probe()
    assert asked.threads == [threading.get_ident()]
    assert probe() is first or len(asked.threads) > 1
    wait_until(lambda: len(asked.threads) > 2)
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
    first = probe._thread
    assert first is not None and first.name == "tierwise-resources"
    wait_until(lambda: not first.is_alive())
    count = len(asked.threads)
    time.sleep(0.1)
    assert len(asked.threads) == count
    time.sleep(RECENT_S)
    assert probe().available_bytes > count
    assert probe._thread is not first


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
