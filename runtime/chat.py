"""One call to a chat model, in the plain form that every room shares.

LangChain's messages are turned into these in ``plugin``; task suites are written in them;
the chat template and the grammar are made from them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

_BEGUN = re.compile(r"\A\s*\{|<\|?tool_call\b|\[TOOL_CALLS\]")
"""How calls begin: in bare JSON at the start of a reply, with a tag wherever that stands."""

Reasoning = Literal["off", "on", "low", "medium", "high"]
"""Whether a model thinks before it answers, and how hard, as far as its template can be told."""

Role = Literal["system", "user", "assistant", "tool"]
JSONObject = Mapping[str, Any]
"""A JSON object. Never changed after it was made."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model asks for a tool to be run."""

    name: str
    arguments: JSONObject
    id: str = ""

    def to_json(self) -> str:
        """The call as models write it: ``{"name": …, "arguments": {…}}`` on one line."""
        return json.dumps(
            {"name": self.name, "arguments": dict(self.arguments)}, ensure_ascii=False
        )


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``tool_calls`` only with role assistant; ``tool_call_id`` only with role tool."""

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    tool_name: str = ""
    tool_failed: bool = False
    reasoning: str = ""
    """What the model thought before this turn. Some templates (Qwen3) keep it for a while."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may ask for. ``parameters`` is a JSON schema of type object."""

    name: str
    description: str
    parameters: JSONObject

    def to_openai(self) -> dict[str, Any]:
        """The form that chat templates expect in their ``tools`` variable."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": dict(self.parameters),
            },
        }


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. Temperature 0 takes the likeliest (greedy)."""

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int | None = None
    logprobs: int | None = None
    """Likeliest alternatives to report for every token; 0 for the token's own logprob alone,
    None for nothing."""


@dataclass(frozen=True, slots=True)
class Call:
    """All that routing and a tier may look at when they answer.

    Args:
        messages: The conversation so far, oldest first.
        tools: Functions that the model may ask for.
        tool_choice: "auto" (text or calls), "any" (at least one call), "none", or a tool's name.
        parallel_tool_calls: Whether one reply may hold several calls.
        response_schema: JSON schema that a text reply must match; ``{}`` for any JSON.
        regex: Regular expression (Rust's syntax) that a text reply must match as a whole.
        choices: The only texts that may be replied.
        max_tokens: Longest reply, in tokens; ``None`` for what the context has room for.
        stop: Texts that end the reply; they are not part of it.
        timeout_s: Seconds after which the call fails with CallTimeoutError.
        overflow: What happens when prompt and reply are longer than the context: "error", or
            "trim" to leave out turns from the middle of the conversation.
        reasoning: Whether the model is to think first; None for what its template does by itself.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = False
    response_schema: JSONObject | None = None
    regex: str | None = None
    choices: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    timeout_s: float | None = None
    overflow: Literal["error", "trim"] = "error"
    reasoning: Reasoning | None = None

    @property
    def usable_tools(self) -> tuple[Tool, ...]:
        """The tools that this call may really use: none, the one named, or all."""
        if self.tool_choice == "none":
            return ()
        if self.tool_choice in ("auto", "any"):
            return self.tools
        return tuple(tool for tool in self.tools if tool.name == self.tool_choice)

    @property
    def shown_tools(self) -> tuple[Tool, ...]:
        """The tools that the prompt tells of: all, even where one is named, so that the calls of
        a conversation have their prompts' beginning in common; none where none may be used."""
        return () if self.tool_choice == "none" else self.tools

    @property
    def must_call(self) -> bool:
        """Whether the reply must be a tool call."""
        return bool(self.usable_tools) and self.tool_choice != "auto"

    @property
    def request(self) -> str:
        """What the user said last; "" where no user spoke."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    @property
    def since_user(self) -> tuple[Message, ...]:
        """What came since the user last spoke; all messages where no user did."""
        for at in range(len(self.messages) - 1, -1, -1):
            if self.messages[at].role == "user":
                return self.messages[at + 1 :]
        return self.messages

    def with_messages(self, *messages: Message) -> Call:
        """The same call with more messages at the end."""
        return replace(self, messages=self.messages + messages)


FinishReason = Literal["stop", "length", "tool_calls", "loop"]
"""Why a reply ended: by itself, by a limit (of tokens, or of `Budget.seconds_per_call`), with tool
calls, or because it went round in circles (`LoopWatch`)."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and seconds of one reply."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    forced_tokens: int = 0
    """Of the completion, those that the grammar wrote by itself (fast-forward)."""
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    reused_tokens: int = 0
    """Of the completion, those that the model chose as a reply that was given up has them, and
    that took no steps of their own for that."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of a reply: its bytes, its natural log-probability (of the model's own
    distribution, before temperature and grammar), and the likeliest tokens in its place."""

    piece: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """What a tier answered.

    ``reasoning`` is what the model wrote between its thinking tags; it is not part of the text.

    ``tokens`` are the reply's as it was generated, without the end token; of remote tiers there
    are none.

    ``margins`` are the gaps between the chances of the best and the second-best token, one for
    each token that the model chose itself (those the grammar forced do not count).
    """

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason = "stop"
    usage: Usage = field(default_factory=Usage)
    margins: tuple[float, ...] = ()
    reasoning: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    tokens: tuple[int, ...] = field(default=(), repr=False, compare=False)

    @property
    def begins_a_call(self) -> bool:
        """Whether the text is a tool call that was cut off, or that cannot be read."""
        return not self.tool_calls and bool(_BEGUN.search(self.text))

    @property
    def confidence(self) -> float:
        """The smallest of the margins; 1.0 where the model chose nothing."""
        return min(self.margins, default=1.0)
