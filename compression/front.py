"""The Pareto front over bytes, seconds of prefill and of decode, and divergence: which tiers stay,
and why the rest go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

REFERENCE_PROMPT = 300
REFERENCE_REPLY = 40
"""Tokens of the agent call by which tiers are compared (a tool prompt and one tool call). Tiers
that must be shown how to call tools read a demonstration besides."""

NOISE = 0.05
"""Two tiers whose seconds differ by less are equally fast: a machine's noise is no merit."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A tier's four costs; less is better in each.

    Args:
        prefill_s, decode_s: Of the reference call's prompt, with the demonstration that the tier
            needs, and of its reply.
        kl: KL(base ‖ tier), mean in nats per token. It stands for quality: top-1 agreement,
            perplexity and the KL's tail go with it, and task success is too coarse to compare
            tiers that are near each other.
        top1: Share of tokens on which it agrees with the base.
        distilled: Its KL says little of what it can do; see `split_front`.
    """

    name: str
    bytes: int
    prefill_s: float
    decode_s: float
    kl: float
    top1: float
    distilled: bool = False

    @property
    def seconds(self) -> float:
        """Of the whole reference call."""
        return self.prefill_s + self.decode_s


def split_front(
    tiers: Sequence[Measured], *, most: int, min_top1: float
) -> tuple[list[Measured], dict[str, str]]:
    """Keeps the front, at most ``most`` of it; of two or more, the best and the fastest stay.

    Args:
        min_top1: Tiers that agree less with the base go. Not so distilled ones, which are
            judged by what they can do: `far_from_able`.

    Returns:
        The kept ones from fastest to slowest, and for each of the others the reason.
    """
    dropped: dict[str, str] = {}
    best = min(tiers, key=lambda tier: tier.kl)
    for tier in tiers:
        if tier.top1 < min_top1 and not tier.distilled and tier is not best:
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
                f"{tier.bytes / 1e6:,.0f} MB, {_seconds(rival)} against {_seconds(tier)} s a "
                f"call, KL {rival.kl:.4f} against {tier.kl:.4f}"
            )
    front = [tier for tier in alive if tier.name not in dropped]
    while len(front) > most:
        nearest = _most_replaceable(front)
        asked = f"{most} {'tier was' if most == 1 else 'tiers were'} asked for"
        dropped[nearest.name] = f"{asked}, and another is nearly as good"
        front.remove(nearest)
    return sorted(front, key=lambda tier: tier.seconds), dropped


def far_from_able(
    tiers: Sequence[Measured], success: Mapping[str, float], *, min_tools: float
) -> dict[str, str]:
    """Distilled tiers that do too little of what the best tier does, and why they go.

    Args:
        tiers: Kept ones.
        success: Share of the suite's tasks that each did.
        min_tools: Share of the best tier's success (by KL) that must be left.
    """
    best = min(tiers, key=lambda tier: tier.kl)
    return {
        tier.name: (
            f"it does {success[tier.name]:.0%} of the tool tasks and {best.name} "
            f"{success[best.name]:.0%}; at least {min_tools:.0%} of that are asked for"
        )
        for tier in tiers
        if tier.distilled
        and tier is not best
        and success[tier.name] < min_tools * success[best.name]
    }


def _beats(a: Measured, b: Measured) -> bool:
    """Whether ``a`` is at least as good in all four and better in one (beyond noise)."""
    if a is b or a.bytes > b.bytes or a.kl > b.kl:
        return False
    if _slower(a.prefill_s, b.prefill_s) or _slower(a.decode_s, b.decode_s):
        return False
    faster = _slower(b.prefill_s, a.prefill_s) or _slower(b.decode_s, a.decode_s)
    return a.bytes < b.bytes or a.kl < b.kl or faster


def _seconds(tier: Measured) -> str:
    return f"{tier.prefill_s:.2f} + {tier.decode_s:.2f}"


def _slower(a: float, b: float) -> bool:
    return a > b * (1 + NOISE)


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
