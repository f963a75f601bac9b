"""``ChatTierwise``: a LangChain chat model that answers each call with the cheapest tier that
will do."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, Self

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.output_parsers.openai_tools import (
    JsonOutputKeyToolsParser,
    PydanticToolsParser,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, field_validator

from tierwise.plugin.messages import (
    WholeJsonParser,
    WholePydanticParser,
    checked,
    to_ai_message,
    to_budget,
    to_messages,
    to_schema,
    to_tool_choice,
    to_tools,
)
from tierwise.routing.budget import Budget
from tierwise.routing.cascade import Answer, answer, stream_answer
from tierwise.routing.decision import Decision
from tierwise.routing.router import Router
from tierwise.runtime.chat import Call, Sampling
from tierwise.runtime.errors import ConfigError, FamilyError
from tierwise.runtime.family import Family
from tierwise.runtime.pool import Pool

StructuredMethod = Literal["json_schema", "function_calling", "json_mode"]


class ChatTierwise(BaseChatModel):
    """Chat model over a family of tiers.

    Loads nothing until the first call. Every reply says in ``response_metadata`` which tier
    answered and why, and what was predicted and what it took.

    Example:
        >>> from tierwise import Budget, ChatTierwise
        >>> model = ChatTierwise(family="./my-family", budget=Budget(seconds_per_call=2))
        >>> model.invoke("What is the capital of Norway?").response_metadata["tier"]

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
        timeout: Seconds for one call, escalations included.
        max_retries: Accepted for compatibility; a local tier fails for a reason that stays.
        api_key: Accepted for compatibility and never used: nothing leaves this machine.
        threads: For llama.cpp; None for all the cores that this process may use.
        streaming: Stream inside ``invoke`` too, for callbacks that want tokens.

    Raises:
        FamilyError: The folder holds no usable family.
        NoFeasibleTierError, ContextOverflowError, ToolSchemaError, CallTimeoutError: The call
            cannot be answered; the message says what to do.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

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
    request_timeout: float | None = Field(default=None, alias="timeout", gt=0)
    max_retries: int = 0
    api_key: SecretStr | None = Field(default=None, exclude=True)
    threads: int | None = Field(default=None, ge=1)
    streaming: bool = False

    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _router: Router | None = PrivateAttr(default=None)

    @field_validator("family", mode="before")
    @classmethod
    def _folder(cls, value: Any) -> Any:
        if isinstance(value, Family):
            return str(value.folder)
        return str(value) if isinstance(value, Path) else value

    @property
    def router(self) -> Router:
        """The router behind this model; loads the family (but no tier) on first use."""
        with self._lock:
            if self._router is None:
                if not self.family:
                    raise ConfigError(
                        "which family? Give ChatTierwise(family=FOLDER) or set TIERWISE_FAMILY."
                    )
                family = Family.load(self.family)
                pool = Pool(family, memory_bytes=self.budget.memory, threads=self.threads)
                self._router = Router(family, pool, self.budget, tiers=self.tiers)
            return self._router

    def close(self) -> None:
        """Unloads all tiers. The next call loads what it needs again."""
        with self._lock:
            if self._router is not None:
                self._router.pool.close()
                self._router = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def explain(self, messages: LanguageModelInput, **kwargs: Any) -> Decision:
        """Prints how this call would be routed, tier by tier, and returns the decision."""
        prompt = self._convert_input(messages).to_messages()
        call, budget, pin = self._call(prompt, None, kwargs)
        decision = self.router.decide(call, budget=budget, pin=pin)
        print(decision.table())
        return decision

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
            "budget": self.budget.model_dump(exclude_none=True),
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "tierwise"
        name = kwargs.get("model") or self.tier_name or Path(self.family).name
        params["ls_model_name"] = name
        return params

    def _resolve_model_profile(self) -> ModelProfile | None:
        try:
            family = Family.load(self.family, verify=False)
        except FamilyError:
            return None  # the first call says what is wrong
        enabled = [t for t in family.tiers if self.tiers is None or t.name in self.tiers]
        return ModelProfile(
            max_input_tokens=min(tier.context_tokens for tier in enabled or family.tiers),
            text_inputs=True,
            text_outputs=True,
            image_inputs=False,
            audio_inputs=False,
            video_inputs=False,
            tool_calling=True,
            tool_choice=True,
            structured_output=True,
            reasoning_output=False,
        )

    def _call(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, options: dict[str, Any]
    ) -> tuple[Call, Budget, str | None]:
        """One call with its budget and the tier it is pinned to."""
        given = dict(options)
        tools = to_tools(given.pop("tools", None) or ())
        choice = to_tool_choice(given.pop("tool_choice", None), [tool.name for tool in tools])
        parallel = given.pop("parallel_tool_calls", None)
        schema = to_schema(given.pop("response_format", None))
        budget = to_budget(given.pop("budget", None) or self.budget)
        pin = given.pop("model", None) or self.tier_name
        sampling = Sampling(
            temperature=self._option(given, "temperature"),
            top_k=self._option(given, "top_k"),
            top_p=self._option(given, "top_p"),
            min_p=self._option(given, "min_p"),
            seed=self._option(given, "seed"),
        )
        max_tokens = self._option(given, "max_tokens")
        timeout = self._option(given, "timeout", "request_timeout")
        for ignored in ("strict", "ls_structured_output_format", "stream", "streaming"):
            given.pop(ignored, None)
        if given:
            raise ConfigError(
                f"unknown option {', '.join(map(repr, given))}. Known per call: tools, "
                "tool_choice, parallel_tool_calls, response_format, budget, model, temperature, "
                "top_k, top_p, min_p, seed, max_tokens, timeout, stop."
            )
        call = Call(
            messages=to_messages(messages),
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=bool(parallel),
            response_schema=schema,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=(stop,) if isinstance(stop, str) else tuple(stop or self.stop or ()),
            timeout_s=timeout,
        )
        return call, budget, pin

    def _option(self, given: dict[str, Any], name: str, field: str = "") -> Any:
        """What the call says, held to the rules of the model's own field, else that field."""
        value = given.pop(name, None)
        if value is None:
            return getattr(self, field or name)
        rule = type(self).model_fields[field or name]
        return checked(name, value, rule.rebuild_annotation())

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call, budget, pin = self._call(messages, stop, kwargs)
        result = answer(self.router, call, budget=budget, pin=pin)
        message = to_ai_message(result)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call, budget, pin = self._call(messages, stop, kwargs)
        stream = stream_answer(self.router, call, budget=budget, pin=pin)
        shown = False
        while True:
            try:
                text = next(stream)
            except StopIteration as done:
                result: Answer = done.value
                break
            if text:
                shown = True
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=text))
                if run_manager is not None:
                    run_manager.on_llm_new_token(text, chunk=chunk)
                yield chunk
        whole = to_ai_message(result)
        last = AIMessageChunk(
            content="" if shown else whole.content,
            tool_call_chunks=[
                tool_call_chunk(
                    name=c["name"],
                    args=json.dumps(c["args"], ensure_ascii=False),
                    id=c["id"],
                    index=index,
                )
                for index, c in enumerate(whole.tool_calls)
            ],
            usage_metadata=whole.usage_metadata,
            response_metadata=whole.response_metadata,
            chunk_position="last",
        )
        chunk = ChatGenerationChunk(message=last)
        if run_manager is not None:
            run_manager.on_llm_new_token(str(last.content), chunk=chunk)
        yield chunk

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of a text in the family's own vocabulary."""
        return self.router.pool.tokenize(text)

    def get_num_tokens_from_messages(
        self,
        messages: list[BaseMessage],
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool] | None = None,
    ) -> int:
        """Tokens of the whole prompt, as the chat template writes it, tools included."""
        call = Call(to_messages(messages), tools=to_tools(tools or ()))
        return len(self.router.pool.prompt(call))

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Lets the model call these tools.

        Args:
            tools: Functions, pydantic classes, LangChain tools or JSON schemas.
            tool_choice: "auto" (text or calls), "any" or "required", "none", or a tool's name.
            parallel_tool_calls: Whether one reply may hold several calls.

        Raises:
            ConfigError: ``tool_choice`` names no tool of these.
        """
        functions = [tool.to_openai() for tool in to_tools(tools)]
        names = [function["function"]["name"] for function in functions]
        if tool_choice is not None:
            kwargs["tool_choice"] = to_tool_choice(tool_choice, names)
        if parallel_tool_calls is not None:
            kwargs["parallel_tool_calls"] = parallel_tool_calls
        return self.bind(tools=functions, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: StructuredMethod = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Replies that match a schema, valid by construction.

        Args:
            schema: A pydantic class, a TypedDict, or a JSON schema.
            include_raw: Return raw message, parsed object and parsing error.
            method: "json_schema" (a grammar over the reply), "function_calling" (a forced tool
                call), or "json_mode" (any JSON object; the schema only parses).
            strict: Accepted for compatibility; grammars are always strict.

        Raises:
            ConfigError: The method is unknown.
        """
        del strict
        if kwargs:
            raise ConfigError(f"with_structured_output does not know {', '.join(kwargs)}")
        model = schema if isinstance(schema, type) and issubclass(schema, BaseModel) else None
        parser: Runnable[Any, Any]
        llm: Runnable[LanguageModelInput, AIMessage]
        note = {"kwargs": {"method": method}, "schema": schema}
        if method == "function_calling":
            tool = convert_to_openai_tool(schema)
            name = tool["function"]["name"]
            llm = self.bind_tools([schema], tool_choice=name).bind(ls_structured_output_format=note)
            parser = (
                PydanticToolsParser(tools=[model], first_tool_only=True)
                if model
                else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
            )
        elif method in ("json_schema", "json_mode"):
            shape = {"type": "json_object"} if method == "json_mode" else schema
            llm = self.bind(response_format=shape, ls_structured_output_format=note)
            parser = WholePydanticParser(pydantic_object=model) if model else WholeJsonParser()
        else:
            raise ConfigError(
                f"unknown method {method!r}; use json_schema, function_calling or json_mode"
            )
        if not include_raw:
            return llm | parser
        attempt = RunnablePassthrough.assign(
            parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
        )
        failure = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=llm) | attempt.with_fallbacks(
            [failure], exception_key="parsing_error"
        )
