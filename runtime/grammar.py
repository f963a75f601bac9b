"""Grammars that make tool calls and structured output valid by construction.

A call's tools and response schema become one Lark grammar for llguidance
(https://github.com/guidance-ai/llguidance), compiled once per model and set of schemas.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import llguidance
import llguidance.llamacpp

from tierwise.runtime.chat import Call, JSONObject
from tierwise.runtime.errors import ToolSchemaError
from tierwise.runtime.llama import Model
from tierwise.runtime.tool_format import ToolFormat

# Fixed white space, so that everything but the values is forced and can be fast-forwarded.
_JSON_STYLE = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}


@dataclass(frozen=True, slots=True)
class Constraint:
    """A grammar, and the text that switches it on.

    Args:
        lark: The grammar of the whole reply, from its first character.
        trigger: With a trigger the reply is free until it starts with that text; without one
            the grammar holds from the start.
    """

    lark: str
    trigger: str | None = None


def constraint_for(call: Call, tool_format: ToolFormat) -> Constraint | None:
    """The grammar that a call's reply must follow, or None where it is free text."""
    tools = call.usable_tools
    rules: list[str] = []
    starts: list[str] = []
    if tools:
        opening, closing = _literal(tool_format.opening), _literal(tool_format.closing)
        separator = _literal(tool_format.separator)
        repeat = f" ({separator} call)*" if call.parallel_tool_calls else ""
        rules.append(f"calls: call{repeat}")
        rules.append("call: " + " | ".join(f"call_{index}" for index in range(len(tools))))
        for index, tool in enumerate(tools):
            head = _literal(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
            schema = _json_rule(closed(_object_schema(tool.parameters)))
            tail = _literal("}")
            parts = [part for part in (opening, head, schema, tail, closing) if part]
            rules.append(f"call_{index}: " + " ".join(parts))
        starts.append("calls")
    if call.response_schema is not None and not call.must_call:
        rules.append(f"reply: {_json_rule(closed(call.response_schema))}")
        starts.append("reply")
    if not starts:
        return None
    free_text_allowed = bool(tools) and not call.must_call and call.response_schema is None
    return Constraint(
        lark="\n".join([f"start: {' | '.join(starts)}", *rules]),
        trigger=(tool_format.opening or "{") if free_text_allowed else None,
    )


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _json_rule(schema: JSONObject) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": _JSON_STYLE}, ensure_ascii=False)


def _object_schema(parameters: JSONObject) -> JSONObject:
    return parameters if parameters else {"type": "object", "properties": {}}


def closed(schema: Any) -> Any:
    """The schema with every object that lists its properties closed to others.

    JSON schema allows unknown properties by default, and a small model will invent them.
    Objects that say ``additionalProperties`` themselves are left as they are.
    """
    if isinstance(schema, Mapping):
        out = {key: closed(value) for key, value in schema.items()}
        if "properties" in out and isinstance(out["properties"], dict):
            out.setdefault("additionalProperties", False)
        return out
    if isinstance(schema, (list, tuple)):
        return [closed(item) for item in schema]
    return schema


class GrammarCompiler:
    """Compiles grammars against one model's vocabulary, and remembers the latest.

    Building the token trie takes about 0.3 s, so it waits for the first constrained call.
    Thread-safe.
    """

    def __init__(self, model: Model, *, remembered: int = 64) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._remembered = remembered

    def matcher(self, lark: str) -> Any:
        """A fresh ``llguidance.LLMatcher`` at the start of the grammar.

        Raises:
            ToolSchemaError: The grammar does not compile. `check` says which part.
        """
        with self._lock:
            prototype = self._compiled.get(lark)
            if prototype is None:
                prototype = llguidance.LLMatcher(self._trie(), _from_lark(lark), log_level=0)
                if prototype.is_error():
                    raise ToolSchemaError(
                        f"the reply's grammar cannot be compiled: {prototype.get_error()}"
                    )
                self._compiled[lark] = prototype
                while len(self._compiled) > self._remembered:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(lark)
            return prototype.deep_copy()

    def check(self, call: Call) -> None:
        """Finds the tool and property that cannot be compiled.

        Raises:
            ToolSchemaError: Names the tool, the property and llguidance's reason.
        """
        for tool in call.usable_tools:
            schema = _object_schema(tool.parameters)
            if schema.get("type", "object") != "object":
                raise ToolSchemaError(
                    f"tool {tool.name!r}: its parameters must be a JSON schema of type 'object', "
                    f"got type {schema.get('type')!r}"
                )
            _check_schema(f"tool {tool.name!r}", schema)
        if call.response_schema is not None:
            _check_schema("the response schema", call.response_schema)

    def _trie(self) -> llguidance.LLTokenizer:
        if self._tokenizer is None:
            self._tokenizer = llguidance.llamacpp.lltokenizer_from_vocab(self._model.vocab)
        return self._tokenizer


def _from_lark(lark: str) -> str:
    return str(llguidance.LLMatcher.grammar_from_lark(lark))


def _check_schema(owner: str, schema: JSONObject) -> None:
    reason = _compile_error(schema)
    if reason is None:
        return
    path, reason = _culprit(schema, schema, reason, ())
    place = f", property {'.'.join(path)!r}" if path else ""
    raise ToolSchemaError(
        f"{owner}{place} cannot be compiled: {reason}. Simplify that part of the schema "
        "(supported: https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md)."
    )


def _culprit(
    root: JSONObject, schema: JSONObject, reason: str, path: Sequence[str]
) -> tuple[tuple[str, ...], str]:
    """Goes down to the innermost property that fails alone; definitions come along."""
    shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
    children = dict(schema.get("properties") or {})
    if isinstance(schema.get("items"), Mapping):
        children["[]"] = schema["items"]
    for name, child in children.items():
        if not isinstance(child, Mapping):
            return (*path, name), f"expected a schema, got {child!r}"
        child_reason = _compile_error({**shared, **child})
        if child_reason is not None:
            return _culprit(root, child, child_reason, (*path, name))
    return tuple(path), reason


def _compile_error(schema: JSONObject) -> str | None:
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(closed(schema)))
    except (TypeError, ValueError) as error:
        return f"it is not JSON ({error})"
    failed, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    return " ".join(messages[0].split()) if failed else None
