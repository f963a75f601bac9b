"""Our own agent tasks, several to a conversation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from tierwise.compression.distillation.conversations import Conversation, identified
from tierwise.compression.distillation.tool_requests import TURNS
from tierwise.evaluation.task_generator import generate_tasks
from tierwise.evaluation.tasks import Task
from tierwise.runtime.chat import Message, ToolCall

MOST_TASKS = 960
"""Beyond that, requests begin to repeat."""

_RESULTS = (
    ("done", "That is done."),
    ("ok", "Done."),
    ('{"status": "ok"}', "I have done that."),
    ("2 found", "I found 2 of them."),
    ("saved", "It is saved."),
)


def agent_conversations(seed: int) -> Iterator[Conversation]:
    """The tasks of the calibration split, each in one conversation.

    A task that wants a call is followed by others that want one of the same tools. (Tasks of the
    test split share nothing with them.) Each is a group of its own. Tools cannot be held out: of
    355 conversations with tools, each of the 6 domains is in 123 to 162, and alone in 13 to 18.
    """
    rng = random.Random(f"tierwise-distil-agent-{seed}")
    tasks = _fresh(generate_tasks(MOST_TASKS, seed=seed, split="calibration"))
    wanting: dict[str, list[Task]] = {}
    for task in tasks:
        if task.expected.tool_calls:
            wanting.setdefault(task.expected.tool_calls[0].name, []).append(task)
    used: set[str] = set()
    for task in tasks:
        if task.id in used:
            continue
        used.add(task.id)
        together = [task]
        if task.expected.tool_calls:
            names = [tool.name for tool in task.call.tools]
            for _ in range(rng.choice(TURNS) - 1):
                others = [t for t in wanting.get(rng.choice(names), ()) if t.id not in used]
                if others:
                    together.append(others[0])
                    used.add(others[0].id)
        yield _conversation(together, rng)


def _fresh(tasks: tuple[Task, ...]) -> list[Task]:
    """Without those that ask the same as an earlier one."""
    return list({task.call.messages[-1].content: task for task in reversed(tasks)}.values())[::-1]


def _conversation(tasks: list[Task], rng: random.Random) -> Conversation:
    first = tasks[0]
    messages = list(first.call.messages[:-1])  # a system message or none
    for task in tasks:
        messages.append(task.call.messages[-1])
        if task.expected.tool_calls:
            call = task.expected.tool_calls[0]
            messages.append(Message("assistant", tool_calls=(ToolCall(call.name, call.arguments),)))
            if task is not tasks[-1] or rng.random() < 0.5:
                result, told = rng.choice(_RESULTS)
                messages += [
                    Message("tool", result, tool_name=call.name),
                    Message("assistant", told),
                ]
        else:
            messages.append(Message("assistant", task.expected.text))
    conversation = Conversation(
        tuple(identified(messages)),
        "agent",
        f"agent-{first.id}",
        tools=first.call.tools,
        response_schema=first.call.response_schema,
    )
    if first.kind == "no_tool_fits" and first.grade == "easy":  # small talk, in its own words
        turn = len(messages) - 1
        return replace(conversation, asked=(turn,))
    return conversation
