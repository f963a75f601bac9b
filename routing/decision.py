"""A routing decision, with everything that led to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from tierwise.runtime.chat import Call
from tierwise.runtime.context import KVType
from tierwise.runtime.units import show_bytes


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one tier is expected to do with one call.

    ``verdict`` says in English why it was chosen, passed over, or cannot take part.
    """

    tier: str
    success: float
    seconds: float
    first_token_s: float
    joules: float
    memory_bytes: int
    new_tokens: int
    """Of the prompt: those that this tier has not cached."""
    cold: bool
    """Whether it must be loaded first."""
    feasible: bool
    verdict: str
    kv_type: KVType | None = None
    """How keys and values would be stored; None where that was not asked."""
    slowdown: float = 1.0
    """How many times longer the processor takes, for what other processes do."""
    note: str = ""
    """What is unusual about it, in English."""
    return_s: float = 0.0
    """Seconds to come back to it later, if another tier takes this call: for reading what it
    will have missed."""
    reload_s: float = 0.0
    """The same if it is unloaded meanwhile: for loading it, and reading all."""
    crowds: bool = False
    """Whether others must be unloaded to make room for it."""
    remote: bool = False
    """Whether the tier is on another machine."""

    @property
    def within_reach(self) -> bool:
        """Whether it could answer at all: if it is late or too large, with a larger budget."""
        return self.feasible or self.memory_bytes > 0


@dataclass(frozen=True, slots=True)
class Decision:
    """Which tier answers a call, and why.

    Args:
        tier: Its name.
        reason: In one English sentence.
        difficulty: 0..1, as the router's estimator judged the call.
        prompt_tokens: Length of ``prompt``.
        forecasts: Of every tier.
        prompt: The tokens that the tier is to be given, so that nobody renders them again.
        call: What ``prompt`` was made of, where the conversation was trimmed; None for the
            call as it came.
    """

    tier: str
    reason: str
    difficulty: float
    prompt_tokens: int
    forecasts: tuple[Forecast, ...]
    prompt: tuple[int, ...] = field(default=(), repr=False, compare=False)
    call: Call | None = field(default=None, repr=False, compare=False)

    @property
    def forecast(self) -> Forecast:
        """Of the chosen tier."""
        return next(f for f in self.forecasts if f.tier == self.tier)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``response_metadata`` and ``--json``; without prompt and call."""
        return {
            "tier": self.tier,
            "reason": self.reason,
            "difficulty": self.difficulty,
            "prompt_tokens": self.prompt_tokens,
            "forecasts": [asdict(forecast) for forecast in self.forecasts],
        }

    def table(self) -> str:
        """Every tier with its forecast and verdict, for people."""
        head = f"{'':2}{'tier':<16}{'success':>8}{'seconds':>9}{'joules':>8}{'memory':>9}"
        head += f"{'prefill':>9}  verdict"
        rows = [
            f"{'→ ' if f.tier == self.tier else '  '}{f.tier:<16}{f.success:>8.0%}"
            f"{f.seconds:>9.2f}{f.joules:>8.1f}{show_bytes(f.memory_bytes):>9}{f.new_tokens:>9}  "
            f"{f.verdict}{' (cold)' if f.cold else ''}{f', {f.note}' if f.note else ''}"
            for f in self.forecasts
        ]
        summary = (
            f"difficulty {self.difficulty:.2f}, {self.prompt_tokens} prompt tokens: {self.reason}"
        )
        return "\n".join([summary, head, *rows])
