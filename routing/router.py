"""``Router.decide``: which tier answers a call, from what each would cost and how it would do."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TypeVar

from tierwise.routing.adaptation import Adaptation
from tierwise.routing.answer import Answer
from tierwise.routing.budget import Budget
from tierwise.routing.calibration import Calibration
from tierwise.routing.chances import Chances
from tierwise.routing.cost import CostModel
from tierwise.routing.decision import Decision, Forecast
from tierwise.routing.decision_log import DecisionLog
from tierwise.routing.difficulty import DifficultyEstimator, structural_difficulty
from tierwise.routing.forecasts import Forecaster
from tierwise.routing.policy import Policy, feasible_first
from tierwise.routing.prompts import context_needed, write_prompts
from tierwise.routing.second_chances import SecondChances
from tierwise.routing.success import USUAL_DIFFICULTY, by_quality
from tierwise.routing.variants import Deriver, Variants, profile_of
from tierwise.runtime.chat import Call, Reply
from tierwise.runtime.errors import (
    ConfigError,
    ContextOverflowError,
    NoFeasibleTierError,
)
from tierwise.runtime.family import Family, Tier
from tierwise.runtime.pool import Pool
from tierwise.runtime.profile import Profile, family_profiles
from tierwise.runtime.recent import recent_probe
from tierwise.runtime.remote import RemoteClient, RemoteLease, remote_profile
from tierwise.runtime.remote_tier import RemoteTier
from tierwise.runtime.resources import ResourceProbe, Resources

_REMEMBERED = 1024
"""Conversations, and answers that feedback may be given to."""

T = TypeVar("T")


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
        calibration: Of this family: chances of success, instead of those that its own
            measurements and ``difficulty`` make likely.
        log: Takes note of every answer; `close` closes it.
        deriver: Makes cheaper variants of tiers that memory has no room for (see `variants`);
            None for none. Those that it made before are tiers from the start.

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
        calibration: Calibration | None = None,
        log: DecisionLog | None = None,
        deriver: Deriver | None = None,
    ) -> None:
        self.family = family
        self.pool = pool
        self.budget = budget or Budget()
        self._difficulty = difficulty
        self._policy = policy
        self._probe = probe
        self.cost = CostModel(
            {
                **family_profiles(family),
                **{remote.name: remote_profile(remote) for remote in family.remotes},
                **(profiles or {}),
            }
        )
        self.calibration = calibration
        self.adaptation = Adaptation(calibration)
        enabled = None if tiers is None else {family.member(name).name for name in tiers}
        ordered: tuple[Tier | RemoteTier, ...] = (*by_quality(family), *family.remotes)
        if calibration is not None:
            ordered = calibration.ordered(ordered)
        self.members = tuple(one for one in ordered if enabled is None or one.name in enabled)
        """All enabled tiers, from the worst to the best; remote ones that nobody calibrated come
        last."""
        self.tiers = tuple(one for one in self.members if isinstance(one, Tier))
        self.remotes = tuple(one for one in self.members if isinstance(one, RemoteTier))
        self._clients = {one.name: RemoteClient(one) for one in self.remotes}
        if not self.tiers and not self.remotes:
            raise ConfigError("tiers=[] leaves no tier to route to; leave it out to use all")
        self._lock = threading.Lock()
        self._current: OrderedDict[str, str] = OrderedDict()
        self._answers: OrderedDict[str, Forecast] = OrderedDict()
        self._log = log
        self._variants = None
        if deriver is not None:
            self._variants = Variants(family, deriver, threads=pool.threads)
        self._chances = Chances(family, calibration, self._variants)
        self._take_in()

    def decide(
        self,
        call: Call,
        *,
        budget: Budget | None = None,
        above: str | None = None,
        without: Iterable[str] = (),
        pin: str | None = None,
        policy: Policy | None = None,
    ) -> Decision:
        """The tier for a call, and the prompt that it is to be given.

        With ``call.overflow == "trim"``, a conversation too long for every context is trimmed.

        Args:
            budget: Instead of the router's own.
            above: Only tiers of better quality than this one (for escalation).
            without: Tiers that turned out to be out of reach.
            pin: The user's choice; it must still be feasible.
            policy: Instead of the router's own, for a question about a call that is not answered
                here. What it chooses need not be of the family, and calls too long for every
                tier are for it to judge.

        Raises:
            NoFeasibleTierError: No tier fits; lists what each would need.
            ContextOverflowError: Prompt and reply are longer than any tier's context (trimmed,
                if that was asked for).
            ConfigError: ``pin`` or ``above`` names no tier.
        """
        budget = budget or self.budget
        resources = self._probe()
        self._take_in()
        tiers, members = self.tiers, self.members
        excluded = self._excluded(above, without, pin)
        if budget.guarantee is not None and self.calibration is not None:
            untested = {one.name for one in members} - {*self.calibration.tiers}
            excluded |= dict.fromkeys(untested, "no promise was tested on it")
        usable = [one for one in members if one.name not in excluded] or members
        prompts, trimmed = write_prompts(self.pool, call, budget, tiers=members, usable=usable)
        longest = max(members, key=lambda one: one.context_tokens)
        prompt = min(prompts.values(), key=len)
        room = context_needed(call, len(prompt), budget, longest)
        if room > longest.context_tokens and policy is None:
            left_out = " without the turns in its middle" if trimmed else ""
            raise ContextOverflowError(
                f"the prompt has {len(prompt):,} tokens{left_out} and the reply may have "
                f"{room - len(prompt):,}; the longest context of the enabled tiers is "
                f"{longest.context_tokens:,}. Shorten the conversation or the tools, or lower "
                "max_tokens."
            )
        difficulty, conversation = self._difficulty(call), _conversation(call)
        success = self._chances(call, prompt, difficulty, self.remotes)
        # An escalation is the same call once more, and a question about a call is none.
        if above is None and policy is None:
            turns = sum(message.role == "user" for message in call.messages)
            self.adaptation.seen(success, (conversation, turns))
        if budget.guarantee is None:  # a promise was tested on chances as they were learned
            success = self.adaptation.corrected(success)
        budget, priced = self._granted(budget, resources)
        resident = self.pool.resident()
        made = Forecaster(self.pool, self.cost, call, prompts, budget, resources, difficulty)
        forecasts = [
            made.local(tier, success[tier.name], resident.get(tier.name), excluded.get(tier.name))
            for tier in tiers
        ]
        if self._variants is not None and not excluded and budget.guarantee is None:
            expected = success if self.calibration is None else self._chances.usual(difficulty)
            self._variants.seen(made.shortages, forecasts, expected, difficulty)
        forecasts += [
            made.remote(client, success[client.tier.name], excluded.get(client.tier.name))
            for client in self._clients.values()
        ]
        if budget.guarantee is not None and self.calibration is not None:
            forecasts = self.calibration.cheapest_first(forecasts)
        if pin is not None:
            name, reason, forecasts_ = self._pinned(pin, forecasts)
        else:
            current = self._current.get(conversation)
            name, reason, forecasts_ = (policy or self._policy)(forecasts, budget, current)
            reason = f"{reason}; {priced}" if priced else reason
        unusual = next(one.note for one in forecasts_ if one.tier == name)
        reason = f"{reason}, {unusual}" if unusual else reason
        taught = {one.name: one.taught_tools for one in members}
        prompt = prompts[taught[name]] if name in taught else prompt
        return Decision(
            name, reason, difficulty, len(prompt), tuple(forecasts_), prompt=prompt, call=trimmed
        )

    def _granted(self, budget: Budget, resources: Resources) -> tuple[Budget, str]:
        """The budget with power, quality and prices to route with now, and what is to be told of
        them."""
        budget = budget.on(resources)
        promised = budget.guarantee is not None and 0 < budget.quality < 1
        if not (promised or budget.by_mean):
            return budget, ""
        if self.calibration is None:
            asked = budget.model_dump(
                include={"guarantee", "mean_seconds", "mean_quality"}, exclude_none=True
            )
            given = ", ".join(f"{name}={value}" for name, value in asked.items())
            raise ConfigError(
                f"{given} cannot be given: {str(self.family.folder)!r} is not calibrated. Run "
                "tierwise calibrate, or leave it out."
            )
        if budget.guarantee is None:
            price = self.calibration.price(budget, [one.name for one in self.members])
            return budget.model_copy(update={"price_per_second": price.per_second}), price.reason
        quality = None
        if self.calibration.verdict.route:  # else chances are not those that it was tested on
            enabled = [one.name for one in self.members]
            promise = self.calibration.promise(budget.quality, budget.guarantee, enabled)
            quality = self.adaptation.kept(promise).threshold
        return budget.model_copy(update={"quality": 1.0 if quality is None else quality}), ""

    def _take_in(self) -> None:
        """Makes variants that have come to be tiers like any other."""
        if self._variants is None:
            return
        with self._lock:
            for variant, parent in self._variants.arrived(self.tiers):
                tier = variant.tier
                profile = profile_of(tier, parent, self.cost.profiles[parent.name])
                self.cost.profiles = {**self.cost.profiles, tier.name: profile}
                expected = self._chances.usual(USUAL_DIFFICULTY)
                self.members = self._variants.place(tier, self.members, expected)
                self.tiers = tuple(one for one in self.members if isinstance(one, Tier))

    def doubt(self, decision: Decision, reply: Reply, budget: Budget) -> str:
        """Why a better tier should be asked after this reply, in English; "" for no cause.

        By how sure the tier was of its tokens, the reply may now be less likely to be right than
        the budget's quality asks of the best tier that could still answer. Where the budget sets
        prices, a better tier is asked if what it is likely to gain is worth more than its call.
        """
        known = self._second_chances(decision, reply, problem=False)
        return "" if known is None else known.doubt(self._granted(budget, self._probe())[0])

    def pays(self, decision: Decision, reply: Reply, budget: Budget) -> bool:
        """Whether a better tier should be asked after a reply that verification found fault with.

        It should, unless the budget sets prices, and it is known from calibration that such calls
        are hardly ever answered rightly by any tier.
        """
        known = self._second_chances(decision, reply, problem=True)
        return known is None or known.pays(self._granted(budget, self._probe())[0])

    def _second_chances(
        self, decision: Decision, reply: Reply, *, problem: bool
    ) -> SecondChances | None:
        better = {tier.name for tier in self.better_than(decision.forecast.tier)}
        return SecondChances.of(self.calibration, decision, reply, better, problem=problem)

    def feedback(self, answer_id: str, ok: bool) -> None:
        """What a user says of a reply: later calls are forecast accordingly, and it is logged.

        Args:
            answer_id: As of `Answer`.
            ok: Whether the reply was right.

        Raises:
            ConfigError: It is none of the latest answers of this router, and there is no log.
        """
        with self._lock:
            forecast = self._answers.pop(answer_id, None)
        if forecast is not None:
            self.adaptation.observe(forecast.tier, forecast.success, ok)
        elif self._log is None:
            raise ConfigError(
                f"no reply {answer_id!r} is known here: give the id that its response_metadata "
                f"has, once, among the latest {_REMEMBERED} replies of this process"
            )
        if self._log is not None:
            self._log.feedback(answer_id, ok)

    def explain(self, call: Call, *, budget: Budget | None = None) -> Decision:
        """Prints every tier with forecast and verdict, and returns the decision."""
        decision = self.decide(call, budget=budget)
        print(decision.table())
        return decision

    def learn(self, call: Call, answer: Answer) -> None:
        """Remembers which tier answered, and what every attempt took; writes the log."""
        for attempt in answer.attempts:
            forecast = attempt.decision.forecast
            self.adaptation.verified(forecast.tier, forecast.success, problem=bool(attempt.problem))
            self.cost.observe(
                attempt.decision.tier,
                call,
                attempt.reply.usage,
                attempt.seconds,
                forecast.seconds,
                attempt.load_s,
                kv_type=forecast.kv_type or "f16",
                slowdown=forecast.slowdown,
            )
        final = answer.final.decision
        with self._lock:
            _remember(self._current, _conversation(call), final.tier)
            _remember(self._answers, answer.id, final.forecast)
        if self._log is not None:
            self._log.add(call, answer)

    def close(self) -> None:
        """Unloads all tiers and closes the log. Safe to call twice."""
        if self._variants is not None:
            self._variants.close()
        self.pool.close()
        if self._log is not None:
            self._log.close()

    def better_than(self, tier: str) -> tuple[Tier | RemoteTier, ...]:
        """The enabled tiers of better quality, the nearest first; see `members`."""
        members = self.members
        names = [one.name for one in members]
        return members[names.index(tier) + 1 :] if tier in names else ()

    def remote(self, name: str) -> RemoteLease:
        """An enabled remote tier, to be asked."""
        return RemoteLease(self._clients[name])

    def _excluded(
        self, above: str | None, without: Iterable[str], pin: str | None
    ) -> dict[str, str]:
        excluded = dict.fromkeys(without, "out of reach")
        names = [one.name for one in self.members]
        if above is not None:
            self.family.member(above)  # raises for an unknown name
            better = {tier.name for tier in self.better_than(above)}
            excluded |= {n: f"no better than {above}" for n in names if n not in better}
        if pin is not None:
            self.family.member(pin)  # raises for an unknown name
            excluded |= {n: f"{pin} is pinned" for n in names if n != pin}
        return excluded

    def _pinned(self, pin: str, forecasts: list[Forecast]) -> tuple[str, str, tuple[Forecast, ...]]:
        chosen = next((f for f in forecasts if f.tier == pin), None)
        if chosen is None or not chosen.feasible:
            why = chosen.verdict if chosen else "it is not among the enabled tiers"
            raise NoFeasibleTierError(
                f"the pinned tier {pin!r} cannot answer this call: {why}. Unpin it (model=None) or "
                "allow more."
            )
        return pin, f"{pin} was asked for by name", tuple(forecasts)


def _remember(known: OrderedDict[str, T], key: str, value: T) -> None:
    known[key] = value
    known.move_to_end(key)
    while len(known) > _REMEMBERED:
        known.popitem(last=False)


def _conversation(call: Call) -> str:
    """A conversation is known by how it began: system prompt, first user turn and tools."""
    start = [m.content for m in call.messages if m.role == "system"][:1]
    start += [m.content for m in call.messages if m.role == "user"][:1]
    start += [tool.name for tool in call.tools]
    return hashlib.sha256("\0".join(start).encode(errors="replace")).hexdigest()
