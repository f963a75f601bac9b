"""What a call will cost on each tier, in seconds and joules, put right by what calls really took.

The forecast is this machine's profile of the tier: wait, load if cold, prefill of what the tier
has not cached, decode of the reply that is expected, stretched by what other processes do with
the cores now. Three factors for each tier (loading, prefill, decode) and one delay follow what
really happened beside that, so that a machine that is hot or on battery is forecast as it is now
and not as it was when it was measured.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from tierwise.runtime.chat import Call, Usage
from tierwise.runtime.context import KVType
from tierwise.runtime.energy import WATTS_PER_CORE
from tierwise.runtime.profile import KVSpeed, Profile
from tierwise.runtime.resources import Resources

WEIGHT = 0.15
"""Of a new observation in a running mean."""

MOST = 8.0
"""Factors stay between 1 / 8 and 8: a machine that slept in the middle of a call is no slower."""

LONGEST_DELAY_S = 1.0
"""Of what a call takes beside loading, waiting, prefill and decode (templates, verification)."""

SHORT_S = 0.002
"""Parts of a call that are shorter say nothing of speed."""

UNKNOWN_KV_SPEED = KVSpeed(prefill=0.7, decode=1.0)
"""Of keys and values as q8_0 against f16, where it was not measured: as of SmolLM2 on x86."""

REMEMBERED = 512
"""Calls whose errors are kept, and kinds of calls whose replies' lengths are."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one call on one tier.

    Args:
        first_token_s: From the call to the first token.
        seconds: From the call to the last token.
        joules: Of the machine, while it runs.
    """

    first_token_s: float
    seconds: float
    joules: float


@dataclass(slots=True)
class _Factors:
    """Logarithms of (what it took ÷ what the profile says), and seconds that it says nothing of."""

    load: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    delay_s: float = 0.0


@dataclass(slots=True)
class _Length:
    """Running means of a reply's tokens: those chosen, and those forced."""

    chosen: float
    forced: float
    seen: int = 0

    def update(self, usage: Usage) -> None:
        self.seen += 1
        weight = max(WEIGHT, 1 / (1 + self.seen))
        self.chosen += weight * (usage.completion_tokens - usage.forced_tokens - self.chosen)
        self.forced += weight * (usage.forced_tokens - self.forced)


@dataclass(frozen=True, slots=True)
class ExpectedReply:
    """Tokens of a reply: those that the model chooses, and those that the grammar forces."""

    chosen: float
    forced: float


