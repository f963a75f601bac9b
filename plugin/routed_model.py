"""What `ChatTierwise` and `TierwiseLLM` share: their settings, their router, their calls."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import MinLen
from pydantic import (
    BaseModel,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from tierwise.plugin.messages import to_budget, to_schema
from tierwise.plugin.shared_router import (
    RouterSettings,
    enrol,
    opened_router,
    release,
    router_for,
)
from tierwise.routing.budget import Budget
from tierwise.routing.router import Router
from tierwise.runtime.chat import Call, Message, Reasoning, Sampling
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.family import Family

_Thinks = bool | Literal["low", "medium", "high"] | None
_Choices = Annotated[tuple[str, ...], MinLen(1)] | None
_IGNORED = ("strict", "ls_structured_output_format", "stream", "streaming", "hold")


class RoutedModel(BaseModel):
    """Settings of a model over a family of tiers. Most may be given per call, too.

    Args:
        family: Folder of a family, as `tierwise build` wrote it; ``TIERWISE_FAMILY`` where it
            is not given.
        budget: What each call may take; can be given per call too (``invoke(…, budget=…)``).
        model: Name of a tier to use for every call; None to route.
        tiers: Names of the tiers that may be used; None for all.
        temperature: 0 takes the likeliest token.
        top_p, top_k, min_p: As in llama.cpp; no effect at temperature 0.
        max_tokens: Longest reply. A small model may not find an end by itself.
        stop: Texts that end the reply.
        seed: For temperatures above 0.
        logprobs: Report every token's logarithmic probability in the reply's metadata.
        top_logprobs: Also report so many likely alternatives to each token.
        reasoning: Whether the model thinks before it answers, where its chat template can be told:
            False or True, or how hard ("low", "medium", "high"); None for what it does by itself.
            Thoughts take tokens and seconds of every call; they come as reasoning blocks. Remote
            tiers are told of "low", "medium" and "high" alone.
        overflow: What happens to a conversation that is longer than the context: "error", or
            "trim" to leave out turns from its middle.
        timeout: Seconds for one call, escalations included.
        max_retries: Accepted for compatibility; a local tier fails for a reason that stays.
        api_key: Accepted for compatibility and never used: nothing leaves this machine.
        threads: For llama.cpp; None for all the cores that this process may use.
        kv_type: How keys and values are stored: "f16", or "q8_0" in about half the memory
            (`tierwise show` has what that costs). None for what each tier's record says, which
            is f16 but where a recipe said otherwise; and for q8_0 where a tier fits only so.
        adapt: While memory keeps a better tier from answering, make a cheaper variant of it in
            the background (fewer bits, then fewer layers), and use it if it is likelier to be
            right than the best tier that fits. Kept in the family's folder ``variants``.
        decision_log: SQLite file that takes note of every decision and what came of it, for
            `tierwise replay`; None for none. Prompts are hashed.
        log_text: Log calls and replies as they are, too.
        streaming: Stream inside ``invoke`` too, for callbacks that want tokens.
        hold: Stream a reply only once it is verified, all at once, so that a text that went wrong
            can still be given up for a better tier's. Else what has been streamed stands.
    """

    family: str = Field(default_factory=lambda: os.environ.get("TIERWISE_FAMILY", ""))
    budget: Budget = Field(default_factory=Budget)
    tier_name: str | None = Field(default=None, alias="model")
    tiers: tuple[str, ...] | None = None
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    top_k: int = Field(default=40, ge=0)
    min_p: float = Field(default=0.05, ge=0, le=1)
    max_tokens: int | None = Field(default=1024, ge=1)
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    seed: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    reasoning: _Thinks = None
    overflow: Literal["error", "trim"] = "error"
    request_timeout: float | None = Field(default=None, alias="timeout", gt=0)
    max_retries: int = 0
    api_key: SecretStr | None = Field(default=None, exclude=True)
    threads: int | None = Field(default=None, ge=1)
    kv_type: Literal["f16", "q8_0"] | None = None
    adapt: bool = False
    decision_log: str | None = None
    log_text: bool = False
    streaming: bool = False
    hold: bool = False

    @field_validator("family", "decision_log", mode="before")
    @classmethod
    def _folder(cls, value: Any) -> Any:
        if isinstance(value, Family):
            return str(value.folder)
        return str(value) if isinstance(value, Path) else value

    @model_validator(mode="after")
    def _text_has_a_log(self) -> Self:
        if self.log_text and self.decision_log is None:
            raise ValueError("log_text=True has no file to log to; give decision_log=FILE")
        return self

    # Router

    def model_post_init(self, context: Any, /) -> None:
        """Copies of this model, of which each may live for one call, find its router."""
        super().model_post_init(context)
        enrol(self)

    def __copy__(self) -> Self:
        copied = super().__copy__()
        enrol(copied)
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        copied = super().__deepcopy__(memo)
        enrol(copied)
        return copied

    @property
    def router(self) -> Router:
        """The router behind this model; loads the family (but no tier) on first use.

        Models over the same family share it, with the tiers that are loaded, if they agree on
        ``tiers``, ``threads``, ``kv_type``, ``adapt``, ``decision_log`` and the budget's memory.
        """
        if not self.family:
            raise ConfigError(
                f"which family? Give {type(self).__name__}(family=FOLDER) or set TIERWISE_FAMILY."
            )
        return router_for(self)

    async def _router_ready(self) -> Router:
        """`router` for coroutines: on first use it reads files, which a thread may do."""
        router = opened_router(self)
        return await asyncio.to_thread(self._open) if router is None else router

    def _open(self) -> Router:
        router = self.router
        router.pool.tokenize("")  # reads the vocabulary, which routing needs at once
        return router

    @property
    def router_settings(self) -> RouterSettings:
        """What models must agree on to share a router."""
        return RouterSettings(
            self.family,
            self.budget.memory,
            self.threads,
            self.tiers,
            self.kv_type,
            self.decision_log,
            self.log_text,
            self.adapt,
        )

    def close(self) -> None:
        """Unloads all tiers, once no other model uses them. The next call loads them again."""
        release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Calls

    def _call(
        self, messages: tuple[Message, ...], stop: list[str] | None, options: dict[str, Any]
    ) -> tuple[Call, Budget, str | None]:
        """One call with its budget and the tier it is pinned to; takes out of ``options``."""
        budget = to_budget(options.pop("budget", None) or self.budget)
        pin = options.pop("model", None) or self.tier_name
        top = self._option(options, "top_logprobs") or 0
        refused = options.get("logprobs") is False
        told = self._option(options, "logprobs") or (top and not refused)
        sampling = Sampling(
            temperature=self._option(options, "temperature"),
            top_k=self._option(options, "top_k"),
            top_p=self._option(options, "top_p"),
            min_p=self._option(options, "min_p"),
            seed=self._option(options, "seed"),
            logprobs=top if told else None,
        )
        call = Call(
            messages=messages,
            response_schema=to_schema(options.pop("response_format", None)),
            regex=checked("regex", options.pop("regex", None), str | None),
            choices=checked("choices", options.pop("choices", None), _Choices) or (),
            sampling=sampling,
            max_tokens=self._option(options, "max_tokens"),
            stop=(stop,) if isinstance(stop, str) else tuple(stop or self.stop or ()),
            timeout_s=self._option(options, "timeout", "request_timeout"),
            overflow=self._option(options, "overflow"),
            reasoning=_in_words(self._option(options, "reasoning")),
        )
        for name in _IGNORED:
            options.pop(name, None)
        if options:
            raise ConfigError(
                f"unknown option {', '.join(map(repr, options))}. Known per call: tools, "
                "tool_choice, parallel_tool_calls, response_format, regex, choices, budget, "
                "model, temperature, top_k, top_p, min_p, seed, logprobs, top_logprobs, "
                "max_tokens, timeout, overflow, reasoning, hold, stop."
            )
        return call, budget, pin

    def _option(self, options: dict[str, Any], name: str, field: str = "") -> Any:
        """What the call says, held to the rules of the model's own field, else that field."""
        value = options.pop(name, None)
        if value is None:
            return getattr(self, field or name)
        return checked(name, value, RoutedModel.model_fields[field or name].rebuild_annotation())

    # LangChain's side

    @property
    def _llm_type(self) -> str:
        return "tierwise"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {
            "family": self.family,
            "model": self.tier_name,
            "tiers": self.tiers,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "max_tokens": self.max_tokens,
            "stop": self.stop,
            "seed": self.seed,
            "logprobs": self.logprobs,
            "top_logprobs": self.top_logprobs,
            "overflow": self.overflow,
            "reasoning": self.reasoning,
            "budget": self.budget.model_dump(exclude_none=True),
        }

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of a text in the family's own vocabulary."""
        return self.router.pool.tokenize(text)


def _in_words(reasoning: Any) -> Reasoning | None:
    """Of an option that was checked already."""
    words: Reasoning | None = reasoning
    if isinstance(reasoning, bool):
        words = "on" if reasoning else "off"
    return words


def checked(name: str, value: Any, kind: Any) -> Any:
    """The value of an option, as pydantic reads it for a field of that kind.

    Raises:
        ConfigError: It is not of that kind.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"{name} cannot be {value!r}: {error.errors()[0]['msg']}") from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
