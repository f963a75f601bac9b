"""Is a tier that was taught better than it was before? Judged on calls that it never learned.

Both answer the same tasks, and all is paired: what counts is the difference, task by task. The new
one must be better on logged calls, or on all tasks together, and no worse on general suites than
a tolerance allows. Intervals resample whole groups; as those of few groups come out too narrow,
the groups that were gained must also outnumber those that were lost by more than chance (sign
test).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tierwise.evaluation.outcomes import OutcomeStore
from tierwise.evaluation.suites import Suite
from tierwise.routing.bootstrap import Interval, mean_interval, resamples
from tierwise.routing.pvalues import binomial_cdf
from tierwise.routing.representation import Floats

TOLERANCE = 0.05
"""Share of general tasks that may be lost: more must be ruled out, by the lower end of the interval
and by the number of tasks (72 at least)."""

CHANCE = 0.025
"""Of so many groups gained, or more, where gains and losses are alike."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """What both tiers made of some tasks.

    Args:
        before, after: Whether each task's reply was right, shape (n,), 0 or 1.
        groups: Of the tasks; those of one group are alike.
    """

    before: Floats
    after: Floats
    groups: tuple[str, ...]

    def with_those(self, other: Pairs) -> Pairs:
        """Both together."""
        return Pairs(
            np.concatenate([self.before, other.before]),
            np.concatenate([self.after, other.after]),
            self.groups + other.groups,
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """Of one kind of tasks.

    Args:
        tasks: How many.
        before, after: Share of them that was right.
        gain: Their difference with its 95 % interval.
        gained, lost: Groups of which more, or fewer, tasks are right than before.
        chance: Of so many gained groups or more, if it were all chance.
    """

    tasks: int
    before: float
    after: float
    gain: Interval
    gained: int
    lost: int
    chance: float

    @property
    def better(self) -> bool:
        """By more than chance."""
        return self.gain.low > 0 and self.chance <= CHANCE

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.before:.1%} → {self.after:.1%} of {self.tasks} "
            f"(difference {self.gain.value:+.1%}, 95 %: {self.gain.low:+.1%} to "
            f"{self.gain.high:+.1%})"
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdict.

    Args:
        better: Whether the new tier is to take the old one's place.
        reason: Why, or why not, in one sentence.
        logged: On held-out logged calls.
        general: On suites; None where none was run.
        all: On both together.
        tolerance: That ``general`` was held against.
    """

    better: bool
    reason: str
    logged: Difference
    general: Difference | None
    all: Difference
    tolerance: float

    def to_json(self) -> dict[str, Any]:
        """Keys ``better, reason, tolerance, logged, general, all``; the last three as
        `Difference`, and ``general`` is None where no suite was run."""
        return asdict(self)


def compare(logged: Pairs, general: Pairs | None, *, tolerance: float = TOLERANCE) -> Comparison:
    """Judges by outcomes.

    Args:
        logged: Of logged calls that were held out.
        general: Of suites that have nothing to do with the log.
        tolerance: See `TOLERANCE`.
    """
    on_logged = _difference(logged)
    on_general = None if general is None else _difference(general)
    on_all = on_logged if general is None else _difference(logged.with_those(general))
    may_lose = 0.0
    if general is not None and on_general is not None:
        # Where no group was lost, nothing is resampled but 0: the exact bound on what is rare.
        groups = len(set(general.groups))
        may_lose = max(-on_general.gain.low, 1 - CHANCE ** (1 / groups))
    if not (on_logged.better or on_all.better):
        better, reason = False, "it is not better by more than chance"
    elif may_lose > tolerance:
        better = False
        reason = (
            f"it may have lost {may_lose:.1%} of the general tasks, and {tolerance:.1%} are "
            "tolerated"
        )
    elif on_logged.better:
        better, reason = True, "it is better on logged calls that it never learned from"
    else:
        better, reason = True, "it is better on logged calls and general tasks together"
    return Comparison(better, reason, on_logged, on_general, on_all, tolerance)


def pairs_of(store: OutcomeStore, suites: Sequence[Suite], before: str, after: str) -> Pairs:
    """What two tiers made of the suites' tasks.

    Args:
        store: With outcomes of both on all of them.
        suites: At least one task in all.
        before, after: sha256 of their files.
    """
    passed: dict[tuple[str, str, str], bool] = {
        (one.suite, one.task, one.tier): one.passed for one in store.outcomes((before, after))
    }
    keys = [(suite.name, task.id) for suite in suites for task in suite.tasks]
    return Pairs(
        np.array([passed[*key, before] for key in keys], float),
        np.array([passed[*key, after] for key in keys], float),
        tuple(f"{suite.name}\0{group}" for suite in suites for group in suite.groups),
    )


def _difference(pairs: Pairs) -> Difference:
    gains = pairs.after - pairs.before
    counts = resamples(len(gains), groups=pairs.groups)
    by_group: dict[str, float] = {}
    for group, gain in zip(pairs.groups, gains.tolist(), strict=True):
        by_group[group] = by_group.get(group, 0.0) + gain
    gained = sum(gain > 0 for gain in by_group.values())
    lost = sum(gain < 0 for gain in by_group.values())
    return Difference(
        tasks=len(gains),
        before=float(pairs.before.mean()),
        after=float(pairs.after.mean()),
        gain=mean_interval(gains, counts),
        gained=gained,
        lost=lost,
        chance=binomial_cdf(lost, gained + lost, 0.5) if gained + lost else 1.0,
    )


def comparison_from(data: Mapping[str, Any]) -> Comparison:
    """What `Comparison.to_json` wrote."""

    def difference(found: Mapping[str, Any]) -> Difference:
        return Difference(**{**found, "gain": Interval(**found["gain"])})

    parts = {name: difference(data[name]) for name in ("logged", "all")}
    general = None if data["general"] is None else difference(data["general"])
    return Comparison(**{**data, **parts, "general": general})
