"""What came of one call: the attempts that were made, and the reply that stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tierwise.routing.decision import Decision
from tierwise.runtime.chat import Reply


@dataclass(frozen=True, slots=True)
class Attempt:
    """One tier's try."""

    decision: Decision
    reply: Reply
    seconds: float
    problem: str
    """What verification found; "" for nothing."""
    load_s: float = 0.0
    """Of the seconds, those in which the tier was loaded."""
    events: tuple[str, ...] = ()
    """What the pool did for it: tiers loaded and unloaded."""
    doubt: str = ""
    """Why a better tier was to be asked all the same; "" for no cause."""

    @property
    def joules(self) -> float:
        """Of this machine: the forecast, for as long as it really took."""
        forecast = self.decision.forecast
        return forecast.joules * self.seconds / forecast.seconds if forecast.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply that stands, and how it came about."""

    attempts: tuple[Attempt, ...]
    id: str = ""
    """By which feedback names it, and the decision log."""

    @property
    def final(self) -> Attempt:
        """The last attempt without a problem or doubt, else without a problem, else of all."""
        sound = [one for one in self.attempts if not one.problem]
        good = [one for one in sound if not one.doubt]
        return (good or sound or self.attempts)[-1]

    @property
    def reply(self) -> Reply:
        return self.final.reply

    @property
    def escalated(self) -> bool:
        """Whether more than one tier was asked."""
        return len({attempt.decision.tier for attempt in self.attempts}) > 1

    @property
    def seconds(self) -> float:
        """Of all attempts together."""
        return sum(attempt.seconds for attempt in self.attempts)

    @property
    def joules(self) -> float:
        """Of all attempts together."""
        return sum(attempt.joules for attempt in self.attempts)

    def to_json(self, *, first: bool = False) -> dict[str, Any]:
        """Plain data for ``response_metadata``.

        Args:
            first: Whether to add the decision that the call began with, where it is another one.
        """
        final = self.final
        forecast = final.decision.forecast
        began = self.attempts[0].decision
        more = {"first_decision": began.to_json()} if first and began is not final.decision else {}
        return {
            "id": self.id,
            "tier": final.decision.tier,
            "reason": final.decision.reason,
            "predicted_s": round(forecast.seconds, 4),
            "actual_s": round(final.seconds, 4),
            "total_s": round(self.seconds, 4),
            "predicted_joules": round(forecast.joules, 3),
            "total_joules": round(self.joules, 3),
            "escalated": self.escalated,
            "problem": final.problem,
            "attempts": [
                {
                    "tier": attempt.decision.tier,
                    "predicted_s": round(attempt.decision.forecast.seconds, 4),
                    "predicted_joules": round(attempt.decision.forecast.joules, 3),
                    "actual_s": round(attempt.seconds, 4),
                    "joules": round(attempt.joules, 3),
                    "problem": attempt.problem,
                    "doubt": attempt.doubt,
                    "reused_tokens": attempt.reply.usage.reused_tokens,
                    "events": list(attempt.events),
                }
                for attempt in self.attempts
            ],
            "decision": final.decision.to_json(),
            **more,
        }
