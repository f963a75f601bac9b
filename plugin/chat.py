"""``ChatTierwise``: a LangChain chat model that answers each call with the cheapest tier that
will do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import BaseModel, ConfigDict

from tierwise.plugin.langchain_errors import told_to_langchain
from tierwise.plugin.messages import to_messages, to_tool_choice, to_tools
from tierwise.plugin.replies import ChunkMaker, to_ai_message
from tierwise.plugin.routed_model import RoutedModel
from tierwise.plugin.structured import StructuredMethod, structured
from tierwise.routing.answer import Answer
from tierwise.routing.budget import Budget
from tierwise.routing.cascade import aanswer, answer, astream_answer, stream_answer
from tierwise.routing.decision import Decision
from tierwise.runtime.chat import Call
from tierwise.runtime.errors import ConfigError, FamilyError
from tierwise.runtime.family import Family

ToolForm = dict[str, Any] | type | Callable[..., Any] | BaseTool


class ChatTierwise(RoutedModel, BaseChatModel):
    """Chat model over a family of tiers.

    Loads nothing until the first call. Every reply says in ``response_metadata`` which tier
    answered and why, and what was predicted and what it took.

    Example:
        >>> from tierwise import Budget, ChatTierwise
        >>> model = ChatTierwise(family="./my-family", budget=Budget(seconds_per_call=2))
        >>> model.invoke("What is the capital of Norway?").response_metadata["tier"]

    Settings are those of `RoutedModel`. A call may also bring ``tools``, ``tool_choice``,
    ``parallel_tool_calls``, and one of ``response_format`` (a JSON schema or pydantic class),
    ``regex`` (the whole text matches it) and ``choices`` (the only texts that may be replied).

    Raises:
        FamilyError: The folder holds no usable family.
        NoFeasibleTierError, ContextOverflowError, ToolSchemaError, CallTimeoutError: The call
            cannot be answered; the message says what to do.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    def explain(self, messages: LanguageModelInput, **kwargs: Any) -> Decision:
        """Prints how this call would be routed, tier by tier, and returns the decision."""
        prompt = self._convert_input(messages).to_messages()
        call, budget, pin = self._chat_call(prompt, None, kwargs)
        decision = self.router.decide(call, budget=budget, pin=pin)
        print(decision.table())
        return decision

    def feedback(self, reply: BaseMessage | str, ok: bool) -> None:
        """Says whether a reply was right: later calls are routed accordingly, and the decision
        log keeps it.

        Args:
            reply: A message that this model gave, or the ``id`` in its ``response_metadata``.
            ok: Whether it was right.

        Raises:
            ConfigError: It is no reply of this model, or of so long ago that it is not known.
        """
        answer_id = reply if isinstance(reply, str) else reply.response_metadata.get("id")
        if not answer_id:
            raise ConfigError("feedback is on replies of this model; that message is none of them")
        self.router.feedback(answer_id, ok)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "tierwise"
        params["ls_model_name"] = kwargs.get("model") or self.tier_name or Path(self.family).name
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
        )

    def _chat_call(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, options: dict[str, Any]
    ) -> tuple[Call, Budget, str | None]:
        """One call with its budget and the tier it is pinned to."""
        rest = dict(options)
        tools = to_tools(rest.pop("tools", None) or ())
        choice = to_tool_choice(rest.pop("tool_choice", None), [tool.name for tool in tools])
        parallel = bool(rest.pop("parallel_tool_calls", None))
        call, budget, pin = self._call(to_messages(messages), stop, rest)
        call = replace(call, tools=tools, tool_choice=choice, parallel_tool_calls=parallel)
        return call, budget, pin

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call, budget, pin = self._chat_call(messages, stop, kwargs)
        with told_to_langchain():
            return _result(answer(self.router, call, budget=budget, pin=pin))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call, budget, pin = self._chat_call(messages, stop, kwargs)
        router = await self._router_ready()
        with told_to_langchain():
            return _result(await aanswer(router, call, budget=budget, pin=pin))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        hold = self._option(kwargs, "hold")
        call, budget, pin = self._chat_call(messages, stop, kwargs)
        maker = ChunkMaker()
        events = stream_answer(self.router, call, budget=budget, pin=pin, hold=hold)
        with told_to_langchain(), closing(events):
            for event in events:
                chunk = maker.chunk(event)
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        hold = self._option(kwargs, "hold")
        call, budget, pin = self._chat_call(messages, stop, kwargs)
        router = await self._router_ready()
        maker = ChunkMaker()
        events = astream_answer(router, call, budget=budget, pin=pin, hold=hold)
        with told_to_langchain():
            async with aclosing(events):
                async for event in events:
                    chunk = maker.chunk(event)
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[ToolForm] | None = None
    ) -> int:
        """Tokens of the whole prompt, as the chat template writes it, tools included."""
        call = Call(to_messages(messages), tools=to_tools(tools or ()))
        return len(self.router.pool.prompt(call))

    def bind_tools(
        self,
        tools: Sequence[ToolForm],
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
        return structured(self, schema, method, include_raw=include_raw)


def _result(done: Answer) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=to_ai_message(done))])
