"""Replies that go round in circles."""

from __future__ import annotations

import random

import pytest

from tierwise.runtime.loops import LONGEST_PERIOD, LOOP_TOKENS, LoopWatch


def found_after(tokens: list[int]) -> int | None:
    """How many tokens it took to notice."""
    watch = LoopWatch()
    for count, token in enumerate(tokens, 1):
        watch.push(token)
        if watch.found:
            return count
    return None


@pytest.mark.parametrize("period", [1, 2, 7, LONGEST_PERIOD])
def test_a_loop_is_found_as_soon_as_it_is_long_enough(period: int) -> None:
    before = list(range(1000, 1040))
    loop = list(range(period)) * (1 + LOOP_TOKENS // period + 1)
    assert found_after(before + loop) == len(before) + period + LOOP_TOKENS


def test_what_repeats_less_is_none() -> None:
    rng = random.Random(0)
    assert found_after([rng.randrange(50) for _ in range(5000)]) is None
    assert found_after(list(range(LONGEST_PERIOD + 1)) * 20) is None
    row = [1, 2, 3, 4, 5, 6]
    assert found_after(row * (LOOP_TOKENS // len(row)) + [7] + row * 3) is None
    # A list of records has the same names and other values.
    assert found_after([t for n in range(200) for t in (1, 2, 3, 100 + n, 4)]) is None


def test_once_found_it_stays_one() -> None:
    watch = LoopWatch()
    for token in [5] * (LOOP_TOKENS + 1) + [6]:
        watch.push(token)
    assert watch.found
