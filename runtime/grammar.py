"""Grammars that make tool calls and structured output valid by construction.

A call's tools and response schema become one Lark grammar for llguidance
(https://github.com/guidance-ai/llguidance), compiled once per model and set of schemas.
"""

from __future__ import annotations

import ctypes
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp as lib
import llguidance

from tierwise.runtime.chat import Call, JSONObject, Tool
from tierwise.runtime.errors import EngineClosedError, ToolSchemaError
from tierwise.runtime.llama import Model
from tierwise.runtime.tool_format import ToolFormat

# Fixed white space, so that everything but the values is forced and can be fast-forwarded.
_JSON_STYLE = {
    "whitespace_flexible": False,
    "key_separator": ": ",
    "item_separator": ", ",
    "coerce_one_of": True,  # pydantic writes tagged unions so
}


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
    """The grammar that a call's reply must follow, or None where it is free text.

    Raises:
        ToolSchemaError: A tool's parameters are no object, or a schema is not JSON.
    """
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
            # One literal for each lexeme of JSON. A longer one would be all that the lexer sees
            # after `{"`, and would shut out a response schema's own properties.
            name = json.dumps(tool.name)
            lexemes = ("{", '"name"', ": ", name, ", ", '"arguments"', ": ")
            head = " ".join(map(_literal, lexemes))
            schema = _json_rule(f"tool {tool.name!r}", _object_schema(tool))
            tail = _literal("}")
            parts = [part for part in (opening, head, schema, tail, closing) if part]
            rules.append(f"call_{index}: " + " ".join(parts))
        starts.append("calls")
    if call.response_schema is not None and not call.must_call:
        rules.append(f"reply: {_json_rule('the response schema', call.response_schema)}")
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


def _json_rule(owner: str, schema: JSONObject) -> str:
    rule = {**closed(schema), "x-guidance": _JSON_STYLE}
    try:
        return "%json " + json.dumps(rule, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ToolSchemaError(f"{owner}: its schema is not JSON ({error})") from error


def _object_schema(tool: Tool) -> JSONObject:
    if not tool.parameters:
        return {"type": "object", "properties": {}}
    if tool.parameters.get("type", "object") != "object":
        raise ToolSchemaError(
            f"tool {tool.name!r}: its parameters must be a JSON schema of type 'object', "
            f"got type {tool.parameters['type']!r}"
        )
    return {"type": "object", **tool.parameters}


def closed(schema: JSONObject) -> JSONObject:
    """The schema with every object that lists its properties closed to others.

    JSON schema allows unknown properties by default, and a small model will invent them.
    Objects that say ``additionalProperties`` themselves are left as they are. So is the whole
    schema where several parts of it describe one object (say ``allOf``): closing one part would
    forbid what the others list.
    """
    return schema if _has_mixture(schema) else _closed(schema)


def _has_mixture(schema: Any) -> bool:
    if isinstance(schema, Mapping):
        parts = sum(key in schema for key in ("properties", "$ref", "anyOf", "oneOf"))
        parts += len(schema.get("allOf", ()))
        return parts > 1 or any(map(_has_mixture, schema.values()))
    return isinstance(schema, list | tuple) and any(map(_has_mixture, schema))


def _closed(schema: Any) -> Any:
    if isinstance(schema, list | tuple):
        return [_closed(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("enum", "const", "default", "examples"):  # values, not schemas
            out[key] = value
        elif key in ("properties", "patternProperties", "$defs", "definitions"):
            out[key] = {name: _closed(one) for name, one in value.items()}
        else:
            out[key] = _closed(value)
    if "properties" in out:
        out.setdefault("additionalProperties", False)
    return out


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
        self._closed = False

    def matcher(self, lark: str) -> Any:
        """A fresh ``llguidance.LLMatcher`` at the start of the grammar.

        Raises:
            ToolSchemaError: The grammar does not compile. `check` says which part.
            EngineClosedError: After `close`.
        """
        with self._lock:
            if self._closed:
                raise EngineClosedError("this tier was unloaded; ask the pool for it again")
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
            _check_schema(f"tool {tool.name!r}", _object_schema(tool))
        if call.response_schema is not None:
            _check_schema("the response schema", call.response_schema)

    def close(self) -> None:
        """Waits for a compilation that runs; later ones would read a vocabulary that is gone."""
        with self._lock:
            self._closed = True

    def _trie(self) -> llguidance.LLTokenizer:
        if self._tokenizer is None:
            # As `llguidance.llamacpp` makes it, save that user-defined tokens count as text: a
            # grammar's "<tool_call>" must be met by the token of that name where there is one.
            model = self._model
            ids = range(model.vocab_size)
            self._tokenizer = llguidance.LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]
                tokens=[model.piece(i) or b"\xff" + model.token_text(i).encode() for i in ids],
                vocab_ptr=model.vocab,
                tokenize_fptr=ctypes.cast(lib.llama_cpp._lib.llama_tokenize, ctypes.c_void_p).value,
                eos_token=[model.eos, *(i for i in ids if i != model.eos and model.is_end(i))],
            )
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
        if isinstance(child, bool):  # true allows anything, false nothing
            continue
        if not isinstance(child, Mapping):
            return (*path, name), f"expected a schema, got {child!r}"
        child_reason = _compile_error({**shared, **child})
        if child_reason is not None:
            return _culprit(root, child, child_reason, (*path, name))
    return tuple(path), reason


def _compile_error(schema: JSONObject) -> str | None:
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(
            json.dumps({**closed(schema), "x-guidance": _JSON_STYLE})
        )
    except (TypeError, ValueError) as error:
        return f"it is not JSON ({error})"
    failed, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    return " ".join(messages[0].split()) if failed else None
