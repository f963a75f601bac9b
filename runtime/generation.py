"""One request on one context: prefill what is new, then token by token to the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tierwise.runtime.chat import FinishReason, Sampling, Usage
from tierwise.runtime.context import Context
from tierwise.runtime.errors import ContextOverflowError, EngineError
from tierwise.runtime.grammar import Constraint, GrammarCompiler
from tierwise.runtime.llama import Model
from tierwise.runtime.sampling import Sampler, margin
from tierwise.runtime.text_stream import TextStream


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What the engine needs to know, all of it in tokens.

    Args:
        prompt: At least one token.
        max_tokens: Longest reply; None for what the context has room for.
        deadline: Value of ``time.monotonic()`` after which the request fails.
    """

    prompt: tuple[int, ...]
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    constraint: Constraint | None = None
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the reply. ``constrained`` says that a grammar wrote or checked it."""

    text: str
    constrained: bool


@dataclass(frozen=True, slots=True)
class Generated:
    """A finished reply."""

    text: str
    constrained: bool
    finish_reason: FinishReason
    usage: Usage
    confidence: float


@dataclass(slots=True)
class PrefixCache:
    """The tokens whose keys and values the context holds at positions 0, 1, 2, …"""

    tokens: list[int] = field(default_factory=list)

    def shared(self, prompt: Sequence[int]) -> int:
        """How many tokens at the start of ``prompt`` need no prefill.

        At most all but the last: its logits are needed, and only a decode gives them.
        """
        count = 0
        # Callers of `Engine.cached_prefix` read this while the worker may shorten the list.
        for held, wanted in zip(self.tokens, prompt[:-1], strict=False):
            if held != wanted:
                break
            count += 1
        return count


class Generation:
    """Runs one request. Call `run` once.

    Args:
        check: Called between batches and tokens; raises to stop (cancelled, past the deadline).
        emit: Receives the reply's pieces as they become safe to show.
    """

    def __init__(
        self,
        request: GenerationRequest,
        model: Model,
        context: Context,
        cache: PrefixCache,
        grammars: GrammarCompiler,
        *,
        check: Callable[[], None],
        emit: Callable[[Delta], None],
    ) -> None:
        room = context.n_ctx - len(request.prompt)
        if room < 1:
            raise ContextOverflowError(
                f"the prompt has {len(request.prompt)} tokens and the context "
                f"{context.n_ctx}: there is no room for a reply. Shorten the conversation or ask "
                "for a larger context (context_tokens)."
            )
        self._request = request
        self._model = model
        self._context = context
        self._cache = cache
        self._grammars = grammars
        self._check = check
        self._emit = emit
        self._limit = room if request.max_tokens is None else min(room, request.max_tokens)
        self._matcher: Any = None
        self._start_reply()

    def _start_reply(self) -> None:
        self._stream = TextStream(self._request.stop)
        self._text = ""
        self._unsent = ""
        self._count = self._forced = 0
        self._confidence = 1.0

    def run(self) -> Generated:
        """Generates to the end of the reply."""
        request = self._request
        constraint = request.constraint
        waiting = constraint is not None and constraint.trigger is not None
        if constraint is not None and not waiting:
            self._matcher = self._grammars.matcher(constraint.lark)
        cached = self._keep_prefix(len(request.prompt))
        began = time.perf_counter()
        sampler = Sampler(request.sampling)
        try:
            self._decode(request.prompt[cached:])
            prefilled = time.perf_counter()
            finish = self._reply(sampler, waiting)
        finally:
            sampler.close()
        ended = time.perf_counter()
        return Generated(
            text=self._text,
            constrained=self._matcher is not None,
            finish_reason=finish,
            usage=Usage(
                prompt_tokens=len(request.prompt),
                cached_tokens=cached,
                completion_tokens=self._count,
                forced_tokens=self._forced,
                prefill_s=prefilled - began,
                decode_s=ended - prefilled,
            ),
            confidence=self._confidence,
        )

    def _reply(self, sampler: Sampler, waiting: bool) -> FinishReason:
        """The loop: forced tokens for nothing, then one drawn token a step."""
        # What the grammar forces before the first choice needs no logits of its own.
        pending = self._force()
        while True:
            if self._stream.stopped or self._complete():
                return self._finish("stop")
            if self._count >= self._limit:
                return self._finish("length")
            if pending:
                self._decode(pending)
            token = sampler.draw(self._context, self._matcher)
            self._confidence = min(self._confidence, margin(self._context.logits()))
            if self._model.is_end(token):
                return self._finish("stop")
            if self._matcher is not None:
                self._matcher.consume_token(token)
            self._count += 1
            if self._take(token, send=not waiting):
                return self._finish("stop")
            if waiting:
                state = self._trigger_state()
                if state == "fired":
                    self._restart_constrained()
                    waiting, pending = False, self._force()
                    continue
                waiting = state == "possible"
                if not waiting:
                    self._send("")
            pending = [token, *self._force()]

    def _force(self) -> list[int]:
        """Tokens that the grammar leaves no choice about; they join the next decode.

        Counts them as part of the reply, and stops at the reply's limit.
        """
        if self._matcher is None:
            return []
        tokens = list(self._matcher.compute_ff_tokens())[: self._limit - self._count]
        # The model's tokenizer cut the forced text; should a token not fit, the mask decides there.
        tokens = tokens[: self._matcher.try_consume_tokens(tokens)]
        self._count += len(tokens)
        self._forced += len(tokens)
        for token in tokens:
            self._take(token, send=True)
        return tokens

    def _complete(self) -> bool:
        """Whether the grammar allows no more text."""
        if self._matcher is None or not self._matcher.is_stopped():
            return False
        if self._matcher.is_error():
            raise EngineError(f"llguidance gave up on the reply: {self._matcher.get_error()}")
        return True

    def _take(self, token: int, *, send: bool) -> bool:
        """Adds a token's text to the reply; True when a stop text ended it."""
        text = self._stream.push(self._model.piece(token))
        self._text += text
        self._unsent += text
        if send:
            self._send("")
        return self._stream.stopped

    def _send(self, text: str) -> None:
        self._unsent += text
        if self._unsent:
            self._emit(Delta(self._unsent, self._matcher is not None))
            self._unsent = ""

    def _finish(self, reason: FinishReason) -> FinishReason:
        rest = self._stream.push(b"", final=True)
        self._text += rest
        self._send(rest)
        return reason

    def _trigger_state(self) -> str:
        """Whether the free reply has started as a tool call: fired, possible, or impossible."""
        constraint = self._request.constraint
        assert constraint is not None and constraint.trigger is not None
        start, trigger = self._text.lstrip(), constraint.trigger.strip()
        if start.startswith(trigger):
            return "fired"
        return "possible" if trigger.startswith(start) else "impossible"

    def _restart_constrained(self) -> None:
        """Forgets the free start of the reply and writes it again under the grammar."""
        constraint = self._request.constraint
        assert constraint is not None
        self._matcher = self._grammars.matcher(constraint.lark)
        self._start_reply()
        prompt = self._request.prompt
        self._decode(prompt[self._keep_prefix(len(prompt)) :])

    def _keep_prefix(self, length: int) -> int:
        """Cuts the context back to what it shares with the prompt."""
        shared = self._cache.shared(self._request.prompt[:length])
        if not self._context.truncate(shared):
            shared = 0
        del self._cache.tokens[shared:]
        return shared

    def _decode(self, tokens: Sequence[int]) -> None:
        position = len(self._cache.tokens)
        room = self._context.n_ctx - position
        try:
            self._context.decode(tokens[:room], position, between=self._check)
        except BaseException:
            # How far it came is not known: trust only what was there before.
            if not self._context.truncate(position):
                self._cache.tokens.clear()
            raise
        self._cache.tokens.extend(tokens[:room])
