"""The user's own conversations: LangChain's or OpenAI's messages, one conversation a line.

``{"messages": [...], "tools": [...]}``; a bare list of messages will do too. The forms of messages
and tools that are read are those of `message_json`. Two keys more may be there: "response_schema",
that the answers follow, and ``"right": "last"`` where only the last answer is known to be right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tierwise.compression.distillation.conversations import Conversation, identified
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.json_lines import read_json_lines
from tierwise.runtime.message_json import SHAPE, message_from, tool_from


def read_transcripts(path: Path) -> Iterator[Conversation]:
    """The conversations of a JSON-lines file, in its order; empty lines do not count.

    Raises:
        ConfigError: The file cannot be read, or a line is no conversation: names file, line and
            what to do about it.
    """
    yield from read_json_lines(
        path,
        "conversation",
        SHAPE,
        lambda data, number: conversation_from(data, f"transcripts-{path.name}-{number}"),
    )


def conversation_from(data: Any, group: str) -> Conversation:
    """One conversation, as a line of such a file holds it.

    Raises:
        ConfigError: It is none; says what to do about it.
    """
    if isinstance(data, list):
        data = {"messages": data}
    entries = data.get("messages") if isinstance(data, Mapping) else None
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"there are no messages in it. Write it as {SHAPE}.")
    messages = list(identified([message_from(entry) for entry in entries]))
    if not any(message.role == "assistant" for message in messages):
        raise ConfigError(
            "no message of it is the assistant's, so there is nothing to learn. Remove the line."
        )
    tools, schema = data.get("tools") or [], data.get("response_schema")
    if not isinstance(tools, list):
        raise ConfigError(f"its tools must be a list, not {tools!r}.")
    if schema is not None and not isinstance(schema, Mapping):
        raise ConfigError(f"its response_schema must be a JSON schema, not {schema!r}.")
    answers = [turn for turn, message in enumerate(messages) if message.role == "assistant"]
    right = data.get("right", "all")
    if right not in ("all", "last"):
        raise ConfigError(f'"right" must be "all" or "last", not {right!r}.')
    return Conversation(
        tuple(messages),
        "transcripts",
        group,
        tools=tuple(tool_from(tool) for tool in tools),
        response_schema=schema,
        written=tuple(answers[:-1]) if right == "last" else (),
    )
