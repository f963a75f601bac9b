"""``TierRoutingMiddleware``: budgets of whole agent runs, for agents made by ``create_agent``.

`ChatTierwise` routes every call by itself. What it cannot know is the run that the call is a step
of: how much time the run has left, how many steps may follow, and that tools keep failing. The
middleware tells it, call by call, and keeps nothing of its own: all of it is read from the
conversation, so that a run which is interrupted, checkpointed and resumed elsewhere goes on with
what is left of its budget.
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
    """Spreads a run's seconds over its steps, and asks for the best tier where tools keep failing.

    It acts on models that are `ChatTierwise`, and leaves any other alone, such as one that a
    fallback middleware put in its place. It may stand anywhere among other middleware.

    Args:
        seconds_per_run: For all model calls of a run together, from the user's message on. What
            a step does not use, later ones may. None for no limit.
        steps: Model calls that a run is expected to take; what is left is shared by those that
            are left, and is all for the next one when there are none.
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
        steps: int = STEPS,
        failures: int | None = FAILURES,
    ) -> None:
        super().__init__()
        for name, value in (("seconds_per_run", seconds_per_run), ("failures", failures)):
            if value is not None and value <= 0:
                raise ConfigError(f"{name} must be above 0, got {value}")
        if steps < 1:
            raise ConfigError(f"steps must be at least 1, got {steps}")
        self.seconds_per_run, self.steps, self.failures = seconds_per_run, steps, failures

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
        changes: dict[str, Any] = {}
        failed = sum(isinstance(m, ToolMessage) and m.status == "error" for m in run)
        if self.failures is not None and failed >= self.failures:
            changes["quality"] = 1.0
        if self.seconds_per_run is not None:
            spent = sum(float(m.response_metadata.get("total_s") or 0.0) for m in replies)
            left = self.seconds_per_run - spent
            if left <= 0:  # nobody is helped by an agent that stops in the middle
                return granted.model_copy(update={"quality": 0.0})
            share = left / max(1, self.steps - len(replies))
            changes["seconds_per_call"] = min(share, granted.seconds_per_call or share)
        return granted.model_copy(update=changes)

    def _requests(
        self, request: ModelRequest[Any]
    ) -> tuple[ModelRequest[Any], ModelRequest[Any] | None]:
        """The request with the step's budget, and what to ask if no tier can keep it."""
        model = request.model
        if not isinstance(model, ChatTierwise):
            return request, None
        budget = self.budget(request.messages, model.budget)
        first = request.override(model=model.model_copy(update={"budget": budget}))
        if budget.seconds_per_call == model.budget.seconds_per_call:
            return first, None
        late = model.budget.model_copy(update={"quality": 0.0})
        return first, request.override(model=model.model_copy(update={"budget": late}))


def _run(messages: Sequence[AnyMessage]) -> Sequence[AnyMessage]:
    """What came since the user last spoke."""
    for at in range(len(messages) - 1, -1, -1):
        if isinstance(messages[at], HumanMessage):
            return messages[at + 1 :]
    return messages
