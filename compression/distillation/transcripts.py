"""The user's own conversations: LangChain's or OpenAI's messages, one conversation a line.

``{"messages": [...], "tools": [...]}``; a bare list of messages will do too. The forms of messages
and tools that are read are those of `message_json`.
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
        lambda data, number: _conversation(data, f"transcripts-{path.name}-{number}"),
    )


def _conversation(data: Any, group: str) -> Conversation:
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
    tools = data.get("tools") or []
    if not isinstance(tools, list):
        raise ConfigError(f"its tools must be a list, not {tools!r}.")
    return Conversation(
        tuple(messages), "transcripts", group, tools=tuple(tool_from(tool) for tool in tools)
    )
