"""One reply in the making: which tokens come next, and what text they are.

A `Generation` knows nothing of contexts and batches: it says which tokens the model has yet to
read (`unread`), and takes the logits that came of it (`advance`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from tierwise.runtime.chat import FinishReason, Sampling, TokenLogprob, Usage
from tierwise.runtime.context import Context
from tierwise.runtime.errors import ContextOverflowError, EngineError
from tierwise.runtime.grammar import Constraint, GrammarCompiler
from tierwise.runtime.llama import Model
from tierwise.runtime.loops import LoopWatch
from tierwise.runtime.sampling import Sampler, logprob, margin
from tierwise.runtime.text_stream import TextStream


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What the engine needs to know, all of it in tokens.

    Args:
        prompt: At least one token.
        max_tokens: Longest reply; None for what the context has room for.
        hint: What another model of the same vocabulary replied: where this one would too, its
            tokens are read many at once (see `Drafter`). Never changes the reply.
        deadline: Value of ``time.monotonic()`` after which the request fails.
        until: Value of ``time.monotonic()`` from which on the reply ends as it is, with at least
            one token.
    """

    prompt: tuple[int, ...]
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    constraint: Constraint | None = None
    deadline: float | None = None
    hint: tuple[int, ...] = ()
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the reply's text."""

    text: str


