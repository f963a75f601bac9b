"""Text to calibrate and to measure on: our own agent tasks, as the model itself sees them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tierwise.evaluation.tasks import Task
from tierwise.runtime.chat_template import ChatTemplate


def chat_documents(tasks: Iterable[Task], template: ChatTemplate) -> tuple[str, ...]:
    """Each task's prompt through the chat template, followed by its right answer."""
    return tuple(
        template.render(task.call)
        + (template.tool_format.write(task.expected.tool_calls) or task.expected.text)
        for task in tasks
    )


def take_tokens(documents: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
    """The first documents that hold ``limit`` tokens together; the last one is cut."""
    out: list[list[int]] = []
    for document in documents:
        part = list(document[:limit])
        if len(part) < 2:
            break
        out.append(part)
        limit -= len(part)
    return out
