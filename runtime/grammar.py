"""Grammars that make a reply what its call asked for: valid tool calls, valid JSON, a text.

A call's tools and what its reply must look like become one Lark grammar for llguidance
(https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md), compiled once per model
and set of schemas. Free text is part of the grammar: it goes on until the tag that begins a
call (a lazy lexeme), and from there on only valid calls follow. White space is fixed, so that
everything but the values is forced.
"""

from __future__ import annotations

import ctypes
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import llama_cpp as lib
import llguidance

from tierwise.runtime.braced_arguments import Braced, braced_rules
from tierwise.runtime.chat import Call
from tierwise.runtime.errors import ConfigError, EngineClosedError, ToolSchemaError
from tierwise.runtime.harmony import HARMONY, harmony_rules
from tierwise.runtime.lark import literal, pattern, within_slashes
from tierwise.runtime.llama import Model
from tierwise.runtime.schemas import check_schema, json_rule, object_schema
from tierwise.runtime.tagged_grammar import tagged_rules
from tierwise.runtime.tool_format import Thinking, ToolFormat

_ID = "/[a-zA-Z0-9]{9}/"
_SPACE = "/[ \\t\\r\\n]+/"


@dataclass(frozen=True, slots=True)
class Constraint:
    """The grammar of a whole reply, from its first character to its last."""

    lark: str


def constraint_for(
    call: Call, tool_format: ToolFormat, thinking: Thinking = "no"
) -> Constraint | None:
    """The grammar that a call's reply must follow, or None where it is free text.

    A think block has no limit but `Call.max_tokens`: a thought cut short is worth less than
    none. A model that thinks may do so before forced calls too.

    Args:
        call: The call.
        tool_format: How the model writes calls.
        thinking: Whether the reply begins with a think block.

    Raises:
        ToolSchemaError: A tool's parameters are no object, or a schema is not JSON.
        ConfigError: More than one of ``response_schema``, ``regex`` and ``choices`` was given,
            or a choice is empty.
    """
    reply = None if call.must_call else _reply(call, tool_format)
    if tool_format is HARMONY:
        free = reply is None and not call.usable_tools
        return None if free else Constraint(harmony_rules(call, reply))
    if not call.usable_tools:
        if reply is None:
            return None
        answer, rules = "reply", [reply]
    elif call.must_call:
        answer, rules = "calls", _calls(call, tool_format, _beginning(tool_format))
    elif reply is not None:
        answer, rules = (
            "calls | reply",
            [*_calls(call, tool_format, _beginning(tool_format)), reply],
        )
    else:
        answer, rules = _text_or_calls(call, tool_format, thinking)
    free = "TEXT" in answer
    start = "answer"
    if thinking != "no":
        thoughts = tool_format.thoughts
        opening = "" if thinking == "open" else rf"[ \t\r\n]*{pattern(thoughts.open)}"
        rules.append(rf"think[lazy]: /(?s:{opening}.*{pattern(thoughts.close)})/")
        thought = f"think {'' if free else literal(thoughts.gap)} answer"
        start = thought if thinking == "open" else f"{thought} | answer"
    return Constraint("\n".join([f"start: {start}", f"answer: {answer}", *rules]))


def _beginning(tool_format: ToolFormat) -> str:
    return tool_format.first + tool_format.opening


def _text_or_calls(
    call: Call, tool_format: ToolFormat, thinking: Thinking
) -> tuple[str, list[str]]:
    """Free text, which turns into calls where their tag (or a first brace) stands."""
    trigger, lead = tool_format.trigger, tool_format.lead
    no_text = [tool_format.thoughts.open] if thinking == "may" else []
    if trigger:
        begin = _beginning(tool_format).removeprefix(trigger)
        words = f"words[lazy]: TEXT {literal(trigger)}"
        rules = [*_calls(call, tool_format, begin), words, _text(no_text)]
        return "TEXT | words calls", rules
    no_text += ["{", lead] if lead else ["{"]
    rules = [*_calls(call, tool_format, _beginning(tool_format)), _text(no_text)]
    leads = f"({literal(lead)})? " if lead else ""
    return f"TEXT | {_SPACE}? {leads}calls", rules


def _text(beginnings: Iterable[str]) -> str:
    """The lexeme of any text, save those that begin so (white space before it or not)."""
    but = "".join(rf" & ~/(?s:[ \t\r\n]*{pattern(start)}.*)/" for start in beginnings)
    return f"TEXT: /(?s:.*)/{but}"