@dataclass(frozen=True, slots=True)
class Generated:
    """A finished reply; ``tokens`` without the end token. The rest is as in `Reply`."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    margins: tuple[float, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    tokens: tuple[int, ...] = ()

    @property
    def confidence(self) -> float:
        """As in `Reply`."""
        return min(self.margins, default=1.0)


class Generation:
    """The state of one request between two batches.

    Args:
        n_ctx: Tokens that prompt and reply may have together.
        emit: Receives the reply's pieces as they become safe to show.

    Raises:
        ContextOverflowError: The prompt leaves no room for a reply.
    """

    def __init__(
        self,
        request: GenerationRequest,
        model: Model,
        grammars: GrammarCompiler,
        *,
        n_ctx: int,
        emit: Callable[[Delta], None],
    ) -> None:
        room = n_ctx - len(request.prompt)
        if room < 1:
            raise ContextOverflowError(
                f"the prompt has {len(request.prompt)} tokens and the context "
                f"{n_ctx}: there is no room for a reply. Shorten the conversation or ask "
                "for a larger context (context_tokens)."
            )
        self.tokens = list(request.prompt)
        """Prompt and reply so far."""
        self.read = 0
        """How many of them the model has read: their keys and values are in the context."""
        self.draft: list[int] = []
        """Tokens that may come next, to be read along; `advance` finds out."""
        self.hinted = False
        """Whether the draft is the hint's."""
        self.hint = list(takewhile(range(model.vocab_size).__contains__, request.hint))
        self.reused = 0
        """Tokens of the reply that were chosen as the hint had them, without steps of their own."""
        self.finish_reason: FinishReason | None = None
        self._request = request
        self._model = model
        self._emit = emit
        self._limit = room if request.max_tokens is None else min(room, request.max_tokens)
        self._stream = TextStream(request.stop)
        self._text = ""
        self._sent = 0
        self._count = self._forced = 0
        self._margins: list[float] = []
        self._logprobs: list[TokenLogprob] = []
        self._loops: LoopWatch | None = None
        self._matcher: Any = None
        if request.constraint is not None:
            self._loops = LoopWatch()
            self._matcher = grammars.matcher(request.constraint.lark)
        # What the grammar forces before the first choice is read with the prompt.
        self._force()
        self._sampler = Sampler(request.sampling)  # last: it is native, and freed by `close`

    @property
    def unread(self) -> list[int]:
        """Tokens, and then the draft, that the model has yet to read."""
        return self.tokens[self.read :] + self.draft

    def advance(self, context: Context, row: int) -> None:
        """Takes the next token (and as many of the draft as were right).

        Args:
            row: Of the logits after the last of `tokens`; those after each token of the draft
                follow. Afterwards `read` says how much of what was read is of use.
        """
        draft, self.draft = self.draft, []
        self.read = len(self.tokens)
        if not draft:
            self._choose(context, row)
            return
        while self.finish_reason is None:
            self._choose(context, row)
            new = self.tokens[self.read :]
            right = 0
            while right < min(len(new), len(draft)) and new[right] == draft[right]:
                right += 1
            self.read += right
            self.reused += self.hinted and right > 0  # the first is chosen, others are forced
            if right < len(new):
                break
            # The model has read all of these tokens already: go on behind them.
            draft = draft[right:]
            row += right

    def check_draft(self, tokens: Sequence[int]) -> list[int]:
        """As much of a draft as grammar and limit allow; an end token needs no reading."""
        tokens = list(tokens[: max(0, self._limit - self._count - 1)])
        if self._matcher is not None:
            tokens = tokens[: self._matcher.validate_tokens(tokens)]
        end = next((at for at, token in enumerate(tokens) if self._model.is_end(token)), None)
        return tokens[:end]

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken always, so that drafts can be checked."""
        return self._request.sampling.temperature == 0

    def result(self, usage: Usage) -> Generated:
        """The finished reply; ``usage`` brings what the engine has counted and timed."""
        assert self.finish_reason is not None
        return Generated(
            text=self._text,
            finish_reason=self.finish_reason,
            usage=usage,
            margins=tuple(self._margins),
            logprobs=tuple(self._logprobs),
            tokens=tuple(self.tokens[len(self._request.prompt) :]),
        )

    @property
    def counts(self) -> tuple[int, int]:
        """Tokens of the reply, and how many of them the grammar forced."""
        return self._count, self._forced

    def close(self) -> None:
        """Frees the sampler."""
        self._sampler.close()

    def _choose(self, context: Context, row: int) -> None:
        """Draws one token, and adds it with what the grammar forces after it."""
        if self._ended():
            return
        logits = context.logits(row)
        alternatives = self._request.sampling.logprobs
        raw = None if alternatives is None else logits.copy()
        token = self._sampler.draw(context, row, logits, self._matcher)
        self._margins.append(margin(logits, token if self.greedy else None))
        if self._model.is_end(token):
            self._finish("stop")
            return
        if raw is not None and alternatives is not None:
            self._logprobs.append(logprob(raw, token, alternatives, self._model.piece))
        if self._matcher is not None:
            self._matcher.consume_token(token)
        self._take(token)
        if not self._ended():
            self._force()
            self._ended()
        self._send()

    def _ended(self) -> bool:
        """Whether the reply is over, for any reason but a drawn end token."""
        if self.finish_reason is None:
            if self._stream.stopped or self._complete():
                self._finish("stop")
            elif self._loops is not None and self._loops.found:
                self._finish("loop")
            elif self._count >= self._limit or self._is_late():
                self._finish("length")
        return self.finish_reason is not None

    def _is_late(self) -> bool:
        until = self._request.until
        return until is not None and self._count > 0 and time.monotonic() >= until

    def _force(self) -> None:
        """Adds the tokens that the grammar leaves no choice about, up to the reply's limit."""
        if self._matcher is None:
            return
        tokens = list(self._matcher.compute_ff_tokens())[: self._limit - self._count]
        # The model's tokenizer cut the forced text; should a token not fit, the mask decides there.
        for token in tokens[: self._matcher.try_consume_tokens(tokens)]:
            self._forced += 1
            self._take(token)

    def _complete(self) -> bool:
        """Whether the grammar allows no more text."""
        if self._matcher is None or not self._matcher.is_stopped():
            return False
        if self._matcher.is_error():
            raise EngineError(f"llguidance gave up on the reply: {self._matcher.get_error()}")
        return True

    def _take(self, token: int) -> None:
        self.tokens.append(token)
        self._count += 1
        if self._loops is not None:
            self._loops.push(token)
        self._text += self._stream.push(self._model.piece(token))

    def _send(self) -> None:
        if len(self._text) > self._sent:
            self._emit(Delta(self._text[self._sent :]))
            self._sent = len(self._text)

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self._text += self._stream.push(b"", final=True)
        self._send()
