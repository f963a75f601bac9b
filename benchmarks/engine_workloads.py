"""What the engine benchmark asks: tool requests, agents' conversations, and one long reply.

Everything is a `Call`, the whole prompt of one turn, so that all sides are asked exactly the
same. No two runs share a prompt: each begins with the number of its run, lest a cache that
lives longer than a run answers for the engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from tierwise.evaluation.task_generator import generate_tasks
from tierwise.evaluation.tasks import Task
from tierwise.evaluation.tool_catalog import CATALOGS
from tierwise.runtime.chat import Call, Message, Tool

Conversation = tuple[Call, ...]
"""The calls of one agent, turn by turn; each holds all that was said before it."""

TOOLS: tuple[Tool, ...] = tuple(
    pattern.tool for domain in CATALOGS["test"].domains for pattern in domain.tools
)
"""24 of them; twelve and what is told around them are a prompt of about 1,200 tokens."""

_TOOLS_OF_SESSION, _TOOLS_OF_AGENT = 10, 12
_FOLLOW_UPS = (
    "Explain in a few sentences what you did and why it helps me.",
    "Tell me more about that, in a paragraph.",
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


def agents(
    run: int,
    count: int,
    turns: int,
    *,
    own_tools: bool,
    max_tokens: int,
    write: Callable[[Call], str],
) -> list[Conversation]:
    """Agents who were asked for something, have called a tool, and are now asked about it.

    Calls and tool results are given; what is measured is the reply in words. Replies in the
    history were written once by ``write`` and are the same for all sides.

    Args:
        run: Number of the run.
        count: How many agents.
        turns: Calls of each.
        own_tools: Whether each has a system prompt and a tool set of its own, or all share one.
        max_tokens: Longest reply.
        write: Gives the reply to a call.
    """
    conversations = []
    for agent in range(count):
        start = agent * 5 % len(TOOLS) if own_tools else 0
        tools = (TOOLS + TOOLS)[start : start + _TOOLS_OF_AGENT]
        role = f"Session {run}, desk {agent if own_tools else 0}. You are a helpful assistant."
        tasks = _tasks_with(tools)[agent::count]
        start_call = Call((Message("system", role),), tools, max_tokens=max_tokens)
        conversations.append(_conversation(start_call, tasks, turns, write))
    return conversations


def _conversation(
    call: Call, tasks: Iterable[Task], turns: int, write: Callable[[Call], str]
) -> Conversation:
    calls: list[Call] = []
    for number, task in enumerate(tasks):
        if len(calls) == turns:
            break
        wanted = replace(task.expected.tool_calls[0], id=f"call_{number}")
        result = json.dumps({"status": "done", **wanted.arguments}, ensure_ascii=False)
        asked = call.with_messages(
            _request(task),
            Message("assistant", tool_calls=(wanted,)),
            Message("tool", result, tool_call_id=wanted.id, tool_name=wanted.name),
            Message("assistant", _DONE),
            Message("user", _FOLLOW_UPS[number % len(_FOLLOW_UPS)]),
        )
        text = write(asked)
        if not text or text.lstrip().startswith("{"):
            # Another tool call, which our side would hold back to its end. The turn is not
            # timed, and its history shows the model what is wanted.
            text = _DONE
        else:
            calls.append(asked)
        call = asked.with_messages(Message("assistant", text))
    return tuple(calls)


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