@dataclass
class CostModel:
    """Forecasts for the tiers of one family on this machine. Safe to use from many threads.

    Args:
        profiles: By tier name.
        watts: What the machine takes while a tier runs; None for an estimate from its threads.
    """

    profiles: Mapping[str, Profile]
    watts: float | None = None
    _factors: dict[str, _Factors] = field(default_factory=dict, init=False)
    _lengths: OrderedDict[str, _Length] = field(default_factory=OrderedDict, init=False)
    _errors: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED), init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def reply(self, call: Call, limit: int | None = None) -> ExpectedReply:
        """How long the reply will be: as those to calls with the same tools, or of the same kind.

        Args:
            limit: Tokens that it may have at most.
        """
        kind = kind_of(call)
        with self._lock:
            found = self._lengths.get(_alike(call)) or self._lengths.get(kind)
        length = found or _USUAL[kind]
        chosen = length.chosen if limit is None else min(length.chosen, limit)
        return ExpectedReply(chosen, length.forced)

    def cost(
        self,
        tier: str,
        new_tokens: int,
        reply: ExpectedReply,
        *,
        cold: bool,
        waiting: int = 0,
        kv_type: KVType = "f16",
        slowdown: float = 1.0,
    ) -> Cost:
        """A call's cost on a tier.

        Args:
            new_tokens: Of the prompt, those that the tier has not cached.
            reply: From `reply`.
            cold: Whether the tier must be loaded first.
            waiting: Calls that run on the tier already and share it.
            kv_type: How the tier keeps keys and values; profiles are of f16.
            slowdown: As of `slowdown`.
        """
        profile, factors = self.profiles[tier], self._factors.get(tier) or _Factors()
        load = profile.load_s * math.exp(factors.load) if cold else 0.0
        prefill_s, decode_s = _token_seconds(profile, kv_type, slowdown)
        # Forced tokens are read in batches, like a prompt.
        by_token = math.exp(factors.prefill) * prefill_s
        step = math.exp(factors.decode) * decode_s * _crowded(profile, waiting)
        first = factors.delay_s + load + new_tokens * by_token + step
        seconds = first + reply.forced * by_token + max(0.0, reply.chosen - 1) * step
        return Cost(first, seconds, seconds * self._watts(profile))

    def slowdown(self, tier: str, resources: Resources) -> float:
        """How many times longer the tier computes for what other processes do, at least 1.

        Threads get equal shares of the cores, and llama.cpp's wait for each other at every
        operation: with more threads that want to run than there are cores, all take turns.
        """
        if resources.others_load is None or tier not in self.profiles:
            return 1.0
        own = self.profiles[tier].threads / max(1, resources.logical_cores)
        return max(1.0, own + resources.others_load)

    def coming_back(
        self,
        tier: str,
        missed_tokens: int,
        reply: ExpectedReply,
        *,
        cold: bool,
        kv_type: KVType = "f16",
        slowdown: float = 1.0,
    ) -> float:
        """Seconds for a tier to read what of a conversation another one has answered.

        Args:
            missed_tokens: Of the prompt that the other one answers.
            reply: Of the other one; it is read like a prompt.
            cold: Whether the tier must be loaded first.
            kv_type, slowdown: As of `cost`.
        """
        profile, factors = self.profiles[tier], self._factors.get(tier) or _Factors()
        load = profile.load_s * math.exp(factors.load) if cold else 0.0
        tokens = missed_tokens + reply.chosen + reply.forced
        prefill_s, _ = _token_seconds(profile, kv_type, slowdown)
        return load + tokens * math.exp(factors.prefill) * prefill_s

    def observe(
        self,
        tier: str,
        call: Call,
        usage: Usage,
        seconds: float,
        forecast_s: float,
        load_s: float,
        *,
        kv_type: KVType = "f16",
        slowdown: float = 1.0,
    ) -> None:
        """Learns from a call that is over.

        Args:
            usage: Of its reply.
            seconds: That the call took in all.
            forecast_s: What `cost` had said.
            load_s: Of the seconds, those in which the tier was loaded; 0 if it was resident.
            kv_type, slowdown: That were forecast, so that they are not learned once more.
        """
        profile = self.profiles[tier]
        batched = usage.forced_tokens + usage.reused_tokens
        chosen = usage.completion_tokens - batched
        read = usage.prompt_tokens - usage.cached_tokens
        with self._lock:
            factors = self._factors.setdefault(tier, _Factors())
            prefill_s, decode_s = _token_seconds(profile, kv_type, slowdown)
            batched_s = batched * math.exp(factors.prefill) * prefill_s
            _follow(factors, "load", load_s, profile.load_s)
            _follow(factors, "prefill", usage.prefill_s, read * prefill_s)
            _follow(factors, "decode", usage.decode_s - batched_s, chosen * decode_s)
            rest = seconds - load_s - usage.queue_s - usage.prefill_s - usage.decode_s
            factors.delay_s += WEIGHT * (min(LONGEST_DELAY_S, max(0.0, rest)) - factors.delay_s)
            for key in (kind_of(call), _alike(call)):
                usual = _USUAL[kind_of(call)]
                length = self._lengths.setdefault(key, _Length(usual.chosen, usual.forced))
                length.update(usage)
                self._lengths.move_to_end(key)
            while len(self._lengths) > REMEMBERED:
                self._lengths.popitem(last=False)
            if seconds > 0:
                self._errors.append(abs(forecast_s - seconds) / seconds)

    def error(self) -> float | None:
        """Median of |forecast − actual| ÷ actual over the latest calls; None before the first."""
        with self._lock:
            return median(self._errors) if self._errors else None

    def _watts(self, profile: Profile) -> float:
        return profile.threads * WATTS_PER_CORE if self.watts is None else self.watts


def kind_of(call: Call) -> str:
    """What kind of reply a call wants: "call", "schema" or "text"."""
    if call.usable_tools:
        return "call"
    return "schema" if call.response_schema is not None else "text"


_USUAL = {"call": _Length(15.0, 15.0), "schema": _Length(25.0, 15.0), "text": _Length(60.0, 0.0)}
"""Before anything was seen."""


def _alike(call: Call) -> str:
    """The same for calls with the same tools and choice of them."""
    return " ".join((kind_of(call), call.tool_choice, *(tool.name for tool in call.usable_tools)))


_SAME_SPEED = KVSpeed(prefill=1.0, decode=1.0)


def _token_seconds(profile: Profile, kv_type: KVType, slowdown: float) -> tuple[float, float]:
    """Of a token of the prompt, and of the reply, as the profile has them."""
    speed = _SAME_SPEED if kv_type == "f16" else profile.kv_q8_0 or UNKNOWN_KV_SPEED
    return (
        slowdown / (profile.prefill_tokens_per_s * speed.prefill),
        slowdown / (profile.decode_tokens_per_s * speed.decode),
    )


def _crowded(profile: Profile, waiting: int) -> float:
    """How many times longer a decode step takes when other sequences share it."""
    known = profile.sequences_s
    if not waiting or 1 not in known:
        return 1.0
    count = max((size for size in known if size <= waiting + 1), default=1)
    return max(1.0, known[count] / known[1])


def _follow(factors: _Factors, part: str, took_s: float, profile_s: float) -> None:
    if took_s < SHORT_S or profile_s < SHORT_S:
        return
    ratio = math.log(min(MOST, max(1 / MOST, took_s / profile_s)))
    old = getattr(factors, part)
    setattr(factors, part, old + WEIGHT * (ratio - old))
