"""How a model family writes tool calls, and how they are read back.

A format is data: the texts around the calls of a reply and inside each. The grammar is made
from it, the reply parser reads by it, and `write` puts calls into a history whose template
cannot.

Sources: the models' own chat templates, and for Mistral
https://github.com/mistralai/mistral-common (tokenizer versions 3, 11 and 13).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tierwise.runtime.braced_arguments import Braced
from tierwise.runtime.chat import JSONObject, ToolCall
from tierwise.runtime.tagged_arguments import Tagged

Thinking = Literal["no", "may", "open"]
"""Whether a reply has a block of thoughts before its answer: never, if the model likes, or
always, because the prompt ends with its beginning already."""


@dataclass(frozen=True, slots=True)
class Thoughts:
    """The texts around what a model thinks before it answers.

    Args:
        open, close: Of the block.
        gap: Between the block and an answer of fixed form.
    """

    open: str = "<think>"
    close: str = "</think>"
    gap: str = "\n\n"

    @property
    def tags(self) -> tuple[str, ...]:
        """The parts that a vocabulary may have as one token."""
        return tuple(tag for text in (self.open, self.close) for tag in _TAG.findall(text))


_DECODER = json.JSONDecoder()
_TAG = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]")
_SPACE = re.compile(r"\s*")
_NAMED = re.compile(r"(?P<name>[^\[\]{}]*?)\s*(\[CALL_ID\]\s*(?P<id>\w*)\s*)?\[ARGS\]\s*")


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """The texts of a reply that calls tools: ``first (opening call closing)* last``.

    Args:
        name: For messages.
        native: The model's own chat template tells it of tools and writes its calls; for the
            others the renderer does both.
        opening, closing: Around each call.
        separator: Between two calls.
        first, last: Once, before the first and after the last call.
        body: "json" is ``{"name": …, arguments_key: {…}}``; "named" is ``name[ARGS]{…}``, and
            "named_id" ``name[CALL_ID]id[ARGS]{…}``.
        arguments_tag: What stands for ``[ARGS]`` there.
        syntax: What stands in each call instead, where arguments are no JSON object.
        lead: A tag that may stand before the first call.
        many: Whether one reply may hold several calls.
        answer: What stands before the words of a reply that calls nothing.
        thoughts: How it thinks, if it does.
    """

    name: str
    native: bool = True
    opening: str = ""
    closing: str = ""
    separator: str = "\n"
    first: str = ""
    last: str = ""
    arguments_key: str = "arguments"
    body: Literal["json", "named", "named_id"] = "json"
    arguments_tag: str = "[ARGS]"
    syntax: Tagged | Braced | None = None
    lead: str = ""
    many: bool = True
    answer: str = ""
    thoughts: Thoughts = Thoughts()

    @property
    def trigger(self) -> str:
        """The tag that turns free text into calls; "" where only a reply's first ``{`` does."""
        found = _TAG.match(self.first + self.opening)
        return found.group() if found else ""

    @property
    def tags(self) -> tuple[str, ...]:
        """The texts around a call that a vocabulary may have as one token."""
        texts = (self.lead, self.first, self.opening, *self._within, self.closing, self.last)
        return tuple(dict.fromkeys(tag for text in texts for tag in _TAG.findall(text)))

    @property
    def _within(self) -> tuple[str, ...]:
        """The texts inside of a call that may be tags."""
        if self.syntax:
            return self.syntax.texts
        ids = ("[CALL_ID]",) if self.body == "named_id" else ()
        return () if self.body == "json" else (*ids, self.arguments_tag)

    def head(self, name: str) -> tuple[str, ...]:
        """One call's text before its arguments, each lexeme of JSON apart.

        An empty text stands for the call's id, nine letters or digits.
        """
        if self.syntax:
            return (self.syntax.head(name),)
        if self.body == "json":
            key = json.dumps(self.arguments_key)
            return ("{", '"name"', ": ", json.dumps(name, ensure_ascii=False), ", ", key, ": ")
        if self.body == "named":
            return (name, self.arguments_tag)
        return (name, "[CALL_ID]", "", self.arguments_tag)

    @property
    def tail(self) -> str:
        """One call's text after its arguments."""
        return "}" if self.body == "json" and not self.syntax else ""

    def write(self, calls: Iterable[ToolCall]) -> str:
        """The calls as the model itself would have written them; "" for none."""
        bodies = self.separator.join(f"{self.opening}{self._one(c)}{self.closing}" for c in calls)
        return f"{self.first}{bodies}{self.last}" if bodies else ""

    def _one(self, call: ToolCall) -> str:
        if self.syntax:
            return self.syntax.write(call.name, call.arguments)
        head = "".join(part or call.id for part in self.head(call.name))
        return head + json.dumps(dict(call.arguments), ensure_ascii=False) + self.tail

    def calls(self, text: str, tools: Mapping[str, JSONObject]) -> tuple[ToolCall, ...]:
        """The calls of a text that holds nothing else; empty where it is anything but calls.

        White space between the parts does not count. What is no call of a known tool (bad JSON,
        unknown name, words after it) makes the text no calls. The end of what follows the last
        arguments may be missing, where the reply was cut off.

        Args:
            text: Of the reply.
            tools: Schemas of the parameters of the known tools, by name.
        """
        if self.lead and text.lstrip().startswith(self.lead):
            text = text.lstrip()[len(self.lead) :]
        found: list[ToolCall] = []
        try:
            at = _after(text, 0, self.first)
            while True:
                call, at = self._read_one(text, _after(text, at, self.opening), tools)
                found.append(call)
                at = _after(text, at, self.closing)
                if self.last.startswith(text[at:].strip()):  # whole, or cut off
                    return tuple(found)
                at = _after(text, at, self.separator)
        except (ValueError, RecursionError):  # not JSON, or nested thousands deep
            return ()

    def _read_one(
        self, text: str, at: int, tools: Mapping[str, JSONObject]
    ) -> tuple[ToolCall, int]:
        """One call and the place after it."""
        if self.syntax:
            name, found, at = self.syntax.read(text, at, tools)
            return ToolCall(name, found), at
        if self.body == "json":
            value, at = _DECODER.raw_decode(text, _after(text, at, ""))
            return _call(value, self.arguments_key, tools), at
        head = _NAMED.match(text, at)
        if head is None:
            raise ValueError("no [ARGS]")
        arguments, at = _DECODER.raw_decode(text, head.end())
        value = {"name": head["name"], "arguments": arguments, "id": head["id"] or ""}
        return _call(value, "arguments", tools), at


