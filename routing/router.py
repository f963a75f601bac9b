"""``Router.decide``: which tier answers a call, from what each would cost and how it would do."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from tierwise.routing.answer import Answer
from tierwise.routing.budget import Budget
from tierwise.routing.cost import CostModel
from tierwise.routing.decision import Decision, Forecast
from tierwise.routing.difficulty import DifficultyEstimator, structural_difficulty
from tierwise.routing.policy import Policy, feasible_first, over_time
from tierwise.routing.success import SuccessModel, by_quality
from tierwise.runtime.chat import Call
from tierwise.runtime.errors import (
    ConfigError,
    ContextOverflowError,
    NoFeasibleTierError,
    TierwiseError,
)
from tierwise.runtime.family import Family, Tier
from tierwise.runtime.lease import ResidentTier
from tierwise.runtime.pool import Pool
from tierwise.runtime.profile import Profile, family_profiles
from tierwise.runtime.resources import ResourceProbe, Resources, recent_probe
from tierwise.runtime.trim import trim

DEFAULT_REPLY_ROOM = 1024
"""Tokens of context kept free for a reply of unknown length."""

_REMEMBERED_CONVERSATIONS = 1024


Prompts = Mapping[bool, tuple[int, ...]]
"""A call's prompt in tokens, by whether tiers call tools without being shown how."""


