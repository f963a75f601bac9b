"""Reads a reply while it comes: its text, its reasoning, and its tool calls.

The same parser reads streams and whole replies, so both agree however the text is cut:

>>> parser = ReplyParser(call, template.tool_format, template.thinking())
>>> for text in stream:
...     show(parser.push(text))
>>> parsed = parser.finish()

Rules. Reasoning is what stands between ``<think>`` and ``</think>`` (or what the format has for
them), without the white space around it; white space after ``</think>`` belongs to nothing. Words
before tool calls lose the white space at their end. From what looks like a call on everything is
held back until the end: then it is calls and nothing else, or text like the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from tierwise.runtime.chat import Call, ToolCall
from tierwise.runtime.text_stream import overlap
from tierwise.runtime.tool_format import Thinking, ToolFormat


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more of a reply's text, or of its reasoning."""

    text: str
    reasoning: bool = False


@dataclass(frozen=True, slots=True)
class Parsed:
    """A whole reply.

    Args:
        pieces: What was still held back when the reply ended.
        text: All of the text, that of earlier pieces too.
        reasoning: All of the reasoning.
        tool_calls: Calls of known tools. Where there are any, nothing of them is in the text.
    """

    pieces: tuple[Piece, ...]
    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]


class Parser(ABC):
    """What all ways of taking one reply apart share."""

    def __init__(self) -> None:
        self._held = ""
        self._text = ""
        self._reasoning = ""

    def push(self, text: str) -> list[Piece]:
        """Takes more of the reply; returns what is text or reasoning for sure."""
        self._held += text
        return self._advance(final=False)

    def finish(self) -> Parsed:
        """The reply is over. Call it once."""
        pieces = self._advance(final=True)
        calls = self._calls()
        if not calls:  # what looked like some
            pieces += self._give(len(self._held))
        return Parsed(tuple(pieces), self._text, self._reasoning, calls)

    @abstractmethod
    def _advance(self, *, final: bool) -> list[Piece]:
        """Goes as far as the text held back tells; calls stay held back."""

    @abstractmethod
    def _calls(self) -> tuple[ToolCall, ...]:
        """Those that are held back at the end; empty where it is anything but calls."""

    def _give(self, length: int, *, reasoning: bool = False) -> list[Piece]:
        """Gives out the beginning of what is held back."""
        text, self._held = self._held[:length], self._held[length:]
        return self._told(text, reasoning)

    def _told(self, text: str, reasoning: bool) -> list[Piece]:
        if reasoning:
            self._reasoning += text
        else:
            self._text += text
        return [Piece(text, reasoning)] if text else []


class ReplyParser(Parser):
    """Takes one reply apart.

    Args:
        call: What was asked; only calls of its usable tools are calls.
        tool_format: How the model writes calls.
        thinking: Whether the reply begins with a think block.
    """

    def __init__(self, call: Call, tool_format: ToolFormat, thinking: Thinking = "no") -> None:
        super().__init__()
        self._format = tool_format
        self._thoughts = tool_format.thoughts
        self._tools = {tool.name: tool.parameters for tool in call.usable_tools}
        self._heads = [_squeezed("".join(tool_format.head(name))) for name in self._tools]
        stages: dict[Thinking, _Stage] = {"no": "start", "may": "before", "open": "thought"}
        self._stage: _Stage = stages[thinking]

    def _calls(self) -> tuple[ToolCall, ...]:
        return self._format.calls(self._held, self._tools) if self._held else ()

    def _advance(self, *, final: bool) -> list[Piece]:
        """Goes as far as the text held back tells; a stage that needs more leaves it."""
        pieces: list[Piece] = []
        if self._stage == "before":
            self._before(final)
        if self._stage == "thought":
            pieces += self._thought(final)
        if self._stage == "gap":
            self._held = self._held.lstrip()
            if self._held:
                self._stage = "start"
        if self._stage == "start":
            self._start(final)
        if self._stage == "words":
            pieces += self._words(final)
        if self._stage == "text":
            pieces += self._give(len(self._held))
        return pieces

    def _before(self, final: bool) -> None:
        """Perhaps a think block comes."""
        begun = self._held.lstrip()
        begin = self._thoughts.open
        if begun.startswith(begin):
            self._held = begun.removeprefix(begin)
            self._stage = "thought"
        elif final or not begin.startswith(begun):
            self._stage = "start"

    def _thought(self, final: bool) -> list[Piece]:
        if not self._reasoning:
            self._held = self._held.lstrip()
        close = self._thoughts.close
        at = self._held.find(close)
        if at >= 0:
            pieces = self._give(len(self._held[:at].rstrip()), reasoning=True)
            self._held = self._held.lstrip().removeprefix(close)
            self._stage = "gap"
            return pieces
        end = len(self._held) if final else len(self._held) - overlap(self._held, close)
        pieces = self._give(len(self._held[:end].rstrip()), reasoning=True)
        if final:
            self._held = ""
        return pieces

    def _start(self, final: bool) -> None:
        """What kind of answer it is, as far as the format of calls wants to know."""
        if not self._tools:
            self._stage = "text"
        elif self._format.trigger:
            self._stage = "words"
        else:
            begun = _squeezed(self._held)
            lead = self._format.lead
            if lead and begun.startswith(lead):
                begun = begun.removeprefix(lead)
            elif lead and lead.startswith(begun) and not final:
                return
            if any(begun.startswith(head) for head in self._heads):
                self._stage = "calls"
            elif final or not any(head.startswith(begun) for head in self._heads):
                self._stage = "text"

    def _words(self, final: bool) -> list[Piece]:
        """Text up to where calls may begin."""
        trigger = self._format.trigger
        at = self._held.find(trigger)
        if at >= 0:
            self._stage = "calls"
        elif final:
            return self._give(len(self._held))
        else:
            at = len(self._held) - overlap(self._held, trigger)
        return self._give(len(self._held[:at].rstrip()))


_Stage = Literal["before", "thought", "gap", "start", "words", "calls", "text"]


def _squeezed(text: str) -> str:
    return "".join(text.split())
