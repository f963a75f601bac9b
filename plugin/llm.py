"""``TierwiseLLM``: text in, text out, for completion chains; routed as `ChatTierwise` is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from contextvars import copy_context
from pathlib import Path
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from pydantic import ConfigDict

from tierwise.plugin.langchain_errors import told_to_langchain
from tierwise.plugin.replies import to_metadata, to_usage
from tierwise.plugin.routed_model import RoutedModel
from tierwise.routing.answer import Answer
from tierwise.routing.budget import Budget
from tierwise.routing.cascade import aanswer, answer, astream_answer, stream_answer
from tierwise.runtime.chat import Call, Message
from tierwise.runtime.reply_parser import Piece

_MOST_THREADS = 32


class TierwiseLLM(RoutedModel, BaseLLM):
    """Completion model over a family of tiers.

    A prompt is put to the tiers as what a user says, through their chat template: they are
    instruct models, and left alone with bare text they would go on writing the question.
    Reasoning is no part of the text; it is in ``generation_info``, with usage and all else that
    `ChatTierwise` tells in ``response_metadata``.

    Example:
        >>> from tierwise import TierwiseLLM
        >>> TierwiseLLM(family="./my-family").invoke("Three words for rain:")

    Settings are those of `RoutedModel`. A call may also bring one of ``response_format``,
    ``regex`` and ``choices``, which hold the text to a form.

    Raises:
        FamilyError: The folder holds no usable family.
        NoFeasibleTierError, ContextOverflowError, ToolSchemaError, CallTimeoutError: The call
            cannot be answered; the message says what to do.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "tierwise"
        params["ls_model_name"] = kwargs.get("model") or self.tier_name or Path(self.family).name
        return params

    def _prompt_call(
        self, prompt: str, stop: list[str] | None, options: dict[str, Any]
    ) -> tuple[Call, Budget, str | None]:
        return self._call((Message("user", prompt),), stop, dict(options))

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        if self.streaming and len(prompts) == 1:
            chunks = list(self._stream(prompts[0], stop, run_manager, **kwargs))
            return _streamed(chunks)
        router = self.router

        def one(prompt: str) -> Answer:
            call, budget, pin = self._prompt_call(prompt, stop, kwargs)
            with told_to_langchain():
                return answer(router, call, budget=budget, pin=pin)

        if len(prompts) == 1:
            return _result([one(prompts[0])])
        with ThreadPoolExecutor(min(len(prompts), _MOST_THREADS)) as threads:  # one batch
            return _result([*threads.map(lambda prompt: copy_context().run(one, prompt), prompts)])

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        if self.streaming and len(prompts) == 1:
            stream = self._astream(prompts[0], stop, run_manager, **kwargs)
            return _streamed([chunk async for chunk in stream])
        router = await self._router_ready()

        async def one(prompt: str) -> Answer:
            call, budget, pin = self._prompt_call(prompt, stop, kwargs)
            with told_to_langchain():
                return await aanswer(router, call, budget=budget, pin=pin)

        tasks = [asyncio.create_task(one(prompt)) for prompt in prompts]
        try:
            return _result(await asyncio.gather(*tasks))
        finally:
            for task in tasks:  # where one has failed the others are of no use
                task.cancel()

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        hold = self._option(kwargs, "hold")
        call, budget, pin = self._prompt_call(prompt, stop, kwargs)
        events = stream_answer(self.router, call, budget=budget, pin=pin, hold=hold)
        with told_to_langchain(), closing(events):
            for event in events:
                chunk = _chunk(event)
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        hold = self._option(kwargs, "hold")
        call, budget, pin = self._prompt_call(prompt, stop, kwargs)
        router = await self._router_ready()
        events = astream_answer(router, call, budget=budget, pin=pin, hold=hold)
        with told_to_langchain():
            async with aclosing(events):
                async for event in events:
                    chunk = _chunk(event)
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk


def _chunk(event: Piece | Answer) -> GenerationChunk:
    if isinstance(event, Answer):
        return GenerationChunk(text="", generation_info=_info(event))
    return GenerationChunk(text="" if event.reasoning else event.text)


def _info(done: Answer) -> dict[str, Any]:
    info = {**to_metadata(done), "usage_metadata": to_usage(done.reply.usage)}
    return info | ({"reasoning": done.reply.reasoning} if done.reply.reasoning else {})


def _result(answers: Sequence[Answer]) -> LLMResult:
    return _to_result([Generation(text=a.reply.text, generation_info=_info(a)) for a in answers])


def _streamed(chunks: Sequence[GenerationChunk]) -> LLMResult:
    text = "".join(chunk.text for chunk in chunks)
    return _to_result([Generation(text=text, generation_info=chunks[-1].generation_info)])


def _to_result(generations: Sequence[Generation]) -> LLMResult:
    """With the tokens of all together, named as OpenAI does."""
    infos = [generation.generation_info or {} for generation in generations]
    spent = [info["usage_metadata"] for info in infos]
    usage = {
        "prompt_tokens": sum(one["input_tokens"] for one in spent),
        "completion_tokens": sum(one["output_tokens"] for one in spent),
        "total_tokens": sum(one["total_tokens"] for one in spent),
    }
    names = dict.fromkeys(info["model_name"] for info in infos)
    return LLMResult(
        generations=[[generation] for generation in generations],
        llm_output={"token_usage": usage, "model_name": ", ".join(names)},
    )