def _calls(call: Call, tool_format: ToolFormat, begin: str) -> list[str]:
    """Rules for calls of the usable tools, of which the first stands after ``begin``."""
    tools = call.usable_tools
    between = literal(tool_format.separator + tool_format.opening)
    more = f"({between} call)*" if call.parallel_tool_calls and tool_format.many else ""
    rules = [
        f"calls: {literal(begin)} call {more} {literal(tool_format.last)}",
        "call: " + " | ".join(f"call_{index}" for index in range(len(tools))),
    ]
    # A literal for each lexeme of JSON where the other possibility is a JSON reply: a longer one
    # would be all that the lexer sees after `{"`, and would shut out the reply's own properties.
    # Elsewhere one literal, lest the regular expression of a reply swallow the lexemes.
    shared: dict[str, str] = {}
    apart = call.response_schema is not None and not call.must_call
    for index, tool in enumerate(tools):
        syntax = tool_format.syntax
        if syntax:
            rule = f"call_{index}"
            if isinstance(syntax, Braced):
                first, *others = braced_rules(rule, tool)
            else:
                first, *others = tagged_rules(rule, tool, syntax, shared)
            rules += [f"{first} {literal(tool_format.closing)}", *others]
            continue
        parts = tool_format.head(tool.name)
        head = " ".join(literal(part) or _ID for part in (parts if apart else _joined(parts)))
        schema = json_rule(f"tool {tool.name!r}", object_schema(tool))
        # The tail stands alone: a brace may end an object among the arguments as well.
        tail = f"{literal(tool_format.tail)} {literal(tool_format.closing)}"
        rules.append(f"call_{index}: {head} {schema} {tail}")
    return rules


def _joined(parts: tuple[str, ...]) -> list[str]:
    """Neighbouring texts as one; the empty one, an id's place, stays alone."""
    at = parts.index("") if "" in parts else len(parts)
    return ["".join(parts[:at]), *(["", "".join(parts[at + 1 :])] if "" in parts else [])]


def _reply(call: Call, tool_format: ToolFormat) -> str | None:
    """The rule of a reply that is no call, or None where it is free text."""
    asked = {
        "response_schema": call.response_schema is not None,
        "regex": call.regex is not None,
        "choices": bool(call.choices),
    }
    given = [name for name, is_given in asked.items() if is_given]
    if len(given) > 1:
        raise ConfigError(
            f"a reply can follow one of response_schema, regex and choices; this call has "
            f"{' and '.join(given)}. Leave out all but one."
        )
    if "" in call.choices:
        raise ConfigError("choices holds an empty text, which cannot be replied; leave it out")
    if call.response_schema is not None:
        return f"reply: {json_rule('the response schema', call.response_schema)}"
    if not given:
        return None
    if call.regex is not None:
        allowed = within_slashes(call.regex)
    else:
        allowed = "|".join(map(pattern, call.choices))
    # A pattern that fits a call's beginning would keep the lexer from ever seeing a call.
    heads = [tool_format.trigger or "".join(tool_format.head(t.name)) for t in call.usable_tools]
    but = "".join(rf" & ~/(?s:{pattern(head)}.*)/" for head in dict.fromkeys(heads))
    return f"reply: REPLY\nREPLY: /(?:{allowed})/{but}"


class GrammarCompiler:
    """Compiles grammars against one model's vocabulary, and remembers the latest.

    Building the token trie takes about 0.3 s, so it waits for the first constrained call.
    Thread-safe.
    """

    def __init__(self, model: Model, *, remembered: int = 64) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._compiling = threading.Lock()  # for seconds; who holds it may take the other too
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._remembered = remembered
        self._closed = False

    def matcher(self, lark: str) -> Any:
        """A fresh ``llguidance.LLMatcher`` at the start of the grammar; raises as `compile`."""
        return self.compile(lark).deep_copy()

    def compile(self, lark: str) -> Any:
        """The grammar's prototype, which is remembered and must not be used up.

        Raises:
            ToolSchemaError: The grammar does not compile. `check` says which part.
            EngineClosedError: After `close`.
        """
        if (known := self._known(lark)) is not None:
            return known
        with self._compiling:
            if (known := self._known(lark)) is not None:  # somebody was quicker
                return known
            prototype = llguidance.LLMatcher(self._trie(), _from_lark(lark), log_level=0)
            if prototype.is_error():
                raise ToolSchemaError(
                    f"the reply's grammar cannot be compiled: {prototype.get_error()}"
                )
            with self._lock:
                self._compiled[lark] = prototype
                while len(self._compiled) > self._remembered:
                    self._compiled.popitem(last=False)
            return prototype

    def _known(self, lark: str) -> Any | None:
        with self._lock:
            if self._closed:
                raise EngineClosedError("this tier was unloaded; ask the pool for it again")
            if lark in self._compiled:
                self._compiled.move_to_end(lark)
            return self._compiled.get(lark)

    def check(self, call: Call) -> None:
        """Finds the tool and property that cannot be compiled.

        Raises:
            ToolSchemaError: Names the tool, the property and llguidance's reason.
        """
        for tool in call.usable_tools:
            check_schema(f"tool {tool.name!r}", object_schema(tool))
        if call.response_schema is not None:
            check_schema("the response schema", call.response_schema)
        if call.regex is not None:
            _check_regex(call.regex)

    def close(self) -> None:
        """Waits for a compilation that runs; later ones would read a vocabulary that is gone."""
        with self._compiling, self._lock:
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


def _check_regex(regex: str) -> None:
    lark = _from_lark(f"start: REPLY\nREPLY: /(?:{within_slashes(regex)})/")
    failed, messages = llguidance.LLMatcher.validate_grammar_with_warnings(lark)
    if failed:
        reason = " ".join(messages[0].split())
        raise ToolSchemaError(
            f"the regular expression {regex!r} cannot be compiled: {reason}. The syntax is that "
            "of Rust's regex crate, without look-around and word boundaries."
        )
