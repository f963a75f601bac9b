"""What a call becomes before it is decided on: its prompts in tokens, and the context it needs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from tierwise.routing.budget import Budget
from tierwise.runtime.chat import Call
from tierwise.runtime.family import Tier
from tierwise.runtime.pool import Pool
from tierwise.runtime.remote_tier import RemoteTier
from tierwise.runtime.trim import trim

DEFAULT_REPLY_ROOM = 1024
"""Tokens of context kept free for a reply of unknown length."""

Prompts = Mapping[bool, tuple[int, ...]]
"""A call's prompt in tokens, by whether tiers call tools without being shown how."""


def write_prompts(
    pool: Pool,
    call: Call,
    budget: Budget,
    *,
    tiers: Iterable[Tier | RemoteTier],
    usable: Collection[Tier | RemoteTier],
) -> tuple[Prompts, Call | None]:
    """The prompts, and the call that they are of where it had to be trimmed.

    Args:
        pool: Writes them.
        call: Trimmed only if its ``overflow`` says so.
        budget: May limit the reply.
        tiers: Whose prompts are wanted.
        usable: Those of them that may answer; it is trimmed to their longest context.

    Raises:
        FamilyError, ModelError: No tier's vocabulary and chat template can be read.
    """
    kinds = {tier.taught_tools for tier in tiers}

    def written(some: Call) -> Prompts:
        return {taught: pool.prompt(some, taught_tools=taught) for taught in kinds}

    def longest(some: Prompts) -> int:
        return max(len(some[tier.taught_tools]) for tier in usable)

    prompts = written(call)
    if call.overflow == "error":
        return prompts, None
    context = max(tier.context_tokens for tier in usable)
    reply = reply_limit(call, budget)
    room = context - (min(DEFAULT_REPLY_ROOM, context // 4) if reply is None else reply)
    if longest(prompts) <= room:
        return prompts, None
    shorter = trim(call, lambda some: longest(written(some)), room)
    return (prompts, None) if shorter is call else (written(shorter), shorter)


def context_needed(call: Call, prompt_tokens: int, budget: Budget, tier: Tier | RemoteTier) -> int:
    """Context tokens that a call needs: its prompt and room for the reply.

    A reply of unknown length gets `DEFAULT_REPLY_ROOM`, or what the model has left.
    """
    limit = reply_limit(call, budget)
    if limit is not None:
        return prompt_tokens + limit
    left = tier.context_tokens - prompt_tokens
    return prompt_tokens + max(1, min(DEFAULT_REPLY_ROOM, left))


def reply_limit(call: Call, budget: Budget) -> int | None:
    """Tokens that the reply may have at most; None if nobody said."""
    limits = [x for x in (call.max_tokens, budget.reply_tokens) if x is not None]
    return min(limits, default=None)
