"""A taught tier takes its place only with a lead that is more than chance, and harms nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tierwise.evaluation.outcomes import KnownTask, OutcomeStore, TierOutcome
from tierwise.evaluation.own_prompts import OwnTask
from tierwise.evaluation.suites import Suite
from tierwise.routing.comparison import Pairs, compare, comparison_from, pairs_of
from tierwise.runtime.chat import Call, Message


def pairs(
    gained: int, lost: int, same: int, *, size: int = 1, right: bool = False, suite: str = "a"
) -> Pairs:
    """Groups of ``size`` tasks that were gained, were lost, or stayed as they were."""
    before = [0.0] * gained + [1.0] * lost + [float(right)] * same
    after = [1.0] * gained + [0.0] * lost + [float(right)] * same
    groups = tuple(f"{suite}{n}" for n in range(len(before)) for _ in range(size))
    return Pairs(np.repeat(before, size), np.repeat(after, size), groups)


@pytest.mark.parametrize(
    ("gained", "lost", "better"),
    [(6, 0, True), (5, 0, False), (9, 1, True), (9, 4, False), (0, 0, False), (0, 6, False)],
)
def test_the_lead_must_be_more_than_chance(gained: int, lost: int, better: bool) -> None:
    found = compare(pairs(gained, lost, 8), None)
    assert found.better is better
    assert (found.logged.gained, found.logged.lost) == (gained, lost)
    assert found.general is None and found.all == found.logged
    assert "more than chance" in found.reason or better


def test_many_copies_of_a_few_prompts_are_no_lead() -> None:
    assert compare(pairs(30, 0, 10), None).better
    copies = compare(pairs(3, 0, 1, size=10), None)
    assert copies.logged.tasks == 40 and not copies.better


def test_what_is_lost_in_general_forbids_a_swap() -> None:
    found = compare(pairs(20, 0, 0), pairs(0, 12, 108, right=True))
    assert not found.better and "may have lost 1" in found.reason and "5.0%" in found.reason
    assert compare(pairs(20, 0, 0), pairs(0, 12, 108, right=True), tolerance=0.2).better
    # So few tasks that a loss cannot be ruled out: the lower end of the interval decides.
    assert not compare(pairs(20, 0, 0), pairs(2, 2, 8, right=True)).better


@pytest.mark.parametrize(("tasks", "better"), [(12, False), (71, False), (72, True)])
def test_few_tasks_of_which_none_was_lost_rule_out_little(tasks: int, better: bool) -> None:
    """Of tasks of which one in twenty is lost, none of 71 is in one case of forty."""
    found = compare(pairs(20, 0, 0), pairs(0, 0, tasks, right=True))
    assert found.better is better and found.general is not None and found.general.lost == 0
    copies = compare(pairs(20, 0, 0), pairs(0, 0, 12, size=20, right=True))
    assert not copies.better and "lost 26.5%" in copies.reason  # 0.735 ** 12 is 0.025


def test_a_lead_may_show_on_all_tasks_together() -> None:
    found = compare(pairs(4, 0, 4), pairs(5, 0, 200, suite="b"))
    assert not found.logged.better and found.better and "together" in found.reason


def test_it_survives_a_file() -> None:
    for general in (None, pairs(1, 1, 50)):
        found = compare(pairs(7, 1, 3), general)
        assert comparison_from(json.loads(json.dumps(found.to_json()))) == found


def test_outcomes_are_paired_task_by_task(tmp_path: Path) -> None:
    def suite(name: str, count: int) -> Suite:
        call = Call((Message("user", "x"),))
        tasks = tuple(OwnTask(str(n), f"g{n // 2}", call, "x", "exact") for n in range(count))
        return Suite(name, tasks, tuple(task.group for task in tasks))

    suites = [suite("one", 4), suite("two", 2)]
    passed = {"a" * 64: [0, 1, 0, 1, 1, 1], "b" * 64: [1, 1, 1, 0, 0, 1]}
    with OutcomeStore(tmp_path / "outcomes.sqlite") as store:
        keys = [(one.name, task) for one in suites for task in one.tasks]
        store.add(
            [KnownTask(name, task.id, task.group, {}) for name, task in keys],
            [
                TierOutcome(name, task.id, tier, bool(ok), None, None, 1, 0, 1, 0, (), {})
                for tier, all_ in passed.items()
                for (name, task), ok in zip(keys, all_, strict=True)
            ],
        )
        found = pairs_of(store, suites, *passed)
    assert [found.before.tolist(), found.after.tolist()] == list(passed.values())
    assert found.groups == ("one\0g0", "one\0g0", "one\0g1", "one\0g1", "two\0g0", "two\0g0")
