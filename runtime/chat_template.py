"""Renders a call through the model's own chat template.

The template tells how the model writes tool calls and whether it thinks before it answers: a
small conversation is rendered once, and what the template made of it is looked at. Where a
template knows nothing of tools, they are described in the system prompt and tool results are
told as user turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from jinja2.exceptions import SecurityError

from tierwise.runtime.braced_arguments import written
from tierwise.runtime.chat import Call, JSONObject, Message, Reasoning, Tool, ToolCall
from tierwise.runtime.errors import UnsupportedModelError
from tierwise.runtime.harmony import HARMONY, HARMONY_TAGS, harmony_turns
from tierwise.runtime.latest import Latest
from tierwise.runtime.llama import Model
from tierwise.runtime.tagged_arguments import Tagged
from tierwise.runtime.template_messages import (
    NULL_MARK,
    alternating,
    arguments_as_text,
    as_openai,
    calls_as_text,
    nulls_marked,
    one_system,
    short_ids,
    single_calls,
    with_results,
    with_system,
    without_system,
)
from tierwise.runtime.template_sandbox import Sandbox
from tierwise.runtime.template_turns import TurnTemplate
from tierwise.runtime.tool_format import (
    GEMMA,
    JSON_LINES,
    MISTRAL_FORMATS,
    NATIVE_FORMATS,
    PHI,
    Thinking,
    ToolFormat,
)
from tierwise.runtime.tool_prompt import DEMONSTRATION, as_plain, tool_prompt

TAUGHT_TOOLS = "tierwise.taught_tools"
"""Key of GGUF files, true where a model has learned by training what a demonstration shows."""

SCHEMA_PROMPT = "Answer with a JSON object of this schema: {schema}"

_ON = {"enable_thinking": True, "thinking": True}
_WORDS_FOR: dict[Reasoning | None, dict[str, Any]] = {
    None: {},
    "off": {"enable_thinking": False, "thinking": False, "reasoning_effort": "low"},
    "on": _ON,
    "low": {**_ON, "reasoning_effort": "low"},
    "medium": {**_ON, "reasoning_effort": "medium"},
    "high": {**_ON, "reasoning_effort": "high"},
}
"""The variables by which templates are told: of Qwen3, GLM, Gemma 4 and others the first, of
DeepSeek V3.1 and Granite the second, of gpt-oss (which cannot do without) the third."""

_NULL = written(NULL_MARK)
_MARK = re.compile("\ue000[0-9]+\ue001")
_HELLO = Message("user", "Hello")
_SYSTEM = Message("system", "Be brief.")
_PROBE_ID = "probe0001"
_PROBE_CALL = ToolCall("probe_tool", {"probe_argument": "x"}, id=_PROBE_ID)
_RESULT = Message("tool", "y", tool_call_id=_PROBE_ID, tool_name=_PROBE_CALL.name)
_PROBE_TOOL = Tool(
    "probe_tool",
    "Probes the template.",
    {
        "type": "object",
        "properties": {"probe_argument": {"type": "string", "description": "Anything."}},
        "required": ["probe_argument"],
    },
)


class ChatTemplate:
    """One model's chat template. Safe to use from many threads.

    Args:
        source: Jinja text from the GGUF file.
        tool_source: A second template, for calls with tools, where the file has one (Hermes).
        bos: Text of the model's beginning-of-sequence token, "" if it has none.
        eos: Text of its end-of-sequence token.
        demonstrates: Whether models that were never trained on tools are shown how to call them.

    Attributes:
        tool_format: How the model writes tool calls.
        tags: Texts of special meaning in replies, of which a vocabulary may have tokens.

    Raises:
        UnsupportedModelError: There is no template, it is not valid Jinja, or it reads files.
    """

    def __init__(
        self,
        source: str | None,
        *,
        tool_source: str | None = None,
        bos: str = "",
        eos: str = "",
        demonstrates: bool = True,
    ) -> None:
        if not source:
            raise UnsupportedModelError(
                "this model has no chat template, so it cannot answer messages. Use an instruct "
                "or chat version of it."
            )
        self._demonstrates = demonstrates
        self._sandbox = Sandbox()
        self._template = self._sandbox.template(source)
        self._turns = TurnTemplate.of(self._sandbox, source)
        self._tool_template = self._sandbox.template(tool_source) if tool_source else self._template
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._data = Latest(_tool_data)
        self._prompt = Latest(tool_prompt)
        self._schema = Latest(_schema_text)
        self.tool_format = JSON_LINES
        self._with_results = False
        # What this template wants, found by trying: an empty list where there are no tools
        # (Hermes), and no system message, where it refuses that (Gemma 2) or moves it on to the
        # latest turn (Mistral Nemo).
        self._no_tools: list[Any] | None = None
        if self._tried([_HELLO]) is None:
            self._no_tools = []
        grown = self._tried([_SYSTEM, _HELLO, Message("assistant", "Hi."), Message("user", "Bye")])
        places = [(grown or "").find(text) for text in (_SYSTEM.content, _HELLO.content, "Bye")]
        system, *turns = places
        first = min((place for place in turns if place >= 0), default=-1)  # earlier ones may go
        self._has_system = 0 <= system < first
        # Some templates leave out system messages but the first or the last (gpt-oss, DeepSeek R1),
        # or refuse later ones (Qwen3.5).
        kind, again = Message("system", "Be kind."), Message("user", "Bye")
        told = self._tried([kind, _HELLO, Message("assistant", "Hi."), _SYSTEM, again])
        held = [message.content in (told or "") for message in (kind, _SYSTEM)]
        self._one_system = held[0] != held[1] or (told is None and self._has_system)
        self.tool_format = self._find_format()
        if self.tool_format is GEMMA:
            calling = [_HELLO, Message("assistant", tool_calls=(_PROBE_CALL,)), _RESULT]
            self._with_results = "<|tool_response>" not in (self._tried(calling) or "")
        self._thinks = self.tool_format is HARMONY or self.tool_format.thoughts.close in source
        self._thinking: dict[Reasoning | None, Thinking] = {}
        think_tags = self.tool_format.thoughts.tags if self._thinks else ()
        own = (*self.tool_format.tags, *think_tags)
        self.tags = HARMONY_TAGS if self.tool_format is HARMONY else own

    @classmethod
    def of(cls, model: Model, *, demonstrates: bool | None = None) -> ChatTemplate:
        """The template in a model's file.

        Args:
            model: Must not be closed yet.
            demonstrates: As of the class; by default unless the file says that it is not needed.
        """
        if demonstrates is None:
            demonstrates = not taught_tools(model)
        return cls(
            model.chat_template,
            tool_source=model.metadata.get("tokenizer.chat_template.tool_use"),
            bos=model.token_text(model.bos),
            eos=model.token_text(model.eos),
            demonstrates=demonstrates,
        )

    def render(self, call: Call) -> str:
        """The prompt text of a call, up to where the reply starts.

        The same messages give the same text, whatever is asked of the reply, save for a
        response schema that stands in the prompt. Of the text of earlier replies nothing is
        trimmed, so that a conversation that goes on begins with the last prompt and its reply.

        Raises:
            UnsupportedModelError: The template refuses the conversation (its reason is given),
                or does not come to an end.
        """
        messages = with_system(self._shaped(call), self._instructions(call))
        tools = call.shown_tools if self.tool_format.native else ()
        shapes: list[Callable[[Sequence[Message]], list[Message]]] = [without_system]
        if self._has_system:
            shapes.insert(0, list)
        reason: Exception | None = None
        for turns in chain((shapes[0](messages),), (alternating(s(messages)) for s in shapes)):
            try:
                return self._render(turns, tools, call.reasoning)
            except SecurityError as error:
                raise _refused(error) from error
            except Exception as error:  # noqa: BLE001 - templates are foreign code
                # Perhaps it wants strict alternation, or no system role in this place.
                reason = error
        raise UnsupportedModelError(
            f"the model's chat template refuses this conversation: {reason}"
        ) from reason

    def _shaped(self, call: Call) -> list[Message]:
        """The messages in the shape that the template takes."""
        tool_format = self.tool_format
        messages = one_system(call.messages) if self._one_system else list(call.messages)
        if not tool_format.native:
            if call.shown_tools and self._demonstrates:
                start = 1 if messages and messages[0].role == "system" else 0
                messages[start:start] = DEMONSTRATION
            return [as_plain(message, tool_format) for message in messages]
        if not any(message.tool_calls or message.role == "tool" for message in messages):
            return messages
        if tool_format is PHI:
            return [calls_as_text(message, tool_format) for message in messages]
        if isinstance(tool_format.syntax, Tagged):
            return arguments_as_text(messages)
        if tool_format is GEMMA:
            return nulls_marked(messages)
        if not tool_format.many:
            messages = single_calls(messages)
        return short_ids(messages) if tool_format in MISTRAL_FORMATS else messages

    def _instructions(self, call: Call) -> str:
        """What the template does not say by itself."""
        parts = []
        if call.shown_tools and not self.tool_format.native:
            parts.append(self._prompt(call.shown_tools))
        if call.response_schema and not call.must_call:
            parts.append(SCHEMA_PROMPT.format(schema=self._schema(call.response_schema)))
        return "\n\n".join(parts)

    def thinking(self, reasoning: Reasoning | None = None) -> Thinking:
        """Whether replies begin with a block of thoughts.

        Args:
            reasoning: As of the call.
        """
        if not self._thinks:
            return "no"
        if reasoning not in self._thinking:
            thoughts = self.tool_format.thoughts
            end = (self._tried([_HELLO], reasoning=reasoning) or "").rstrip()
            found: Thinking = "no" if end.endswith(thoughts.close) else "may"
            self._thinking[reasoning] = "open" if end.endswith(thoughts.open) else found
        return self._thinking[reasoning]

    def _render(
        self, messages: Sequence[Message], tools: tuple[Tool, ...], reasoning: Reasoning | None
    ) -> str:
        """Renders, with the text of replies as it was written.

        Many templates trim it. So where a reply begins or ends with white space, a mark stands
        in its place while the template runs.
        """
        turns = [as_openai(message) for message in messages]
        exact: dict[str, str] = {}
        for index, message in enumerate(messages):
            if message.role == "assistant" and message.content.strip() not in ("", message.content):
                mark = f"\ue000{index}\ue001"
                exact[mark] = message.content
                turns[index]["content"] = mark
        rendered = self._run(turns, tools, reasoning)
        if not exact:
            return rendered
        if sorted(_MARK.findall(rendered)) == sorted(exact):
            return _MARK.sub(lambda found: exact[found.group()], rendered)
        return self._run([as_openai(message) for message in messages], tools, reasoning)

    def _run(
        self,
        turns: list[dict[str, Any]],
        tools: tuple[Tool, ...],
        reasoning: Reasoning | None = None,
    ) -> str:
        data = self._data(tools) if tools else self._no_tools
        if self.tool_format is PHI:
            turns, data = _phi(turns, data), None
        if self.tool_format is HARMONY:
            turns = harmony_turns(turns)
        if self._with_results:
            turns = with_results(turns)
        has_calls = any("tool_calls" in turn for turn in turns)
        template = self._tool_template if tools or has_calls else self._template
        known = {"messages": turns, "tools": data, "add_generation_prompt": True, **self._tokens}
        known |= _WORDS_FOR[reasoning]
        if self._turns is not None and template is self._template:
            text = self._turns.render(known)
        else:
            text = self._sandbox.run(template, known)
        return text.replace(_NULL, "null") if self.tool_format is GEMMA else text

    # --- What the template tells of the model -----------------------------------------------------

    def _tried(
        self,
        messages: Sequence[Message],
        tools: tuple[Tool, ...] = (),
        *,
        reasoning: Reasoning | None = None,
    ) -> str | None:
        """What the template makes of messages as they are; None if it fails."""
        try:
            return self._run([as_openai(message) for message in messages], tools, reasoning)
        except SecurityError as error:
            raise _refused(error) from error
        except Exception:  # noqa: BLE001 - templates are foreign code and fail as they like
            return None

    def _find_format(self) -> ToolFormat:
        """How the template writes a call that it is given."""
        calling = Message("assistant", tool_calls=(_PROBE_CALL,))
        tools = (_PROBE_TOOL,)
        asked = self._tried([_HELLO], tools)
        told = self._tried([_HELLO, calling, _RESULT, Message("assistant", "z"), _HELLO], tools)
        if asked and told and _PROBE_TOOL.description in asked:
            told = told.replace(f', "id": "{_PROBE_ID}"', "")
            for tool_format in NATIVE_FORMATS:
                # Without a tag of its own, a call must be all of the reply.
                before = "" if tool_format.trigger else asked
                if before + tool_format.write([_PROBE_CALL]) in told:
                    return tool_format
            # In one way of writing calls or the other: both are read.
            if "<|channel|>commentary" in told and f"to=functions.{_PROBE_CALL.name}" in told:
                return HARMONY
        with_tools = {"role": "system", "content": "", "tools": _PROBE_TOOL.description}
        try:
            told = self._run([with_tools, as_openai(_HELLO)], ())
        except Exception:  # noqa: BLE001 - templates are foreign code and fail as they like
            return JSON_LINES
        return PHI if f"<|tool|>{_PROBE_TOOL.description}<|/tool|>" in told else JSON_LINES


def taught_tools(model: Model) -> bool:
    """Whether the model's file says that it calls tools without being shown how."""
    return model.metadata.get(TAUGHT_TOOLS) == "true"


def _tool_data(tools: tuple[Tool, ...]) -> list[dict[str, Any]]:
    return [tool.to_openai() for tool in tools]


def _schema_text(schema: JSONObject) -> str:
    return json.dumps(schema, ensure_ascii=False)


def _refused(error: SecurityError) -> UnsupportedModelError:
    return UnsupportedModelError(f"the model's chat template is refused: {error}")


def _phi(turns: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Phi-4-mini takes its tools as text in the system message."""
    names = {"tool": "tool_response"}
    turns = [{**turn, "role": names.get(turn["role"], turn["role"])} for turn in turns]
    if not tools:
        return turns
    if not turns or turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": ""})
    functions = [tool["function"] for tool in tools]
    turns[0]["tools"] = json.dumps(functions, ensure_ascii=False)
    return turns
