"""What others do with the cores: told from two looks, and from a process that really computes."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tierwise.runtime.cpu_load import SHORTEST_S, CPUSeconds, OthersLoad, cpu_seconds
from tierwise.runtime.resources import probe


def test_two_looks_make_a_share() -> None:
    looks = iter(
        [
            CPUSeconds(at=10.0, busy=100.0, own=5.0, cores=4),
            CPUSeconds(at=10.1, busy=900.0, own=5.0, cores=4),  # too soon to tell
            CPUSeconds(at=12.0, busy=106.0, own=7.0, cores=4),
            CPUSeconds(at=12.1, busy=106.0, own=7.0, cores=4),
            CPUSeconds(at=14.0, busy=108.0, own=9.5, cores=4),  # all of it is this process
            CPUSeconds(at=16.0, busy=1e6, own=9.5, cores=4),
            CPUSeconds(at=18.0, busy=3.0, own=9.5, cores=2),  # moved to other cores
            CPUSeconds(at=20.0, busy=4.0, own=9.5, cores=2),
        ]
    )
    share = OthersLoad(lambda: next(looks))
    assert [share() for _ in range(8)] == [
        *(None, None, 0.5, 0.5, 0.0, 1.0, 1.0),
        pytest.approx(0.25),
    ]


def test_a_process_that_computes_is_seen_and_this_one_is_not() -> None:
    share = OthersLoad()
    assert share() is None
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            time.sleep(1.0)  # it starts
            share()
            time.sleep(2 * SHORTEST_S)
            seen, now = share(), cpu_seconds()
        finally:
            other.kill()
    assert seen is not None and seen * now.cores > 0.3
    before, spent = cpu_seconds(), 0.0
    while spent < 0.5:
        spent = cpu_seconds().own - before.own
    assert cpu_seconds().busy - before.busy >= 0.3, "and it is counted in what is busy"


def test_the_probe_says_it() -> None:
    found = probe()
    assert found.others_load is None or 0 <= found.others_load <= 1
    assert found.logical_cores == cpu_seconds().cores
