"""A tier that is in memory and answers calls: template, grammar and engine joined."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

from tierwise.runtime.chat import Call, Reply, Sampling
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.context import KVType, keeps_apart
from tierwise.runtime.drafting import Drafter
from tierwise.runtime.engine import Engine
from tierwise.runtime.errors import ToolSchemaError
from tierwise.runtime.generation import Generated, GenerationRequest
from tierwise.runtime.gpu_layers import choose_gpu_layers
from tierwise.runtime.grammar import Constraint, constraint_for
from tierwise.runtime.harmony import HARMONY, HarmonyParser
from tierwise.runtime.latest import Latest
from tierwise.runtime.llama import Model
from tierwise.runtime.prefix_cache import HostCache
from tierwise.runtime.prompt_tokens import PromptTokenizer
from tierwise.runtime.reply_parser import Parser, Piece, ReplyParser
from tierwise.runtime.stream import GenerationStream

_ANY = Sampling()


class ReplyStream:
    """A reply as it comes; `reply` has the whole of it, tool calls parsed.

    Iterate with ``for`` or ``async for``. Tool calls are not given out piece by piece.
    """

    def __init__(self, stream: GenerationStream, parser: Parser) -> None:
        self._stream = stream
        self._parser = parser
        self._parsed = 0
        self._reply: Reply | None = None

    def __iter__(self) -> Iterator[Piece]:
        for delta in self._stream:
            yield from self._parse(delta.text)
        yield from self._finish(self._stream.result())

    async def __aiter__(self) -> AsyncIterator[Piece]:
        async for delta in self._stream:
            for piece in self._parse(delta.text):
                yield piece
        for piece in self._finish(self._stream.result()):
            yield piece

    def _parse(self, text: str) -> Iterable[Piece]:
        self._parsed += len(text)
        return self._parser.push(text)

    def _finish(self, done: Generated) -> list[Piece]:
        pieces = [*self._parse(done.text[self._parsed :])]  # all of it, where no piece was wanted
        parsed = self._parser.finish()
        self._reply = Reply(
            text=parsed.text,
            tool_calls=parsed.tool_calls,
            finish_reason="tool_calls" if parsed.tool_calls else done.finish_reason,
            usage=done.usage,
            margins=done.margins,
            reasoning=parsed.reasoning,
            logprobs=done.logprobs,
            tokens=done.tokens,
        )
        return [*pieces, *parsed.pieces]

    def reply(self) -> Reply:
        """Waits for the end. Raises what `GenerationStream.result` raises."""
        if self._reply is None:
            self._stream.mailbox.whole = True
            for _ in self:
                pass
        assert self._reply is not None
        return self._reply

    async def areply(self) -> Reply:
        """`reply` for coroutines."""
        if self._reply is None:
            self._stream.mailbox.whole = True
            async for _ in self:
                pass
        assert self._reply is not None
        return self._reply

    def close(self) -> None:
        """Cancels the generation, if it still runs."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LoadedTier:
    """One GGUF file, loaded.

    Args:
        path: The GGUF file.
        n_ctx: Tokens of context, of one call where they are kept apart, else of all together.
        threads: For llama.cpp.
        slots: Calls that are answered at once, where they are kept apart (`keeps_apart`).
        kv_type: How keys and values are stored.
        host: Where prefixes go for which the context has no room; nowhere by default.
        drafter: Guesses at next tokens; by default nobody does.

    Raises:
        ModelNotFoundError, DamagedModelError, UnsupportedModelError, OutOfMemoryError: The
            tier cannot be loaded.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int,
        threads: int,
        slots: int = 1,
        kv_type: KVType = "f16",
        host: HostCache | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        began = time.perf_counter()
        model = Model(path, gpu_layers=choose_gpu_layers(path, n_ctx, kv_type=kv_type))
        try:
            self.template = ChatTemplate.of(model)
            self._tokenize = PromptTokenizer(model)
            for tag in self.template.tags:
                model.show_tag(tag)
            self.engine = Engine(
                model,
                n_ctx=n_ctx,
                threads=threads,
                slots=slots if keeps_apart(model) else None,
                kv_type=kv_type,
                host=host,
                drafter=drafter,
            )
        except BaseException:
            model.close()
            raise
        self.path = path
        self._constraint = Latest(self._constraint_for)
        self.kv_type: KVType = kv_type
        self.model = model
        self.load_s = time.perf_counter() - began

    @property
    def n_ctx(self) -> int:
        """Tokens of context; see `Engine.n_ctx`."""
        return self.engine.n_ctx

    def prompt(self, call: Call) -> tuple[int, ...]:
        """The call's prompt in tokens."""
        return self._tokenize(self.template.render(call))

    def stream(
        self,
        call: Call,
        prompt: tuple[int, ...] | None = None,
        hint: tuple[int, ...] = (),
        until: float | None = None,
    ) -> ReplyStream:
        """Starts answering a call. Never waits.

        Args:
            call: The call.
            prompt: Its tokens, where the caller has them already.
            hint: Tokens of another tier's reply to it. The reply is the same without, only later.
            until: Value of ``time.monotonic()`` from which on the reply ends as it is.

        Raises:
            ToolSchemaError: A schema cannot be compiled; names the tool and the property.
            EngineBusyError: Too many calls wait already.
        """
        template = self.template
        # Writing the grammar of many tools takes longer than to see that they are the same ones.
        constraint = self._constraint(
            replace(call, messages=(), sampling=_ANY, max_tokens=None, stop=(), timeout_s=None)
        )
        request = GenerationRequest(
            prompt=self.prompt(call) if prompt is None else prompt,
            max_tokens=call.max_tokens,
            sampling=call.sampling,
            # A stop text is for words: in a call that must come it could only do harm.
            stop=() if call.must_call else call.stop,
            constraint=constraint,
            deadline=None if call.timeout_s is None else time.monotonic() + call.timeout_s,
            hint=hint,
            until=until,
        )
        try:
            stream = self.engine.submit(request)
        except ToolSchemaError:
            self.engine.grammars.check(call)
            raise
        if template.tool_format is HARMONY:
            return ReplyStream(stream, HarmonyParser(call))
        thinking = template.thinking(call.reasoning)
        return ReplyStream(stream, ReplyParser(call, template.tool_format, thinking))

    def _constraint_for(self, call: Call) -> Constraint | None:
        template = self.template
        return constraint_for(call, template.tool_format, template.thinking(call.reasoning))

    def reply(self, call: Call) -> Reply:
        """Answers a call and waits for the whole reply."""
        return self.stream(call).reply()

    def close(self) -> None:
        """Unloads the tier. Calls that run or wait get EngineClosedError."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
