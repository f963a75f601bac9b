"""Answers a call: decide, run, verify, and escalate to a better tier when there is cause.

What a later escalation would take back is never shown: text leaves as it comes, and once some
has left the reply stands; tool calls are held until they are verified.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from tierwise.routing.budget import Budget
from tierwise.routing.decision import Decision
from tierwise.routing.router import Router, context_needed
from tierwise.routing.verify import is_new, verify
from tierwise.runtime.chat import Call, Reply
from tierwise.runtime.errors import (
    EngineError,
    FamilyError,
    ModelError,
    NoFeasibleTierError,
    OutOfMemoryError,
)
from tierwise.runtime.pool import WAIT_S

logger = logging.getLogger("tierwise.routing")

UNREACHABLE = (FamilyError, ModelError, OutOfMemoryError, EngineError)
"""Failures of a tier, not of the call: another tier may still answer."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One tier's try."""

    decision: Decision
    reply: Reply
    seconds: float
    problem: str
    """What verification found; "" for nothing."""
    events: tuple[str, ...] = ()
    """What the pool did for it: tiers loaded and unloaded."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply that stands, and how it came about."""

    attempts: tuple[Attempt, ...]

    @property
    def final(self) -> Attempt:
        """The last attempt without a problem, or the last of all."""
        good = [attempt for attempt in self.attempts if not attempt.problem]
        return (good or self.attempts)[-1]

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

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``response_metadata``."""
        final = self.final
        forecast = final.decision.forecast
        return {
            "tier": final.decision.tier,
            "reason": final.decision.reason,
            "predicted_s": round(forecast.seconds, 4),
            "actual_s": round(final.seconds, 4),
            "total_s": round(self.seconds, 4),
            "escalated": self.escalated,
            "problem": final.problem,
            "attempts": [
                {
                    "tier": attempt.decision.tier,
                    "predicted_s": round(attempt.decision.forecast.seconds, 4),
                    "actual_s": round(attempt.seconds, 4),
                    "problem": attempt.problem,
                    "events": list(attempt.events),
                }
                for attempt in self.attempts
            ],
            "decision": final.decision.to_json(),
        }


def answer(
    router: Router, call: Call, *, budget: Budget | None = None, pin: str | None = None
) -> Answer:
    """Answers a call and waits for the whole reply.

    Args:
        budget: Instead of the router's own.
        pin: Use this tier and no other.

    Raises:
        NoFeasibleTierError: No tier fits budget and machine.
        ContextOverflowError, ToolSchemaError, CallTimeoutError: The call cannot be answered.
    """
    stream = stream_answer(router, call, budget=budget, pin=pin, hold=True)
    while True:
        try:
            next(stream)
        except StopIteration as done:
            result: Answer = done.value
            return result


def stream_answer(
    router: Router,
    call: Call,
    *,
    budget: Budget | None = None,
    pin: str | None = None,
    hold: bool = False,
) -> Generator[str, None, Answer]:
    """Yields text as it comes and returns the `Answer`; raises what `answer` raises.

    Closing the generator cancels what runs.

    Args:
        hold: Yield nothing, so that a text reply too may be given up for a better tier's.
    """
    budget = budget or router.budget
    if budget.reply_tokens is not None:
        call = replace(call, max_tokens=min(call.max_tokens or 1 << 30, budget.reply_tokens))
    attempts: list[Attempt] = []
    unreachable: dict[str, str] = {}
    above: str | None = None
    shown = False
    began = time.monotonic()
    deadline = None if call.timeout_s is None else time.monotonic() + call.timeout_s
    while True:
        try:
            left = budget.after(time.monotonic() - began) if attempts or unreachable else budget
            decision = router.decide(call, budget=left, above=above, without=unreachable, pin=pin)
        except NoFeasibleTierError as error:
            if attempts:  # nobody above can take it: what we have stands
                break
            if unreachable:
                details = "; ".join(f"{name}: {why}" for name, why in unreachable.items())
                raise NoFeasibleTierError(f"{error} Out of reach: {details}") from error
            raise
        if above is not None:
            reason = f"escalated from {above}: {attempts[-1].problem}"
            decision = replace(decision, reason=reason)
        try:
            blank = ""  # a reply that never gets beyond white space may still be given up
            for text in (run := _Run(router, call, decision, budget, deadline)):
                blank += text
                if not hold and (shown or blank.strip()):
                    shown = True
                    yield blank
                    blank = ""
            attempt = run.attempt()
        except UNREACHABLE as error:
            logger.warning("tier %s is out of reach: %s", decision.tier, error)
            unreachable[decision.tier] = str(error)
            if pin is not None or shown:
                raise
            continue
        attempts.append(attempt)
        above = decision.tier
        if not attempt.problem or shown or pin is not None or not router.better_than(above):
            break
    if _repeats_itself(call, attempts[-1]) and not call.must_call:
        # No tier sees that the tool has answered: have the result told in words, else the
        # agent would ask the same for ever.
        final = attempts[-1].decision
        words = replace(call, tool_choice="none")
        told = replace(final, reason=attempts[-1].problem)
        for text in (run := _Run(router, words, told, budget, deadline)):
            if not hold:
                yield text
        attempts.append(run.attempt())
    result = Answer(tuple(attempts))
    router.learn(call, result.final.decision.tier, result.reply.usage)
    return result


class _Run:
    """One tier's try: iterate for its text, then ask for the attempt."""

    def __init__(
        self,
        router: Router,
        call: Call,
        decision: Decision,
        budget: Budget,
        deadline: float | None,
    ) -> None:
        self._router = router
        self._call = call
        self._decision = decision
        self._budget = budget
        self._deadline = deadline
        self._done: tuple[Reply, float, tuple[str, ...]] | None = None

    def __iter__(self) -> Iterator[str]:
        began = time.perf_counter()
        call, decision = self._call, self._decision
        tier = self._router.family.tier(decision.tier)
        room = context_needed(call, decision.prompt_tokens, self._budget, tier)
        wait = min(WAIT_S, self._left())
        with self._router.pool.acquire(
            tier, context_tokens=room, memory_bytes=self._budget.memory, timeout_s=wait
        ) as lease:
            if self._deadline is not None:
                call = replace(call, timeout_s=self._left())
            with closing(lease.tier.stream(call)) as stream:
                yield from stream
                reply = stream.reply()
        self._done = reply, time.perf_counter() - began, lease.events

    def _left(self) -> float:
        """Seconds to the deadline; infinite without one."""
        return math.inf if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def attempt(self) -> Attempt:
        """What came of it; only after the iteration has ended."""
        assert self._done is not None
        reply, seconds, events = self._done
        return Attempt(self._decision, reply, seconds, verify(self._call, reply), events)


def _repeats_itself(call: Call, attempt: Attempt) -> bool:
    return bool(attempt.problem) and is_new(call, attempt.reply) is not None


__all__ = ["Answer", "Attempt", "answer", "stream_answer"]
