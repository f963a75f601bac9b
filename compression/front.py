"""The Pareto front over bytes, seconds and divergence: which tiers stay, and why the rest go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

REFERENCE_PROMPT = 300
REFERENCE_REPLY = 40
"""Tokens of the agent call by which tiers are compared (a tool prompt and one tool call)."""

NOISE = 0.03
"""Two tiers whose seconds differ by less are equally fast: a machine's noise is no merit."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A tier's three costs; less is better in each."""

    name: str
    bytes: int
    seconds: float
    kl: float
    top1: float


def split_front(
    tiers: Sequence[Measured], *, most: int, min_top1: float
) -> tuple[list[Measured], dict[str, str]]:
    """Keeps the front, at most ``most`` of it.

    Returns:
        The kept ones from fastest to slowest, and for each of the others the reason.
    """
    dropped: dict[str, str] = {}
    best = min(tiers, key=lambda tier: tier.kl)
    for tier in tiers:
        if tier.top1 < min_top1 and tier is not best:
            dropped[tier.name] = (
                f"too far from the base: it agrees on {tier.top1:.0%} of tokens, "
                f"{min_top1:.0%} are asked for"
            )
    alive = [tier for tier in tiers if tier.name not in dropped]
    rivals = {tier.name: [other for other in alive if _beats(other, tier)] for tier in alive}
    for tier in alive:
        if rivals[tier.name]:
            rival = min(rivals[tier.name], key=lambda other: len(rivals[other.name]))
            dropped[tier.name] = (
                f"{rival.name} beats it: {rival.bytes / 1e6:,.0f} against "
                f"{tier.bytes / 1e6:,.0f} MB, {rival.seconds:.2f} against {tier.seconds:.2f} s "
                f"a call, KL {rival.kl:.4f} against {tier.kl:.4f}"
            )
    front = [tier for tier in alive if tier.name not in dropped]
    while len(front) > most:
        nearest = _most_replaceable(front)
        dropped[nearest.name] = f"{most} tiers were asked for, and another is nearly as good"
        front.remove(nearest)
    return sorted(front, key=lambda tier: tier.seconds), dropped


def _beats(a: Measured, b: Measured) -> bool:
    """Whether ``a`` is at least as good in all three and better in one (beyond noise)."""
    if a is b or a.bytes > b.bytes or a.kl > b.kl or a.seconds > b.seconds * (1 + NOISE):
        return False
    return a.bytes < b.bytes or a.kl < b.kl or a.seconds < b.seconds * (1 - NOISE)


def _most_replaceable(front: Sequence[Measured]) -> Measured:
    """The tier that would be missed least, never the one of best quality, and the fastest last.

    Whoever needs a tier's quality would take, without it, another that is no further from the
    base; the regret is by how much that one is slower and larger.
    """
    anchors = {
        min(front, key=lambda tier: tier.kl).name,
        min(front, key=lambda tier: tier.seconds).name,
    }
    free = [tier for tier in front if tier.name not in anchors]
    if not free:  # one is asked for, so the fastest goes too
        free = sorted(front, key=lambda tier: tier.kl)[1:]

    def regret(tier: Measured) -> float:
        stand_ins = [other for other in front if other is not tier and other.kl <= tier.kl]
        costs = (
            math.log(other.seconds / tier.seconds) + math.log(other.bytes / tier.bytes)
            for other in stand_ins
        )
        return min(costs, default=math.inf)

    return min(free, key=regret)
