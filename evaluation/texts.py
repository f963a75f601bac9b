"""Text to calibrate and to measure on: our own agent tasks, as the model itself sees them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tierwise.evaluation.tasks import Task
from tierwise.runtime.chat import Call, Message, Tool
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.llama import Model

_CALL = Call(
    (Message("user", "What is the weather in Oslo?"),),
    tools=(Tool("get_weather", "The weather.", {"type": "object", "properties": {}}),),
)


def chat_documents(tasks: Iterable[Task], template: ChatTemplate) -> tuple[str, ...]:
    """Each task's prompt through the chat template, followed by its right answer."""
    form = template.tool_format
    return tuple(
        template.render(task.call)
        + (form.write(task.expected.tool_calls) or form.answer + task.expected.text)
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


def demonstration_tokens(model: Model) -> int:
    """Tokens of every prompt with tools that only show the model how to call them.

    0 for models that were trained to call tools, in whatever way.
    """
    shown = ChatTemplate.of(model).render(_CALL)
    plain = ChatTemplate.of(model, demonstrates=False).render(_CALL)
    return len(model.tokenize(shown)) - len(model.tokenize(plain))