def _after(text: str, at: int, expected: str) -> int:
    """The place after an expected text, of which white space does not count.

    Where the text ends first, that is its end.

    Raises:
        ValueError: Something else is there.
    """
    for word in expected.split():
        at = _skip_space(text, at)
        rest = text[at : at + len(word)]
        if not word.startswith(rest):
            raise ValueError(f"expected {word!r}, got {rest!r}")
        at += len(rest)
    return _skip_space(text, at)


def _skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _call(value: Any, key: str, tools: Mapping[str, JSONObject]) -> ToolCall:
    """Raises ValueError where the JSON value is no call of a known tool."""
    match value:
        case {"name": str(name), **rest} if name in tools:
            arguments, call_id = rest.pop(key, None), rest.pop("id", "")
            if isinstance(arguments, dict) and isinstance(call_id, str) and not rest:
                return ToolCall(name, arguments, call_id)
    raise ValueError("no call of a known tool")


JSON_LINES = ToolFormat("json", native=False)
"""For every model whose template knows nothing of tools."""
HERMES = ToolFormat("hermes", opening="<tool_call>\n", closing="\n</tool_call>")
"""Hermes 2 and 3, Qwen2.5, Qwen3, QwQ and many others."""
QWEN_CODER = ToolFormat(
    "qwen-coder",
    opening="<tool_call>\n",
    closing="\n</tool_call>",
    syntax=Tagged("<function=", ">\n", "<parameter=", ">\n", "\n</parameter>\n", "</function>"),
)
"""Qwen3-Coder, Qwen3.5, Nemotron 3."""
GLM = ToolFormat(
    "glm",
    opening="<tool_call>",
    thoughts=Thoughts(gap="\n"),
    syntax=Tagged(
        "", "\n", "<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n", "</tool_call>"
    ),
)
"""GLM 4.5 and 4.6."""
GLM_CLOSE = ToolFormat(
    "glm-close",
    opening="<tool_call>",
    separator="",
    thoughts=Thoughts(gap=""),
    syntax=Tagged("", "", "<arg_key>", "</arg_key><arg_value>", "</arg_value>", "</tool_call>"),
)
"""GLM 4.7 and 5: the same without line breaks."""
GEMMA = ToolFormat(
    "gemma",
    opening="<|tool_call>call:",
    closing="<tool_call|>",
    separator="",
    syntax=Braced(),
    thoughts=Thoughts("<|channel>thought", "<channel|>", gap=""),
)
"""Gemma 4."""
LLAMA = ToolFormat("llama", arguments_key="parameters", lead="<|python_tag|>", many=False)
"""Llama 3.1, 3.2 and 3.3: bare JSON, one call a turn."""
MISTRAL = ToolFormat("mistral", first="[TOOL_CALLS] [", separator=", ", last="]")
"""Mistral 7B v0.3."""
MISTRAL_NEMO = ToolFormat("mistral-nemo", first="[TOOL_CALLS][", separator=", ", last="]")
MISTRAL_NAMED = ToolFormat("mistral-named", opening="[TOOL_CALLS]", separator="", body="named")
"""Ministral 3, Devstral, Magistral."""
MISTRAL_NAMED_ID = ToolFormat(
    "mistral-named-id", opening="[TOOL_CALLS]", separator="", body="named_id"
)
"""Mistral Small 3.1 and 3.2."""
PHI = ToolFormat("phi", first="<|tool_call|>[", separator=", ", last="]<|/tool_call|>")
"""Phi-4-mini, as Microsoft documents it."""
PHI_EACH = ToolFormat("phi-each", opening="<|tool_call|>", closing="<|/tool_call|>", separator="")
"""Phi-4-mini with llama.cpp's template."""

NATIVE_FORMATS = (
    HERMES,
    QWEN_CODER,
    GLM,
    GLM_CLOSE,
    GEMMA,
    PHI,
    PHI_EACH,
    MISTRAL,
    MISTRAL_NEMO,
    MISTRAL_NAMED_ID,
    MISTRAL_NAMED,
    LLAMA,
)
MISTRAL_FORMATS = (MISTRAL, MISTRAL_NEMO, MISTRAL_NAMED_ID, MISTRAL_NAMED)
"""Those whose templates demand ids of nine letters or digits."""
