"""What a call looks like in numbers, in a fraction of a millisecond.

A row holds counts (of the conversation, of tools and schemas, of the request) and then hashed
n-grams of the request. Nothing in it depends on a tier or a machine. What was fitted on rows keeps
their `FeatureSpec` and is refused for rows of another one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tierwise.routing.difficulty import structural_difficulty
from tierwise.routing.features_schema import SCHEMA_COLUMNS, TOOL_COLUMNS, ToolCounter, words
from tierwise.routing.features_text import (
    CHARACTER_COLUMNS,
    LONGEST,
    TEXT_COLUMNS,
    WORD_COLUMNS,
    FloatArray,
    text_columns,
)
from tierwise.runtime.chat import Call, JSONObject, Message, Tool
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.latest import Latest

VERSION = "tierwise-features-1"
"""Changes whenever the same call would give other numbers."""

CALL_COLUMNS = (
    "difficulty",
    "prompt_tokens",
    "messages",
    "turn",
    "tool_calls",
    "results_since_request",
    "failures_since_request",
    "failures",
    "last_result_characters",
    "must_call",
    "tool_is_named",
    "parallel",
    "response_schema",
    "constrained",
    "best_match",
    "match_gap",
)
"""``difficulty`` is `structural_difficulty`. Counts are log(1 + count), flags 0 or 1. The match of
a tool is the share of the request's words that its name, description or arguments hold; the gap is
from the best one to the second."""

RESPONSE_COLUMNS = tuple(f"response_{name}" for name in SCHEMA_COLUMNS)

COUNTS = (
    *CALL_COLUMNS,
    *TOOL_COLUMNS,
    *(f"tool_{name}" for name in SCHEMA_COLUMNS),
    *RESPONSE_COLUMNS,
    *(f"request_{name}" for name in TEXT_COLUMNS),
)
"""Names of the columns that are no n-grams, in order."""


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """What the columns of a row are.

    Attributes:
        version: Of the code that makes them.
        counts: Columns that each mean something, the first ones.
        hashed: Widths of the blocks of hashed n-grams, the last ones.
    """

    version: str
    counts: int
    hashed: tuple[int, ...]

    @property
    def width(self) -> int:
        """Columns in all."""
        return self.counts + sum(self.hashed)

    def check(self, other: FeatureSpec) -> None:
        """Whether what was fitted on rows of this kind can be used on those of another.

        Raises:
            ConfigError: It cannot.
        """
        if self != other:
            raise ConfigError(
                f"fitted on features {self.version!r} of {self.width} columns, but this Tierwise "
                f"makes {other.version!r} of {other.width}. Calibrate again."
            )


class Features:
    """Turns calls into rows; safe to use from many threads.

    Attributes:
        spec: Of the rows.
    """

    def __init__(self) -> None:
        self._counter = ToolCounter()
        self._offered = Latest(_difficulty_of_offer)
        self.spec = FeatureSpec(VERSION, len(COUNTS), (WORD_COLUMNS, CHARACTER_COLUMNS))

    def __call__(self, call: Call, prompt: Sequence[int] = ()) -> FloatArray:
        """One row, shape (spec.width,).

        Args:
            prompt: The call's tokens, if they are known.
        """
        request = call.request
        text = text_columns(request)
        return np.concatenate((self._counts(call, request, len(prompt)), text))

    def rows(
        self, calls: Sequence[Call], prompts: Iterable[Sequence[int]] | None = None
    ) -> FloatArray:
        """A row for each call, shape (calls, spec.width)."""
        each = [()] * len(calls) if prompts is None else prompts
        made = [self(call, prompt) for call, prompt in zip(calls, each, strict=True)]
        return np.array(made, np.float32).reshape(len(calls), self.spec.width)

    def _counts(self, call: Call, request: str, prompt_tokens: int) -> FloatArray:
        tools = call.usable_tools
        facts = self._counter.of_tools(tools)
        schema = None if call.must_call else call.response_schema
        asked = frozenset(words(request[:LONGEST])) if tools else frozenset()
        matches = sorted((len(asked & w) / max(1, len(asked)) for w in facts.words), reverse=True)
        best, second = [*matches, 0.0, 0.0][:2]
        row = (
            # Its terms add up: those of tools and schema are the same call after call.
            self._offered((tools, schema)) + structural_difficulty(Call(call.messages)),
            math.log1p(prompt_tokens),
            *_conversation(call.messages),
            call.must_call,
            call.tool_choice not in ("auto", "any", "none"),
            call.parallel_tool_calls,
            schema is not None,
            call.regex is not None or bool(call.choices),
            best,
            best - second,
            *facts.columns,
            *self._counter.of_schema(schema),
        )
        return np.array(row, np.float32)


def _difficulty_of_offer(offer: tuple[tuple[Tool, ...], JSONObject | None]) -> float:
    tools, schema = offer
    return structural_difficulty(Call((), tools, response_schema=schema))


def _conversation(messages: tuple[Message, ...]) -> tuple[float, ...]:
    """``messages`` to ``last_result_characters`` of `CALL_COLUMNS`."""
    turns = calls = results = failures = recent_failures = last = 0
    for message in messages:
        if message.role == "user":
            turns += 1
            results = recent_failures = 0
        elif message.role == "tool":
            results += 1
            failures += message.tool_failed
            recent_failures += message.tool_failed
            last = len(message.content)
        else:
            calls += len(message.tool_calls)
    if not results:
        last = 0
    counts = (len(messages), turns, calls, results, recent_failures, failures, last)
    return tuple(map(math.log1p, counts))


_PLAIN = Features()
PLAIN_SPEC = _PLAIN.spec
"""Of `call_features` and `text_features`."""


def call_features(call: Call, prompt: Sequence[int] = ()) -> FloatArray:
    """The row of a call, shape (PLAIN_SPEC.width,)."""
    return _PLAIN(call, prompt)


def text_features(prompt: str) -> FloatArray:
    """The row of a prompt that comes without a conversation, tools or tokens: that of a call with
    this one user turn."""
    return _PLAIN(Call((Message("user", prompt),)))
