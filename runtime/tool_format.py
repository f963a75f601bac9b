"""How a model family writes tool calls, and how they are read back.

Two forms so far: the ``<tool_call>`` tags of Hermes and Qwen, for models whose chat template
writes them, and bare JSON lines, for every model whose template knows nothing of tools.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass

from tierwise.runtime.chat import ToolCall


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """Texts around each call's ``{"name": …, "arguments": {…}}``.

    ``native`` formats are taught to the model by its own chat template; the others by a
    system prompt that the renderer writes.
    """

    name: str
    opening: str
    closing: str
    separator: str
    native: bool

    @property
    def tags(self) -> tuple[str, ...]:
        """The texts around a call that a vocabulary may have as one token."""
        return tuple(tag for tag in (self.opening.strip(), self.closing.strip()) if tag)

    def write(self, calls: Collection[ToolCall]) -> str:
        """The calls as the model itself would have written them."""
        return self.separator.join(f"{self.opening}{c.to_json()}{self.closing}" for c in calls)

    def read(self, text: str, tools: Collection[str]) -> tuple[str, tuple[ToolCall, ...]]:
        """Splits a reply into its text and its calls to known tools.

        Text that looks like a call but is none (bad JSON, unknown tool) stays text.
        """
        if self.opening:
            pattern = re.escape(self.opening.strip()) + r"\s*(.*?)\s*" + _end(self.closing)
            bodies = re.findall(pattern, text, flags=re.DOTALL)
            rest = re.sub(pattern, "", text, flags=re.DOTALL).strip()
        else:
            bodies = text.strip().split(self.separator)
            rest = ""
        calls = [_parse(body, tools) for body in bodies]
        found = tuple(call for call in calls if call is not None)
        if not found or len(found) != len(calls):
            return text, ()
        return rest, found


def _end(closing: str) -> str:
    # The closing tag may be missing where the reply was cut off.
    return f"(?:{re.escape(closing.strip())}|$)"


def _parse(body: str, tools: Collection[str]) -> ToolCall | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):  # not JSON, or nested thousands deep
        return None
    if not isinstance(value, dict) or set(value) != {"name", "arguments"}:
        return None
    name, arguments = value["name"], value["arguments"]
    if not isinstance(name, str) or name not in tools or not isinstance(arguments, dict):
        return None
    return ToolCall(name, arguments)


JSON_LINES = ToolFormat("json", opening="", closing="", separator="\n", native=False)
HERMES = ToolFormat(
    "hermes",
    opening="<tool_call>\n",
    closing="\n</tool_call>",
    separator="\n",
    native=True,
)
