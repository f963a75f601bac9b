"""Answers a call: decide, run, verify, and escalate to a better tier when there is cause.

What a later escalation would take back is never shown: text leaves as it comes, and once some
has left the reply stands; tool calls are held until they are verified.

`_Cascade` and `_Try` decide and wait for nothing; the two drivers, `stream_answer` for threads
and `astream_answer` for coroutines, do the waiting.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from dataclasses import replace

from tierwise.routing.answer import Answer, Attempt
from tierwise.routing.budget import Budget
from tierwise.routing.decision import Decision
from tierwise.routing.prompts import context_needed
from tierwise.routing.router import Router
from tierwise.routing.verify import is_new, verify
from tierwise.runtime.chat import Call, Reply
from tierwise.runtime.errors import (
    CallTimeoutError,
    EngineError,
    FamilyError,
    ModelError,
    NoFeasibleTierError,
    OutOfMemoryError,
)
from tierwise.runtime.lease import Lease
from tierwise.runtime.loaded_tier import ReplyStream
from tierwise.runtime.pool import WAIT_S
from tierwise.runtime.remote import RemoteLease, RemoteReply
from tierwise.runtime.remote_tier import RemoteTier
from tierwise.runtime.reply_parser import Piece

logger = logging.getLogger("tierwise.routing")

UNREACHABLE = (FamilyError, ModelError, OutOfMemoryError, EngineError)
"""Failures of a tier, not of the call: another tier may still answer."""

GRACE = 0.5
"""Of ``seconds_per_call``, beyond it, for replies of which a part is of no use: calls of tools and
JSON. An agent that gets half a call stops."""

USUAL_REPLY = 256
"""Tokens: few replies are longer, whatever their limit. Where many calls run at once, a tier's
context is made to hold so much for each."""


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
    *_, result = stream_answer(router, call, budget=budget, pin=pin, hold=True)
    assert isinstance(result, Answer)
    return result


async def aanswer(
    router: Router, call: Call, *, budget: Budget | None = None, pin: str | None = None
) -> Answer:
    """`answer` for coroutines. Cancelling it cancels what runs."""
    events = astream_answer(router, call, budget=budget, pin=pin, hold=True)
    async with aclosing(events):
        result = [event async for event in events][-1]
    assert isinstance(result, Answer)
    return result


def stream_answer(
    router: Router,
    call: Call,
    *,
    budget: Budget | None = None,
    pin: str | None = None,
    hold: bool = False,
) -> Generator[Piece | Answer, None, None]:
    """Yields the reply's pieces as they come and, last, the `Answer`; raises what `answer` raises.

    The pieces join to the reply's text and reasoning. Closing the generator cancels what runs.

    Args:
        hold: Yield nothing before the reply has been verified, so that a text too may be given up
            for a better tier's.
    """
    cascade = _Cascade(router, call, budget, pin, hold)
    while (attempt := cascade.next()) is not None:
        try:
            with attempt.acquire() as lease, attempt.start(lease) as stream:
                if not hold:
                    for piece in stream:
                        yield from attempt.show(piece)
                attempt.finish(stream.reply())
        except UNREACHABLE as error:
            if not cascade.goes_on_without(attempt, error):
                raise
        except CallTimeoutError:
            if not cascade.has_a_reply_before(attempt):
                raise
            break
    yield from cascade.still_held()
    yield cascade.answer()


async def astream_answer(
    router: Router,
    call: Call,
    *,
    budget: Budget | None = None,
    pin: str | None = None,
    hold: bool = False,
) -> AsyncGenerator[Piece | Answer, None]:
    """`stream_answer` for coroutines. A thread is held only while a tier is loaded."""
    cascade = _Cascade(router, call, budget, pin, hold)
    while (attempt := cascade.next()) is not None:
        try:
            lease = attempt.try_acquire()
            if lease is None:
                lease = await asyncio.to_thread(attempt.acquire)
            with lease, attempt.start(lease) as stream:
                if not hold:
                    async for piece in stream:
                        for shown in attempt.show(piece):
                            yield shown
                attempt.finish(await stream.areply())
        except UNREACHABLE as error:
            if not cascade.goes_on_without(attempt, error):
                raise
        except CallTimeoutError:
            if not cascade.has_a_reply_before(attempt):
                raise
            break
    for piece in cascade.still_held():
        yield piece
    yield cascade.answer()


class _Cascade:
    """The tries at one call: which came, and which comes next."""

    def __init__(
        self, router: Router, call: Call, budget: Budget | None, pin: str | None, hold: bool
    ) -> None:
        self.router = router
        self.budget = budget or router.budget
        self.pin = pin
        self.hold = hold
        if (most := self.budget.reply_tokens) is not None:
            call = replace(call, max_tokens=min(call.max_tokens or most, most))
        self.call = call
        self._id = uuid.uuid4().hex
        self._began = time.monotonic()
        self._deadline = None if call.timeout_s is None else self._began + call.timeout_s
        most_s = self.budget.seconds_per_call
        grace = GRACE if call.usable_tools or call.response_schema is not None else 0.0
        self.until = None if most_s is None else self._began + most_s * (1 + grace)
        self._done: list[_Try] = []
        self._unreachable: dict[str, str] = {}
        self._in_words = False

    def next(self) -> _Try | None:
        """The next try; None when the reply stands.

        Raises:
            NoFeasibleTierError, ContextOverflowError: As in `answer`.
        """
        if not self._done:
            return _Try(self, self._decide(None))
        last = self._done[-1]
        if last.escalates:
            try:
                return _Try(self, self._decide(last), hint=self._latest_tokens())
            except NoFeasibleTierError:
                pass  # nobody above can take it: what we have stands
        if self._in_words or not _repeats_itself(last.call, last.outcome) or last.call.must_call:
            return None
        # No tier sees that the tool has answered: have the result told in words, else the
        # agent would ask the same for ever.
        self._in_words = True
        decision = replace(
            last.decision,
            reason=last.outcome.problem,
            call=replace(last.call, tool_choice="none"),
            prompt=(),
        )
        return _Try(self, decision)

    def _decide(self, last: _Try | None) -> Decision:
        """The cheapest tier that will do, or that is better than the one tried last."""
        budget = self.budget
        if last or self._unreachable:
            budget = budget.after(time.monotonic() - self._began, self._answer().joules)
        above = last.decision.tier if last else None
        try:
            decision = self.router.decide(
                self.call, budget=budget, above=above, without=self._unreachable, pin=self.pin
            )
        except NoFeasibleTierError as error:
            if not self._unreachable:
                raise
            details = "; ".join(f"{name}: {why}" for name, why in self._unreachable.items())
            raise NoFeasibleTierError(f"{error} Out of reach: {details}") from error
        if last:
            why = last.outcome.problem or last.outcome.doubt
            reason = f"escalated from {above}: {why}"
            decision = replace(decision, reason=reason)
        return decision

    def _latest_tokens(self) -> tuple[int, ...]:
        """Of the latest reply by a tier of this machine: all of them have one vocabulary."""
        replies = (attempt.outcome.reply.tokens for attempt in reversed(self._done))
        return next(filter(None, replies), ())

    def finished(self, attempt: _Try) -> None:
        self._done.append(attempt)

    def goes_on_without(self, attempt: _Try, error: Exception) -> bool:
        """Whether another tier may be tried in place of one that failed."""
        name = attempt.decision.tier
        logger.warning("tier %s is out of reach: %s", name, error)
        self._unreachable[name] = str(error)
        return self.pin is None and not attempt.shown and not self._in_words

    def has_a_reply_before(self, attempt: _Try) -> bool:
        """Whether there is one without a fault for a call whose time is over."""
        return not attempt.shown and any(not one.outcome.problem for one in self._done)

    def still_held(self) -> Sequence[Piece]:
        """The final reply, where none of it was shown until it was sure to stand."""
        if any(attempt.shown for attempt in self._done):
            return ()
        reply = self._answer().reply
        pieces = Piece(reply.reasoning, reasoning=True), Piece(reply.text, reasoning=False)
        return [piece for piece in pieces if piece.text]

    def answer(self) -> Answer:
        """The answer; the router learns from it."""
        result = self._answer()
        self.router.learn(self.call, result)
        return result

    def _answer(self) -> Answer:
        return Answer(tuple(attempt.outcome for attempt in self._done), self._id)

    @property
    def left_s(self) -> float:
        """Seconds to the deadline; infinite without one."""
        return math.inf if self._deadline is None else max(0.0, self._deadline - time.monotonic())


class _Try:
    """One tier's try at the call.

    Args:
        hint: Tokens of the reply that it is to better: what it would write too, it need not write
            token by token.
    """

    outcome: Attempt
    """Once it is finished."""

    def __init__(self, cascade: _Cascade, decision: Decision, hint: tuple[int, ...] = ()) -> None:
        self.call = decision.call or cascade.call
        self.decision = decision
        self._hint = hint
        self.shown = self.escalates = False
        self._held: list[Piece] = []
        self._cascade = cascade
        self._router = cascade.router
        self._tier = self._router.family.member(decision.tier)
        self._began = time.perf_counter()

    @property
    def may_be_given_up(self) -> bool:
        """Whether a better tier's reply may still take the place of this one."""
        better = self._router.better_than(self._tier.name)
        return bool(better) and not self.shown and self._cascade.pin is None

    def acquire(self) -> Lease | RemoteLease:
        """The tier, once it is loaded."""
        if isinstance(self._tier, RemoteTier):
            return self._router.remote(self._tier.name)
        return self._router.pool.acquire(
            self._tier,
            context_tokens=self._most_tokens,
            expected_tokens=self._expected_tokens,
            memory_bytes=self._cascade.budget.memory,
            kv_type=self.decision.forecast.kv_type,
            timeout_s=min(WAIT_S, self._cascade.left_s),
        )

    def try_acquire(self) -> Lease | RemoteLease | None:
        """The tier, if it is loaded."""
        if isinstance(self._tier, RemoteTier):
            return self._router.remote(self._tier.name)
        return self._router.pool.try_acquire(
            self._tier,
            context_tokens=self._most_tokens,
            expected_tokens=self._expected_tokens,
            memory_bytes=self._cascade.budget.memory,
            kv_type=self.decision.forecast.kv_type,
        )

    @property
    def _most_tokens(self) -> int:
        tokens = self.decision.prompt_tokens
        return context_needed(self.call, tokens, self._cascade.budget, self._tier)

    @property
    def _expected_tokens(self) -> int:
        return min(self._most_tokens, self.decision.prompt_tokens + USUAL_REPLY)

    def start(self, lease: Lease | RemoteLease) -> ReplyStream | RemoteReply:
        """Has the tier answer."""
        self._events, self._load_s = lease.events, lease.load_s
        call = self.call
        if call.timeout_s is not None:
            call = replace(call, timeout_s=self._cascade.left_s)
        prompt = self.decision.prompt or None
        return lease.tier.stream(call, prompt, self._hint, self._cascade.until)

    def show(self, piece: Piece) -> Sequence[Piece]:
        """What may leave now that this piece has come.

        Nothing while there is only white space, or reasoning that may still be given up. What
        has left binds: the reply stands.
        """
        self._held.append(piece)
        binding = piece.text.strip() and not (piece.reasoning and self._only_thinks_aloud)
        if not (self.shown or binding):
            return ()
        self.shown = True
        ready, self._held = self._held, []
        return ready

    @property
    def _only_thinks_aloud(self) -> bool:
        return self.may_be_given_up or bool(self.call.usable_tools)

    def finish(self, reply: Reply) -> None:
        """Verifies the whole reply."""
        seconds = time.perf_counter() - self._began
        problem, doubt = verify(self.call, reply), ""
        if self.may_be_given_up and problem:
            self.escalates = self._router.pays(self.decision, reply, self._cascade.budget)
        elif self.may_be_given_up:
            doubt = self._router.doubt(self.decision, reply, self._cascade.budget)
            self.escalates = bool(doubt)
        self.outcome = Attempt(
            self.decision, reply, seconds, problem, self._load_s, self._events, doubt
        )
        self._cascade.finished(self)


def _repeats_itself(call: Call, attempt: Attempt) -> bool:
    return bool(attempt.problem) and is_new(call, attempt.reply) is not None


__all__ = ["Answer", "Attempt", "aanswer", "answer", "astream_answer", "stream_answer"]
