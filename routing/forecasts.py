"""What each tier would take for a call, and whether it can answer it at all."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tierwise.routing.budget import Budget
from tierwise.routing.cost import CostModel, ExpectedReply
from tierwise.routing.decision import Forecast
from tierwise.routing.policy import over_limit
from tierwise.routing.prompts import Prompts, context_needed, reply_limit
from tierwise.routing.success import narrowed
from tierwise.runtime.chat import Call
from tierwise.runtime.family import Tier
from tierwise.runtime.lease import ResidentTier
from tierwise.runtime.pool import Pool
from tierwise.runtime.remote import RemoteClient
from tierwise.runtime.resources import Resources


@dataclass(frozen=True, slots=True)
class Shortage:
    """A tier that memory keeps from answering a call.

    Args:
        tier: Its name.
        context_tokens: That the call needs.
        need_bytes: What it would take.
        most_bytes: What it could have, all idle tiers unloaded.
    """

    tier: str
    context_tokens: int
    need_bytes: int
    most_bytes: int


@dataclass(frozen=True, slots=True)
class Forecaster:
    """Forecasts for one call.

    Args:
        pool: Asked what is cached, what fits, and what memory a tier needs.
        cost: Seconds and joules.
        call: The call.
        prompts: Its prompts.
        budget: What it may take.
        resources: What the machine has now.
        difficulty: Of the call, 0..1.
        shortages: Takes note of the tiers that only memory keeps from answering.
        reply: Whose length is expected.
    """

    pool: Pool
    cost: CostModel
    call: Call
    prompts: Prompts
    budget: Budget
    resources: Resources
    difficulty: float
    shortages: list[Shortage] = field(default_factory=list)
    reply: ExpectedReply = field(init=False)

    def __post_init__(self) -> None:
        limit = reply_limit(self.call, self.budget)
        object.__setattr__(self, "reply", self.cost.reply(self.call, limit))

    def local(
        self, tier: Tier, success: float, resident: ResidentTier | None, verdict: str | None
    ) -> Forecast:
        """Of a tier of this machine.

        Args:
            tier: Which.
            success: Its chance of being right.
            resident: If it is loaded.
            verdict: Why it may not be chosen, whatever is forecast; None if it may.
        """
        prompt = self.prompts[tier.taught_tools]
        room = context_needed(self.call, len(prompt), self.budget, tier)
        cold = resident is None  # a context that is too small grows, and keeps what it has read
        kv_type, memory, note = resident.kv_type if resident else tier.kv_type, 0, ""
        if verdict is None:
            # A promise was tested on the tiers as they are.
            promised = self.budget.guarantee is not None
            fit = self.pool.fit(tier, room, self.resources, self.budget.memory, narrow=not promised)
            cold, kv_type, memory, note = fit.cold, fit.kv_type, fit.bytes, fit.note
            if not fit.ok:
                verdict = fit.why
                if memory:
                    self.shortages.append(Shortage(tier.name, room, memory, fit.most_bytes))
            if note:
                success = narrowed(tier, success, self.difficulty)
        new = len(prompt) - (0 if cold else self.pool.cached_prefix(tier, prompt))
        slowdown, reply = self.cost.slowdown(tier.name, self.resources), self.reply
        cost = self.cost.cost(
            tier.name,
            new,
            reply,
            cold=cold,
            waiting=resident.leases if resident else 0,
            kv_type=kv_type,
            slowdown=slowdown,
        )
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
            kv_type=kv_type,
            slowdown=slowdown,
            note=note,
            return_s=self.cost.coming_back(
                tier.name, new, reply, cold=cold, kv_type=kv_type, slowdown=slowdown
            ),
            reload_s=self.cost.coming_back(
                tier.name, len(prompt), reply, cold=True, kv_type=kv_type, slowdown=slowdown
            ),
            crowds=cold and self._crowds(memory),
        )
        return self._within_limits(forecast)

    def remote(self, client: RemoteClient, success: float, verdict: str | None) -> Forecast:
        """Of a tier on another machine. What its server has cached is not known."""
        tier, tokens = client.tier, len(self.prompts[False])
        verdict = verdict or client.cannot(self.call) or client.out_of_reach()
        room = context_needed(self.call, tokens, self.budget, tier)
        if not verdict and room > tier.context_tokens:
            verdict = f"{room:,} tokens are more than its context of {tier.context_tokens:,}"
        cost = self.cost.cost(tier.name, tokens, self.reply, cold=False)
        forecast = Forecast(
            tier=tier.name,
            success=success,
            seconds=cost.seconds,
            first_token_s=cost.first_token_s,
            joules=0.0,  # of this machine
            memory_bytes=0,
            new_tokens=tokens,
            cold=False,
            feasible=not verdict,
            verdict=verdict,
            remote=True,
        )
        return self._within_limits(forecast)

    def _crowds(self, memory: int) -> bool:
        """Whether so many bytes can be had only if what is loaded goes."""
        if memory > self.resources.available_bytes or self.budget.memory is None:
            return memory > self.resources.available_bytes
        loaded = sum(resident.bytes for resident in self.pool.resident().values())
        return memory + loaded > self.budget.memory

    def _within_limits(self, forecast: Forecast) -> Forecast:
        if forecast.feasible and (over := over_limit(forecast, self.budget)):
            return replace(forecast, feasible=False, verdict=over)
        return forecast
