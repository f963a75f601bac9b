"""``TierRoutingMiddleware``: budgets of whole agent runs, for agents made by ``create_agent``.

`ChatTierwise` routes every call by itself. What it cannot know is the run that the call is a step
of: how much time, energy and text the run has left, how many steps may follow, and that tools keep
failing. The middleware tells it, call by call, and keeps nothing of its own: all of it is read from
the conversation, so that a run which is interrupted, checkpointed and resumed elsewhere goes on
with what is left of its budget.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from langchain.agents.middleware import AgentMiddleware
from langchain.agents.middleware.types import ModelRequest, ModelResponse
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage

from tierwise.plugin.chat import ChatTierwise
from tierwise.routing.budget import Budget
from tierwise.runtime.errors import ConfigError, NoFeasibleTierError

STEPS = 6
"""Model calls of a usual run."""

FAILURES = 2
"""Tool results in error since the user spoke, from which on the best tier is asked for."""


class TierRoutingMiddleware(AgentMiddleware[Any, Any, Any]):
    """Spreads what a run may take over its steps, and asks for the best tier where tools keep
    failing.

    It acts on models that are `ChatTierwise`, and leaves any other alone, such as one that a
    fallback middleware put in its place. It may stand anywhere among other middleware.

    Args:
        seconds_per_run: For all model calls of a run together, from the user's message on. What
            a step does not use, later ones may. Tiers are chosen by a step's share, as they are
            forecast; no reply is cut short for it. None for no limit.
        joules_per_run: Energy of this machine, likewise: as forecast, for as long as calls took.
        tokens_per_run: Of all replies together, likewise. A step's share is the longest that its
            reply may be.
        steps: Model calls that a run is expected to take; what is left is shared by those that
            are left, and is all for the next one when there are none. A run that has used up one
            of these goes on, with the cheapest tier that keeps to the others.
        failures: Tool errors of a run from which on the best tier is asked for; None for never.

    Raises:
        ConfigError: A number that cannot be.

    Example:
        >>> from langchain.agents import create_agent
        >>> from tierwise import ChatTierwise, TierRoutingMiddleware
        >>> model = ChatTierwise(family="./my-family")
        >>> create_agent(model, tools, middleware=[TierRoutingMiddleware(seconds_per_run=20)])
    """

    def __init__(
        self,
        *,
        seconds_per_run: float | None = None,
        joules_per_run: float | None = None,
        tokens_per_run: int | None = None,
        steps: int = STEPS,
        failures: int | None = FAILURES,
    ) -> None:
        super().__init__()
        given = {
            "seconds_per_run": seconds_per_run,
            "joules_per_run": joules_per_run,
            "tokens_per_run": tokens_per_run,
            "failures": failures,
        }
        for name, value in given.items():
            if value is not None and not (isinstance(value, (int, float)) and value > 0):
                raise ConfigError(f"{name} must be above 0, got {value!r}")
        if not isinstance(steps, int) or steps < 1:
            raise ConfigError(f"steps must be at least 1, got {steps!r}")
        self.seconds_per_run, self.joules_per_run = seconds_per_run, joules_per_run
        self.tokens_per_run, self.steps, self.failures = tokens_per_run, steps, failures

    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ModelResponse[Any] | AIMessage:
        """Answers within the step's budget; over it, if no tier can keep that."""
        first, second = self._requests(request)
        if second is None:
            return handler(first)
        try:
            return handler(first)
        except NoFeasibleTierError:
            return handler(second)

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any] | AIMessage:
        """`wrap_model_call` for coroutines."""
        first, second = self._requests(request)
        if second is None:
            return await handler(first)
        try:
            return await handler(first)
        except NoFeasibleTierError:
            return await handler(second)

    def budget(self, messages: Sequence[AnyMessage], granted: Budget) -> Budget:
        """What the next call may take.

        Args:
            messages: Of the conversation so far.
            granted: The model's own budget, which stays the outer limit.
        """
        run = _run(messages)
        replies = [message for message in run if isinstance(message, AIMessage)]
        failed = sum(isinstance(m, ToolMessage) and m.status == "error" for m in run)
        if self.failures is not None and failed >= self.failures:
            granted = granted.for_the_best()
        limits: dict[str, Any] = {}
        for name, whole, spent in (
            ("expected_seconds", self.seconds_per_run, _told(replies, "total_s")),
            ("joules_per_call", self.joules_per_run, _told(replies, "total_joules")),
            ("reply_tokens", self.tokens_per_run, _written(replies)),
        ):
            if whole is None:
                continue
            if spent >= whole:  # nobody is helped by an agent that stops in the middle
                granted = granted.for_the_cheapest()
                continue
            share = (whole - spent) / max(1, self.steps - len(replies))
            if name == "reply_tokens":
                share = max(1, int(share))
            limits[name] = min(share, getattr(granted, name) or share)
        return granted.model_copy(update=limits)

    def _requests(
        self, request: ModelRequest[Any]
    ) -> tuple[ModelRequest[Any], ModelRequest[Any] | None]:
        """The request with the step's budget, and what to ask if no tier can keep it."""
        model = request.model
        if not isinstance(model, ChatTierwise):
            return request, None
        budget = self.budget(request.messages, model.budget)
        first = request.override(model=model.model_copy(update={"budget": budget}))
        own = model.budget
        if (budget.expected_seconds, budget.joules_per_call) == (
            own.expected_seconds,
            own.joules_per_call,
        ):
            return first, None
        late = own.for_the_cheapest().model_copy(update={"reply_tokens": budget.reply_tokens})
        return first, request.override(model=model.model_copy(update={"budget": late}))


def _told(replies: Sequence[AIMessage], key: str) -> float:
    """Sum of what replies of this model say of themselves."""
    return sum(float(reply.response_metadata.get(key) or 0.0) for reply in replies)


def _written(replies: Sequence[AIMessage]) -> int:
    """Tokens of replies, whoever gave them."""
    return sum(reply.usage_metadata["output_tokens"] for reply in replies if reply.usage_metadata)


def _run(messages: Sequence[AnyMessage]) -> Sequence[AnyMessage]:
    """What came since the user last spoke."""
    for at in range(len(messages) - 1, -1, -1):
        if isinstance(messages[at], HumanMessage):
            return messages[at + 1 :]
    return messages
