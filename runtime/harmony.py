"""The reply format of gpt-oss, in which every message names its channel.

A reply is one message or several: thoughts (``analysis``), words before a call (``commentary``),
and at last the answer (``final``) or a call to a function, which ends the reply. The model writes
calls in two ways, the second of which is its chat template's own; both are allowed and read.

Source: https://github.com/openai/harmony (``docs/format.md``).
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from tierwise.runtime.chat import Call, ToolCall
from tierwise.runtime.lark import literal, pattern
from tierwise.runtime.reply_parser import Parser, Piece
from tierwise.runtime.schemas import json_rule, object_schema
from tierwise.runtime.text_stream import overlap
from tierwise.runtime.tool_format import ToolFormat

HARMONY = ToolFormat(
    "harmony",
    opening=" to=functions.",
    body="named",
    arguments_tag="<|channel|>commentary json<|message|>",
    many=False,
    answer="<|channel|>final<|message|>",
)
"""gpt-oss, as its template writes calls. Replies are read by `HarmonyParser`."""

HARMONY_TAGS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>")

_ANALYSIS, _COMMENTARY = "<|channel|>analysis", "<|channel|>commentary"
_MESSAGE, _END = "<|message|>", "<|end|>"
_NEXT = "<|end|><|start|>assistant"
_BEGINNINGS = ("<|channel|>", "to=functions.", "<|start|>assistant")
_RECIPIENT = re.compile(r"to=functions\.([^\s<]+)")


def harmony_rules(call: Call, reply: str | None) -> str:
    """The grammar of a reply.

    Args:
        call: What was asked.
        reply: The rule named ``reply`` of an answer of fixed form; None for free text.

    Raises:
        ToolSchemaError: A tool's parameters are no object, or a schema is not JSON.
    """
    rules: list[str] = []
    answers: list[str] = []
    if not call.must_call:
        rules.append(reply or "reply: /(?s:.*)/")
        answers.append(f"{literal(HARMONY.answer)} reply")
    for index, tool in enumerate(call.usable_tools):
        to = f" to=functions.{tool.name}"
        heads = " | ".join(
            literal(head + _MESSAGE)
            for head in (
                f"{_COMMENTARY}{to} <|constrain|>json",
                f"{_COMMENTARY}{to} json",
                f"{_COMMENTARY}{to}",
                f"{to}{_COMMENTARY} <|constrain|>json",
                f"{to}{_COMMENTARY} json",
                f"{to}{_COMMENTARY}",
            )
        )
        schema = json_rule(f"tool {tool.name!r}", object_schema(tool))
        rules.append(f"call_{index}: ({heads}) {schema}")
        answers.append(f"call_{index}")
    for name, channel in (("think", _ANALYSIS), ("words", _COMMENTARY)):
        begin, end = pattern(channel + _MESSAGE), pattern(_NEXT)
        rules.append(f"{name}[lazy]: /{begin}(?s:.*){end}/")
    return "\n".join(["start: (think | words)* answer", f"answer: {' | '.join(answers)}", *rules])


def harmony_turns(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as the template takes them: thoughts under another name, and together with the
    words before a call, of which it refuses to have both."""
    out = []
    for turn in turns:
        thought = turn.get("reasoning_content", "")
        if thought and "tool_calls" in turn and turn["content"]:
            turn = {**turn, "content": "", "thinking": f"{thought}\n\n{turn['content']}"}
        elif thought:
            turn = {**turn, "thinking": thought}
        out.append(turn)
    return out


class HarmonyParser(Parser):
    """Takes one reply apart, as `ReplyParser` does for all other formats.

    Words before a call and the answer are both text, with an empty line between. What is of no
    channel is text as well.

    Args:
        call: What was asked; only calls of its usable tools are calls.
    """

    def __init__(self, call: Call) -> None:
        super().__init__()
        self._tools = {tool.name for tool in call.usable_tools}
        self._stage: _Stage = "header"
        self._name = ""
        self._begins = False  # the message, of which nothing was given out yet

    def _advance(self, *, final: bool) -> list[Piece]:
        """Goes as far as the text held back tells. A call is held back to the end."""
        pieces: list[Piece] = []
        while self._stage != "call":
            if self._stage == "header":
                if self._read_header(final):
                    continue
                if final:
                    self._held = ""  # a header that was cut off
                break
            at = -1 if self._stage == "free" else self._held.find(_END)
            if at < 0:
                kept = 0 if final or self._stage == "free" else overlap(self._held, _END)
                pieces += self._give(len(self._held) - kept, reasoning=self._stage == "thought")
                break
            pieces += self._give(at, reasoning=self._stage == "thought")
            self._held, self._stage = self._held.removeprefix(_END), "header"
        return pieces

    def _read_header(self, final: bool) -> bool:
        """Whether it is known what kind of message comes."""
        begun = self._held.lstrip()
        header, found, rest = begun.partition(_MESSAGE)
        if found and begun.startswith(_BEGINNINGS):
            recipient = _RECIPIENT.search(header)
            self._held, self._begins = rest, True
            if recipient is not None:
                self._name, self._stage = recipient[1], "call"
            else:
                self._stage = "thought" if "analysis" in header else "text"
            return True
        if begun.startswith(_BEGINNINGS):
            return False  # a header that goes on, or was cut off
        if not begun or (not final and any(one.startswith(begun) for one in _BEGINNINGS)):
            return False
        self._stage = "free"
        return True

    def _calls(self) -> tuple[ToolCall, ...]:
        if self._stage != "call":
            return ()
        try:
            arguments = json.loads(self._held.removesuffix(_END))
        except (ValueError, RecursionError):  # not JSON, or nested thousands deep
            return ()
        if self._name not in self._tools or not isinstance(arguments, dict):
            return ()
        return (ToolCall(self._name, arguments),)

    def _told(self, text: str, reasoning: bool) -> list[Piece]:
        if text and self._begins:
            self._begins = False
            text = f"\n\n{text}" if (self._reasoning if reasoning else self._text) else text
        return super()._told(text, reasoning)


_Stage = Literal["header", "thought", "text", "call", "free"]
