"""What a side of the engine benchmark gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

from tierwise.runtime.chat import ToolCall


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, and what it took."""

    seconds: float
    first_s: float
    """To the first piece of the reply; the same as ``seconds`` where it was not streamed."""
    tokens: int
    """Of the reply."""
    prompt_tokens: int
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = field(default=())
