"""What the engine benchmark asks: tool requests, agents' conversations, and one long reply.

Everything is a `Call`, the whole prompt of one turn. All sides are asked exactly the same, but
that an agent's history holds what the side itself has replied. No two runs share a prompt: each
begins with a number of its own, lest a cache that lives longer than a run answers for the engine.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from engine_answer import Answer

from tierwise.evaluation.task_generator import generate_tasks
from tierwise.evaluation.tasks import Task
from tierwise.evaluation.tool_catalog import CATALOGS
from tierwise.runtime.chat import Call, Message, Tool

TOOLS: tuple[Tool, ...] = tuple(
    pattern.tool for domain in CATALOGS["test"].domains for pattern in domain.tools
)
"""24 of them; twelve and what is told around them are a prompt of about 1,200 tokens."""

_TOOLS_OF_SESSION, _TOOLS_OF_AGENT = 10, 12
_QUESTIONS = (
    "Explain in a few sentences what you did just now, and why that should help me with my work.",
    "Tell me more about that, in a paragraph, so that I can pass it on to somebody who has not "
    "seen any of this.",
    "What else should I know before I go on? Answer in two or three sentences, please.",
    "Sum up in a short paragraph what we have talked about so far, and what is still to be done.",
)
_DONE = "That is done."
_POOL = 12 * 200
"""Tasks to choose from: 12 pairs of kind and grade come in turn."""


def tool_requests(run: int, count: int) -> list[Task]:
    """Single-turn requests over one fixed set of ten tools, each with its right call.

    The tool is forced by name: ChatLlamaCpp knows no other way to force a call.
    """
    tools = TOOLS[::2][:_TOOLS_OF_SESSION]
    system = Message("system", f"Session {run}. You are a helpful assistant.")
    tasks = _tasks_with(tools)[run * count : (run + 1) * count]
    if len(tasks) < count:
        raise SystemExit(f"too few different requests for {run + 1} runs of {count}; ask for fewer")
    return [
        replace(
            task,
            call=replace(
                task.call,
                messages=(system, _request(task)),
                tools=tools,
                tool_choice=task.expected.tool_calls[0].name,
            ),
        )
        for task in tasks
    ]


@dataclass(frozen=True, slots=True)
class Agent:
    """One that was asked for something, has called a tool, and is then asked about it.

    That first call and its result are given; from there on each turn brings one question, and
    the history holds what the side itself has replied, as it does for any agent.
    """

    start: Call
    """Up to the first question."""

    def turns(self, ask: Callable[[Call], Answer]) -> Iterator[Answer]:
        """One turn for each ``next``."""
        call = self.start
        for question in itertools.cycle(_QUESTIONS[1:] + _QUESTIONS[:1]):
            answer = ask(call)
            yield answer
            said = Message("assistant", answer.text if in_words(answer) else _DONE)
            call = call.with_messages(said, Message("user", question))


def in_words(answer: Answer) -> bool:
    """Whether it is text. Our side holds a tool call back until it is whole."""
    return bool(answer.text) and not answer.text.lstrip().startswith("{")


def agents(session: int, count: int, *, own_tools: bool, max_tokens: int) -> list[Agent]:
    """
    Args:
        session: A number that their system prompts begin with.
        count: How many agents.
        own_tools: Whether each has a system prompt and a tool set of its own, or all share one.
        max_tokens: Longest reply.
    """
    out = []
    for agent in range(count):
        start = agent * 5 % len(TOOLS) if own_tools else 0
        tools = (TOOLS + TOOLS)[start : start + _TOOLS_OF_AGENT]
        role = f"Session {session}, desk {agent if own_tools else 0}. You are a helpful assistant."
        task = _tasks_with(tools)[agent]
        wanted = replace(task.expected.tool_calls[0], id="call_0")
        result = json.dumps({"status": "done", **wanted.arguments}, ensure_ascii=False)
        call = Call(
            (
                Message("system", role),
                _request(task),
                Message("assistant", tool_calls=(wanted,)),
                Message("tool", result, tool_call_id=wanted.id, tool_name=wanted.name),
                Message("assistant", _DONE),
                Message("user", _QUESTIONS[0]),
            ),
            tools,
            max_tokens=max_tokens,
        )
        out.append(Agent(call))
    return out


def long_call(run: int, max_tokens: int) -> Call:
    """A request whose greedy reply does not end by itself within a thousand tokens."""
    text = f"Session {run}. Write a very long fairy tale about a king, in many chapters."
    return Call((Message("user", text),), max_tokens=max_tokens)


def _tasks_with(tools: Sequence[Tool]) -> list[Task]:
    """Tasks that are solved by one call of these tools."""
    names = {tool.name for tool in tools}
    return [
        task
        for task in generate_tasks(_POOL, seed=3)
        if task.expected.tool_calls and task.expected.tool_calls[0].name in names
    ]


def _request(task: Task) -> Message:
    return task.call.messages[-1]
