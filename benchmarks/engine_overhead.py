"""What our own Python costs, per generated token and per call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llama_cpp
from common import spread
from engine_setup import Bench, Figures
from engine_workloads import long_call, tool_requests

from tierwise.runtime.chat import Reply, Usage
from tierwise.runtime.loaded_tier import LoadedTier, ReplyStream


def overhead(bench: Bench) -> Figures:
    """Milliseconds of ours per generated token, and per call outside the engine.

    Per token: seconds of decoding less those inside ``llama_decode``, over a plain reply of 256
    tokens. Per call: ``invoke`` less the engine's queue, prefill and decode seconds, forced
    calls over ten tools whose prompt is cached.
    """
    per_token = []
    limit = bench.few(256, 32)
    with LoadedTier(bench.path, n_ctx=2048, threads=bench.threads) as tier:
        tier.reply(long_call(-1, 8))
        for run in range(bench.runs):
            with _inside_llama() as spent:
                usage = tier.reply(long_call(run, limit)).usage
            inside = sum(spent[1:])  # the first is the prefill
            per_token.append((usage.decode_s - inside) / usage.completion_tokens * 1e3)
    per_call = []
    for run in range(bench.runs):
        tasks = tool_requests(run, bench.few(40, 4))
        bench.ours.reply(tasks[0].call)
        outside = []
        for task in tasks[1:]:
            with _engine_usage() as usages:
                answer = bench.ours.reply(task.call)
            engine_s = sum(u.queue_s + u.prefill_s + u.decode_s for u in usages)
            outside.append((answer.seconds - engine_s) * 1e3)
        per_call.append(statistics.median(outside))
    return {
        "overhead_ms": {"per_token": spread(per_token), "per_call": spread(per_call)},
        "details": {"prompt_tokens": len(bench.prompts.tokens(tasks[-1].call))},
    }


@contextmanager
def _inside_llama() -> Iterator[list[float]]:
    """The seconds of each ``llama_decode`` meanwhile."""
    decode, spent = llama_cpp.llama_decode, []

    def timed(context: Any, batch: Any) -> int:
        began = time.perf_counter()
        code: int = decode(context, batch)
        spent.append(time.perf_counter() - began)
        return code

    llama_cpp.llama_decode = timed
    try:
        yield spent
    finally:
        llama_cpp.llama_decode = decode
    if not spent:
        raise SystemExit("the engine does not call llama_cpp.llama_decode: nothing was timed")


@contextmanager
def _engine_usage() -> Iterator[list[Usage]]:
    """The usage of each reply meanwhile, which LangChain's message does not carry."""
    original, usages = ReplyStream.reply, []

    def noted(stream: ReplyStream) -> Reply:
        reply = original(stream)
        usages.append(reply.usage)
        return reply

    ReplyStream.reply = noted  # type: ignore[method-assign, assignment]
    try:
        yield usages
    finally:
        ReplyStream.reply = original  # type: ignore[method-assign]
    if not usages:
        raise SystemExit("no reply came through ReplyStream.reply: nothing was timed")
