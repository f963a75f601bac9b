"""Each tier's chance of success on a call, from what was measured when the family was built.

A tier's success by grade was measured on a few dozen tasks, too few to tell close tiers apart.
Its divergence from the base was measured on thousands of tokens. The two are joined: the
divergence gives the prior, the tasks update it, and the result must not fall with quality.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tierwise.routing.difficulty import GRADE_AT, choices
from tierwise.runtime.family import Estimate, Family, Tier, nearest_first

PRIOR_TASKS = 8.0
"""How many measured tasks the prior weighs as much as."""

USUAL_DIFFICULTY = 0.5
"""Where a single one has to stand for all."""

UNKNOWN_KL = 0.3
"""Assumed of tiers that were never measured against the base (adopted ones)."""

UNKNOWN_KV_KL = 0.01
"""Assumed of keys and values as q8_0, where it was not measured: more than twice that of SmolLM2,
and the most that `advise_kv` calls a small loss."""


def kept(kl: float, difficulty: float) -> float:
    """Share of its success that a tier keeps once it has moved by ``kl`` nats a token.

    KL adds up over the tokens of a reply (chain rule), so that ``exp(-m * KL)`` is the geometric
    mean by which the likelihood of the same reply shrinks over ``m`` choices.
    """
    return math.exp(-choices(difficulty) * kl)


def narrowed(tier: Tier, success: float, difficulty: float) -> float:
    """The tier's chance of success once keys and values are kept as q8_0."""
    measured = tier.quality.kv_q8_0
    return success * kept(UNKNOWN_KV_KL if measured is None else measured.kl_mean, difficulty)


def by_quality(family: Family) -> tuple[Tier, ...]:
    """The tiers from the furthest from the base to the nearest (ties: the larger is better)."""
    distance = _distances(family)
    return tuple(sorted(family.tiers, key=lambda tier: (-distance[tier.name], tier.bytes)))


def _distances(family: Family) -> dict[str, float]:
    """By tier name."""
    nearest = nearest_first(family.tiers)[0]
    return {tier.name: _distance(tier, nearest) for tier in family.tiers}


def _distance(tier: Tier, reference: Tier) -> float:
    """From the base in nats a token, as far as it tells of success.

    A student that was taught is far from the base in all that it was not taught, and may be as
    good in what it was: of it, the divergence is told by the tasks of the build (`kept`, solved
    for the KL) where both were measured on them.
    """
    own, best = tier.quality.tools, reference.quality.tools
    if tier.lineage.distillation is None or own is None or best is None:
        return _kl(tier)
    share = _drawn_to_half(own.overall) / _drawn_to_half(best.overall)
    return _kl(reference) - math.log(min(1.0, share)) / choices(USUAL_DIFFICULTY)


def _drawn_to_half(right: Estimate) -> float:
    """A share of tasks, with `PRIOR_TASKS` more of which half were right: never 0."""
    return (right.value * right.n + PRIOR_TASKS / 2) / (right.n + PRIOR_TASKS)


def _kl(tier: Tier) -> float:
    divergence = tier.quality.divergence
    return UNKNOWN_KL if divergence is None else divergence.kl_mean


class SuccessModel:
    """Forecasts success per tier.

    What a tier keeps (`kept`) of the best tier's success, by its KL, serves as the prior.
    """

    def __init__(self, family: Family) -> None:
        self._tiers = by_quality(family)
        self._distances = _distances(family)
        self._table = self._grades(self._tiers[-1])

    def _grades(self, best: Tier) -> dict[str, tuple[float, ...]]:
        """Success of every tier (in order of quality) at each grade."""
        out: dict[str, tuple[float, ...]] = {}
        for grade, at in GRADE_AT.items():
            reference, tasks = _measured(best, grade)
            if reference is None:
                reference = 0.5
            elif reference == 0.0:  # else nothing would be left of what tells the tiers apart
                reference = 0.5 / (tasks + 1)  # Krichevsky and Trofimov, IEEE IT 27, 1981
            means, weights = [], []
            for tier in self._tiers:
                further = self._distances[tier.name] - self._distances[best.name]
                prior = reference * kept(further, at)
                value, n = _measured(tier, grade)
                mean = (PRIOR_TASKS * prior + n * (value or 0.0)) / (PRIOR_TASKS + n)
                means.append(mean)
                weights.append(PRIOR_TASKS + n)
            out[grade] = tuple(isotonic(means, weights))
        return out

    def __call__(self, difficulty: float) -> Mapping[str, float]:
        """Chance of success by tier name, at a difficulty in 0..1."""
        grades = list(GRADE_AT)
        points = [GRADE_AT[grade] for grade in grades]
        return {
            tier.name: float(
                np.interp(difficulty, points, [self._table[grade][index] for grade in grades])
            )
            for index, tier in enumerate(self._tiers)
        }


def _measured(tier: Tier, grade: str) -> tuple[float | None, int]:
    tools = tier.quality.tools
    if tools is None or grade not in tools.by_grade:
        return None, 0
    estimate = tools.by_grade[grade]
    return estimate.value, estimate.n


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The nearest non-decreasing sequence (pool adjacent violators, weighted least squares)."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        blocks.append((value, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (v1, w1, n1), (v2, w2, n2) = blocks[-2:]
            blocks[-2:] = [((v1 * w1 + v2 * w2) / (w1 + w2), w1 + w2, n1 + n2)]
    return [value for value, _, count in blocks for _ in range(count)]
