"""Renders a call through the model's own chat template, in a sandbox.

Templates come from model files, so they are untrusted code: they run in Jinja's immutable
sandbox. Where a template knows nothing of tools, they are described in the system prompt and
tool results are told as user turns.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from tierwise.runtime.chat import Call, Message
from tierwise.runtime.errors import UnsupportedModelError
from tierwise.runtime.llama import Model
from tierwise.runtime.tool_format import HERMES, JSON_LINES, ToolFormat
from tierwise.runtime.tool_prompt import DEMONSTRATION, as_plain, tool_prompt

SCHEMA_PROMPT = "Answer with a JSON object of this schema: {schema}"


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}`` marks, for training, what the model writes; here it does nothing."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja as ``transformers`` sets it up for chat templates."""

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
        )
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    # Jinja's own escapes <, > and & for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


class ChatTemplate:
    """One model's chat template.

    Args:
        source: Jinja text from the GGUF file.
        bos: Text of the model's beginning-of-sequence token, "" if it has none.
        eos: Text of its end-of-sequence token.

    Raises:
        UnsupportedModelError: There is no template, or it is not valid Jinja.
    """

    def __init__(self, source: str | None, *, bos: str = "", eos: str = "") -> None:
        if not source:
            raise UnsupportedModelError(
                "this model has no chat template, so it cannot answer messages. Use an instruct "
                "or chat version of it."
            )
        try:
            tree = _Sandbox().parse(source)
            self._template = _Sandbox().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise UnsupportedModelError(f"the model's chat template is broken: {error}") from error
        knows_tools = "tools" in jinja2.meta.find_undeclared_variables(tree)
        hermes = knows_tools and "<tool_call>" in source
        self.tool_format: ToolFormat = HERMES if hermes else JSON_LINES
        self._tokens = {"bos_token": bos, "eos_token": eos}

    @classmethod
    def of(cls, model: Model) -> ChatTemplate:
        """The template in a model's file."""
        return cls(
            model.chat_template,
            bos=model.token_text(model.bos),
            eos=model.token_text(model.eos),
        )

    def render(self, call: Call) -> str:
        """The prompt text of a call, up to where the reply starts.

        Raises:
            UnsupportedModelError: The template refuses the conversation (its reason is given).
        """
        native = self.tool_format.native
        messages = list(call.messages)
        if not native:
            if call.usable_tools:
                start = 1 if messages and messages[0].role == "system" else 0
                messages[start:start] = DEMONSTRATION
            messages = [as_plain(message, self.tool_format) for message in messages]
        messages = _with_system(messages, self._instructions(call))
        tools = [tool.to_openai() for tool in call.usable_tools] if native else []
        try:
            return self._render(messages, tools)
        except Exception:  # noqa: BLE001 - templates are foreign code and fail as they like
            # Some templates (Gemma's) have no system role, and some want strict alternation.
            plain = _alternating(_without_system(messages))
            try:
                return self._render(plain, tools)
            except Exception as error:
                raise UnsupportedModelError(
                    f"the model's chat template refuses this conversation: {error}"
                ) from error

    def _render(self, messages: Iterable[Message], tools: list[dict[str, Any]]) -> str:
        return self._template.render(
            messages=[_as_openai(message) for message in messages],
            tools=tools or None,
            add_generation_prompt=True,
            **self._tokens,
        )

    def _instructions(self, call: Call) -> str:
        """What the template does not say by itself."""
        parts = []
        if call.usable_tools and not self.tool_format.native:
            parts.append(tool_prompt(call.usable_tools))
        if call.response_schema and not call.must_call:
            schema = json.dumps(call.response_schema, ensure_ascii=False)
            parts.append(SCHEMA_PROMPT.format(schema=schema))
        return "\n\n".join(parts)


def _as_openai(message: Message) -> dict[str, Any]:
    """The form that templates were written for."""
    out: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        out["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.role == "tool":
        out["tool_call_id"] = message.tool_call_id
        out["name"] = message.tool_name
    return out


def _with_system(messages: list[Message], text: str) -> list[Message]:
    if not text:
        return messages
    if messages and messages[0].role == "system":
        first = messages[0]
        return [replace(first, content=f"{first.content}\n\n{text}".strip()), *messages[1:]]
    return [Message(role="system", content=text), *messages]


def _without_system(messages: list[Message]) -> list[Message]:
    system = "\n\n".join(m.content for m in messages if m.role == "system")
    rest = [message for message in messages if message.role != "system"]
    if not system:
        return rest
    if rest and rest[0].role == "user":
        return [replace(rest[0], content=f"{system}\n\n{rest[0].content}"), *rest[1:]]
    return [Message(role="user", content=system), *rest]


def _alternating(messages: list[Message]) -> list[Message]:
    """Neighbouring plain turns of one role become one turn."""
    out: list[Message] = []
    for message in messages:
        last = out[-1] if out else None
        if last and last.role == message.role and not (last.tool_calls or message.tool_calls):
            out[-1] = replace(last, content=f"{last.content}\n\n{message.content}")
        else:
            out.append(message)
    return out