class Router:
    """Decides for one family.

    Args:
        family: Its tiers' quality is read once.
        pool: Asked what is loaded, what fits, and what is cached.
        budget: For calls that bring none of their own.
        difficulty: 0..1 for a call.
        policy: Chooses among the forecasts.
        probe: What the machine has now, or had a moment ago.
        profiles: Speed by tier name, instead of what was measured on this machine.
        tiers: Names of the tiers that may be used; all by default.

    Raises:
        ConfigError: ``tiers`` is empty or names a tier that the family has not.
    """

    def __init__(
        self,
        family: Family,
        pool: Pool,
        budget: Budget | None = None,
        *,
        difficulty: DifficultyEstimator = structural_difficulty,
        policy: Policy = feasible_first,
        probe: ResourceProbe = recent_probe,
        profiles: Mapping[str, Profile] | None = None,
        tiers: Iterable[str] | None = None,
    ) -> None:
        self.family = family
        self.pool = pool
        self.budget = budget or Budget()
        self._difficulty = difficulty
        self._policy = policy
        self._probe = probe
        self.cost = CostModel({**family_profiles(family), **(profiles or {})})
        self._success = SuccessModel(family)
        enabled = None if tiers is None else {family.tier(name).name for name in tiers}
        self.tiers = tuple(t for t in by_quality(family) if enabled is None or t.name in enabled)
        if not self.tiers:
            raise ConfigError("tiers=[] leaves no tier to route to; leave it out to use all")
        self._lock = threading.Lock()
        self._current: OrderedDict[str, str] = OrderedDict()

    def decide(
        self,
        call: Call,
        *,
        budget: Budget | None = None,
        above: str | None = None,
        without: Iterable[str] = (),
        pin: str | None = None,
    ) -> Decision:
        """The tier for a call, and the prompt that it is to be given.

        With ``call.overflow == "trim"``, a conversation too long for every context is trimmed.

        Args:
            budget: Instead of the router's own.
            above: Only tiers of better quality than this one (for escalation).
            without: Tiers that turned out to be out of reach.
            pin: The user's choice; it must still be feasible.

        Raises:
            NoFeasibleTierError: No tier fits; lists what each would need.
            ContextOverflowError: Prompt and reply are longer than any tier's context (trimmed,
                if that was asked for).
            ConfigError: ``pin`` or ``above`` names no tier.
        """
        budget = budget or self.budget
        resources = self._probe()
        excluded = self._excluded(above, without, pin)
        prompts, trimmed = self._prompts(call, budget, excluded)
        longest = max(self.tiers, key=lambda tier: tier.context_tokens)
        prompt = min(prompts.values(), key=len)
        room = context_needed(call, len(prompt), budget, longest)
        if room > longest.context_tokens:
            left_out = " without the turns in its middle" if trimmed else ""
            raise ContextOverflowError(
                f"the prompt has {len(prompt):,} tokens{left_out} and the reply may have "
                f"{room - len(prompt):,}; the longest context of the enabled tiers is "
                f"{longest.context_tokens:,}. Shorten the conversation or the tools, or lower "
                "max_tokens."
            )
        difficulty = self._difficulty(call)
        success = self._success(difficulty)
        resident = self.pool.resident()
        forecasts = [
            self._forecast(
                tier,
                call,
                prompts[tier.taught_tools],
                success[tier.name],
                budget,
                resources,
                resident.get(tier.name),
                excluded.get(tier.name),
            )
            for tier in self.tiers
        ]
        if pin is not None:
            name, reason, forecasts_ = self._pinned(pin, forecasts)
        else:
            current = self._current.get(_conversation(call))
            name, reason, forecasts_ = self._policy(forecasts, budget, current)
        prompt = prompts[self.family.tier(name).taught_tools]
        return Decision(
            name, reason, difficulty, len(prompt), tuple(forecasts_), prompt=prompt, call=trimmed
        )

    def explain(self, call: Call, *, budget: Budget | None = None) -> Decision:
        """Prints every tier with forecast and verdict, and returns the decision."""
        decision = self.decide(call, budget=budget)
        print(decision.table())
        return decision

    def learn(self, call: Call, answer: Answer) -> None:
        """Remembers which tier answered, and what every attempt took."""
        for attempt in answer.attempts:
            self.cost.observe(
                attempt.decision.tier,
                call,
                attempt.reply.usage,
                attempt.seconds,
                attempt.decision.forecast.seconds,
                attempt.load_s,
            )
        tier = answer.final.decision.tier
        with self._lock:
            key = _conversation(call)
            self._current[key] = tier
            self._current.move_to_end(key)
            while len(self._current) > _REMEMBERED_CONVERSATIONS:
                self._current.popitem(last=False)

    def better_than(self, tier: str) -> tuple[Tier, ...]:
        """The enabled tiers of better quality, the nearest first."""
        names = [t.name for t in self.tiers]
        return self.tiers[names.index(tier) + 1 :] if tier in names else ()

    def _prompts(
        self, call: Call, budget: Budget, excluded: Mapping[str, str]
    ) -> tuple[Prompts, Call | None]:
        """The prompts in tokens, and the call that they are of where that had to be trimmed."""
        prompts = self._written(call)
        if call.overflow == "error":
            return prompts, None
        tiers = [tier for tier in self.tiers if tier.name not in excluded] or self.tiers
        context = max(tier.context_tokens for tier in tiers)
        reply = _reply_limit(call, budget)
        if reply is None:
            reply = min(DEFAULT_REPLY_ROOM, context // 4)
        room = context - reply
        kinds = {tier.taught_tools for tier in tiers}

        def longest(some: Prompts) -> int:
            return max(len(some[kind]) for kind in kinds)

        if longest(prompts) <= room:
            return prompts, None
        shorter = trim(call, lambda some: longest(self._written(some)), room)
        return (prompts, None) if shorter is call else (self._written(shorter), shorter)

    def _written(self, call: Call) -> Prompts:
        """By whether tiers were taught tools; of one kind if all are of it."""
        kinds = {tier.taught_tools for tier in self.tiers}
        return {taught: self.pool.prompt(call, taught_tools=taught) for taught in kinds}

    def _excluded(
        self, above: str | None, without: Iterable[str], pin: str | None
    ) -> dict[str, str]:
        excluded = dict.fromkeys(without, "out of reach")
        if above is not None:
            self.family.tier(above)  # raises for an unknown name
            better = {tier.name for tier in self.better_than(above)}
            excluded |= {
                t.name: f"no better than {above}" for t in self.tiers if t.name not in better
            }
        if pin is not None:
            self.family.tier(pin)  # raises for an unknown name
            excluded |= {t.name: f"{pin} is pinned" for t in self.tiers if t.name != pin}
        return excluded

    def _forecast(
        self,
        tier: Tier,
        call: Call,
        prompt: tuple[int, ...],
        success: float,
        budget: Budget,
        resources: Resources,
        resident: ResidentTier | None,
        verdict: str | None,
    ) -> Forecast:
        """``verdict`` says why the tier may not be chosen, whatever is forecast; None if it may."""
        room = context_needed(call, len(prompt), budget, tier)
        cold = resident is None  # a context that is too small grows, and keeps what it has read
        new = len(prompt) - (0 if cold else self.pool.cached_prefix(tier, prompt))
        cost = self.cost.cost(
            tier.name,
            new,
            self.cost.reply(call, _reply_limit(call, budget)),
            cold=cold,
            waiting=resident.leases if resident else 0,
        )
        memory = 0
        if verdict is None:
            try:
                memory = self.pool.need_bytes(tier, room)
                fits, why = self.pool.fits(tier, room, resources, budget.memory)
                verdict = None if fits else why
            except TierwiseError as error:
                verdict = str(error)
        forecast = Forecast(
            tier=tier.name,
            success=success,
            seconds=cost.seconds,
            first_token_s=cost.first_token_s,
            joules=cost.joules,
            memory_bytes=memory,
            new_tokens=new,
            cold=cold,
            feasible=verdict is None,
            verdict=verdict or "",
        )
        if verdict is None and (late := over_time(forecast, budget)):
            return replace(forecast, feasible=False, verdict=late)
        return forecast

    def _pinned(self, pin: str, forecasts: list[Forecast]) -> tuple[str, str, tuple[Forecast, ...]]:
        chosen = next((f for f in forecasts if f.tier == pin), None)
        if chosen is None or not chosen.feasible:
            why = chosen.verdict if chosen else "it is not among the enabled tiers"
            raise NoFeasibleTierError(
                f"the pinned tier {pin!r} cannot answer this call: {why}. Unpin it (model=None) or "
                "allow more."
            )
        return pin, f"{pin} was asked for by name", tuple(forecasts)


def context_needed(call: Call, prompt_tokens: int, budget: Budget, tier: Tier) -> int:
    """Context tokens that a call needs: its prompt and room for the reply.

    A reply of unknown length gets `DEFAULT_REPLY_ROOM`, or what the model has left.
    """
    limit = _reply_limit(call, budget)
    if limit is not None:
        return prompt_tokens + limit
    left = tier.context_tokens - prompt_tokens
    return prompt_tokens + max(1, min(DEFAULT_REPLY_ROOM, left))


def _reply_limit(call: Call, budget: Budget) -> int | None:
    """Tokens that the reply may have at most; None if nobody said."""
    limits = [x for x in (call.max_tokens, budget.reply_tokens) if x is not None]
    return min(limits, default=None)


def _conversation(call: Call) -> str:
    """A conversation is known by how it began: system prompt, first user turn and tools."""
    start = [m.content for m in call.messages if m.role == "system"][:1]
    start += [m.content for m in call.messages if m.role == "user"][:1]
    start += [tool.name for tool in call.tools]
    return hashlib.sha256("\0".join(start).encode()).hexdigest()
