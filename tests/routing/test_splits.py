"""Splits: no prompt in two parts, shares kept, and the same for the same seed."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from tierwise.routing.splits import SHARES, folds, prompt_group, split
from tierwise.runtime.chat import Call, Message
from tierwise.runtime.errors import ConfigError


def data(seed: int, rows: int = 300, prompts: int = 120) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    groups = [f"g{rng.randrange(prompts)}" for _ in range(rows)]
    return groups, [rng.choice(["easy", "hard", "hard"]) for _ in groups]


@pytest.mark.parametrize("seed", range(20))
def test_every_row_and_every_group_is_in_one_part(seed: int) -> None:
    groups, strata = data(seed)
    made = split(groups, strata, seed=seed)
    parts = [made.fit, made.calibrate, made.test]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    inside = [{groups[row] for row in part} for part in parts]
    assert sum(map(len, inside)) == len(set().union(*inside)) == len(set(groups))
    assert all((np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize("seed", range(10))
def test_each_stratum_is_shared_out(seed: int) -> None:
    rng = random.Random(seed)
    groups = [f"g{number}" for number in range(400)]
    strata = [rng.choice("abbbcccc") for _ in groups]
    made = split(groups, strata, seed=seed)
    for stratum, total in Counter(strata).items():
        for part, share in zip((made.fit, made.calibrate, made.test), SHARES, strict=True):
            found = sum(strata[row] == stratum for row in part)
            assert abs(found - share * total) <= 1.5, stratum
    assert abs(len(made.fit) - 200) <= 3


def test_large_groups_stay_whole_and_the_small_ones_even_them_out() -> None:
    groups = ["big"] * 40 + [f"g{number}" for number in range(60)]
    for seed in range(20):
        made = split(groups, seed=seed)
        sizes = [len(made.fit), len(made.calibrate), len(made.test)]
        assert sizes == [50, 25, 25]


def test_the_same_for_the_same_seed_in_whatever_order_the_rows_come() -> None:
    groups, strata = data(1)
    first, again, other = (split(groups, strata, seed=s) for s in (7, 7, 8))
    assert np.array_equal(first.fit, again.fit) and np.array_equal(first.test, again.test)
    assert not np.array_equal(first.test, other.test)
    order = random.Random(3).sample(range(len(groups)), len(groups))
    moved = split([groups[i] for i in order], [strata[i] for i in order], seed=7)
    assert {groups[row] for row in first.test} == {groups[order[row]] for row in moved.test}


def test_more_strata_than_can_be_shared_out_still_fill_all_parts() -> None:
    groups = [f"g{number}" for number in range(100)]
    made = split(groups, list(range(100)), seed=0)  # each stratum has one row
    assert [len(made.fit), len(made.calibrate), len(made.test)] == [50, 25, 25]


def test_parts_without_a_share_stay_empty() -> None:
    made = split([f"g{number}" for number in range(10)], shares=(0.8, 0.2, 0.0))
    assert [len(made.fit), len(made.calibrate), len(made.test)] == [8, 2, 0]


def test_nothing_is_split_into_nothing() -> None:
    assert split([]).fit.tolist() == []


@pytest.mark.parametrize("seed", range(5))
def test_folds(seed: int) -> None:
    groups, strata = data(seed)
    made = folds(groups, 5, strata, seed=seed)
    assert sorted(np.concatenate(made).tolist()) == list(range(len(groups)))
    inside = [{groups[row] for row in fold} for fold in made]
    assert sum(map(len, inside)) == len(set(groups))
    assert max(map(len, made)) - min(map(len, made)) <= 6


@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.5), (1.5, -0.5, 0.0), (0.0, 0.0, 0.0)])
def test_shares_that_make_no_sense(shares: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="sum to 1"):
        split(["a"], shares=shares)


def test_what_cannot_be_folded_or_paired() -> None:
    with pytest.raises(ConfigError, match="2 different prompts"):
        folds(["a", "a", "b"], 3)
    with pytest.raises(ConfigError, match="at least 2"):
        folds(["a", "b"], 1)
    with pytest.raises(ConfigError, match="2 groups but 1 strata"):
        split(["a", "b"], ["x"])


def test_prompts_that_differ_in_numbers_case_and_space_are_one() -> None:
    assert prompt_group("Add 5 and  17.") == prompt_group("add 123 and 4.\n")
    assert prompt_group("Add 5 and 17.") != prompt_group("Add 5 to 17.")
    system = Message("system", "Be brief.")
    call = Call((system, Message("user", "Hi"), Message("assistant", "Ho"), Message("user", "Go")))
    assert prompt_group(call) == prompt_group("Go") != prompt_group("Hi")
    assert prompt_group(Call((system,))) == prompt_group("")
