"""Continuous batching: requests share steps and prefixes, and each gets its own reply."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_calls import all_free, answer, ask, start, wait_until
from tiny_mamba import write_tiny_mamba
from tiny_models import write_scripted_gguf, write_tiny_gguf

from tierwise.runtime.context import Chunk, Context
from tierwise.runtime.engine import Engine
from tierwise.runtime.errors import (
    CallError,
    CallTimeoutError,
    EngineBusyError,
    EngineClosedError,
    OutOfMemoryError,
)
from tierwise.runtime.generation import Delta, Generation, GenerationRequest
from tierwise.runtime.grammar import Constraint, GrammarCompiler
from tierwise.runtime.job import Job
from tierwise.runtime.llama import Model
from tierwise.runtime.prefix_cache import HostCache, Sequence
from tierwise.runtime.scheduler import REPLIES, SEQUENCES
from tierwise.runtime.stream import Mailbox

SCRIPT = {
    "": "Nothing was asked, so here is a sentence.",
    "KEYA": "Alpha comes first of all the letters.",
    "KEYB": '{"b": 2, "more": [1, 2, 3]} and some words',
    "KEYC": "Third, C: grüße, 🎉!",
    "KEYD": "D.",
}
KEYS = list(SCRIPT)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "scripted.gguf"
    return write_scripted_gguf(path, SCRIPT, context=8192)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that ramble to the end of a long context."""
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "chatty.gguf", context=8192)


pytestmark = pytest.mark.usefixtures("may_loop")

ENDLESS = Constraint("start: /[a-z ]{6000}/")
"""Keeps random weights from ending their reply before its limit."""

Open = Callable[..., Engine]


@pytest.fixture
def open_engine(scripted: Path) -> Iterator[Open]:
    engines: list[Engine] = []

    def make(path: Path = scripted, n_ctx: int = 4096, **fields: object) -> Engine:
        engines.append(Engine(Model(path), n_ctx=n_ctx, threads=1, **fields))  # type: ignore[arg-type]
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


LAYOUTS = pytest.mark.parametrize("slots", [None, 4], ids=["shared cells", "apart"])
"""Of the context's cells; four requests at once where each has its own."""


@contextmanager
def held_still(engine: Engine) -> Iterator[None]:
    """Nothing is done while the block runs, so that what is submitted arrives at one moment."""
    go = threading.Event()
    held = engine._scheduler.between(go.wait)
    wait_until(held.running)
    try:
        yield
    finally:
        go.set()


# --- Joining and leaving --------------------------------------------------------------------------


@LAYOUTS
def test_replies_of_one_batch_are_those_of_each_alone(open_engine: Open, slots: int | None) -> None:
    engine = open_engine(slots=slots)
    rng = random.Random(1)
    texts = [f"{rng.random()} {rng.choice(KEYS)} {'x' * rng.randrange(200)}" for _ in range(40)]
    with held_still(engine):
        streams = [start(engine, text) for text in texts]
    for text, stream in zip(texts, streams, strict=True):
        assert stream.result().text == SCRIPT[text.split()[1] if "KEY" in text else ""]
    metrics = engine.metrics()
    assert metrics.requests == 40 and all_free(engine)
    # Many replies a step; alone each would take as many steps as it has tokens.
    assert metrics.steps < metrics.tokens / (slots or REPLIES) * 2


@LAYOUTS
def test_replies_of_random_weights_are_those_of_each_alone(
    open_engine: Open, chatty: Path, slots: int | None
) -> None:
    texts = [f"{index} tell me" for index in range(10)]
    alone = [answer(open_engine(chatty, n_ctx=512), text, max_tokens=24) for text in texts]
    engine = open_engine(chatty, slots=slots)
    streams = [start(engine, text, max_tokens=24) for text in texts]
    same = sum(
        stream.result().text == expected for stream, expected in zip(streams, alone, strict=True)
    )
    assert same >= 9  # batches of another size round differently, and a tie may fall differently


@LAYOUTS
def test_a_short_request_that_comes_late_ends_first(
    open_engine: Open, chatty: Path, slots: int | None
) -> None:
    engine = open_engine(chatty, slots=slots)
    long = start(engine, "long", constraint=ENDLESS, max_tokens=3000)
    next(iterator := iter(long))
    short = start(engine, "short", max_tokens=3).result()
    assert short.usage.completion_tokens == 3
    assert engine.metrics().active == 1  # the long one is at work still
    assert engine.metrics().tokens < 2000
    del iterator, long
    wait_until(lambda: all_free(engine))


@LAYOUTS
def test_a_long_prompt_does_not_hold_up_replies(
    open_engine: Open, chatty: Path, slots: int | None
) -> None:
    engine = open_engine(chatty, slots=slots)
    reply = iter(start(engine, "talk", constraint=ENDLESS, max_tokens=2000))
    next(reply)
    prompt = ask(engine, "x" * 2000, max_tokens=1)
    with held_still(engine):
        long = engine.submit(prompt)
        before = engine.metrics()
        counted: list[int] = []
        engine._scheduler.cache.filled = _noting(engine, counted)
    unread = len(prompt.prompt) - long.result().usage.cached_tokens
    parts = -(-unread // 128)
    assert len(counted) == parts  # small parts, and with each of them a token of the reply
    assert counted[-1] - before.tokens >= unread + parts - 1
    for _ in range(parts):
        next(reply)
    reply.close()


def _noting(engine: Engine, counted: list[int]) -> Callable[..., None]:
    """`PrefixCache.filled`, that notes how many tokens were read by then."""
    real = engine._scheduler.cache.filled

    def filled(*args: Any) -> None:
        counted.append(engine._scheduler.counters.tokens)
        real(*args)

    return filled


def test_prompts_alone_are_read_in_large_parts(open_engine: Open, chatty: Path) -> None:
    engine = open_engine(chatty)
    start(engine, "x" * 2000, max_tokens=0).result()
    assert engine.metrics().steps == 4  # of 512


@LAYOUTS
def test_requests_are_answered_in_order_of_arrival(open_engine: Open, slots: int | None) -> None:
    engine = open_engine(slots=slots)
    streams = [start(engine, f"{index} KEYA") for index in range(3 * REPLIES)]
    began = []
    for stream in streams:
        done = stream.result()
        assert done.text == SCRIPT["KEYA"]
        began.append(stream.submitted + done.usage.queue_s)
    assert began == sorted(began)


def test_more_requests_than_sequences(open_engine: Open) -> None:
    engine = open_engine()
    streams = [start(engine, f"{index} {KEYS[index % 5]}") for index in range(5 * SEQUENCES)]
    most = 0
    for index, stream in enumerate(streams):
        most = max(most, engine.metrics().active)
        assert stream.result().text == SCRIPT[KEYS[index % 5]]
    assert most <= REPLIES
    assert engine.metrics().evictions > 0 and all_free(engine)


def test_a_draft_is_read_whole_or_not_at_all(scripted: Path) -> None:
    """A part of it would be in the cache with nobody knowing."""
    request = GenerationRequest((5, 6, 7))
    with Model(scripted) as model:
        generation = Generation(request, model, GrammarCompiler(model), n_ctx=99, emit=print)
        job = Job(request, Mailbox(), 0.0, np.array([5, 6, 7]), generation, Sequence(2))
        generation.draft = [8, 9]
        assert job.chunk(5) == Chunk(2, 0, [5, 6, 7, 8, 9], outputs=3)
        assert job.chunk(4) == Chunk(2, 0, [5, 6, 7], outputs=1)
        assert generation.draft == []
        assert job.chunk(2) == Chunk(2, 0, [5, 6], outputs=0)
        generation.read = 2
        assert job.chunk(2) == Chunk(2, 2, [7], outputs=1)


# --- Too few cells --------------------------------------------------------------------------------


def test_more_than_the_cells_hold(open_engine: Open) -> None:
    engine = open_engine(n_ctx=512)
    texts = [f"{index} {KEYS[1 + index % 4]} {'x' * 180}" for index in range(24)]
    with held_still(engine):
        streams = [start(engine, text) for text in texts]
    for text, stream in zip(texts, streams, strict=True):
        done = stream.result()
        assert done.text == SCRIPT[text.split()[1]]
        assert done.usage.prompt_tokens == len(ask(engine, text).prompt)
    assert engine.metrics().preemptions > 0 and all_free(engine)


def test_who_stepped_back_keeps_the_place_in_the_queue(open_engine: Open) -> None:
    engine = open_engine(n_ctx=512)
    requests = [ask(engine, f"{index:02} KEYA {'x' * 150}") for index in range(20)]
    with held_still(engine):
        streams = [engine.submit(request) for request in requests]
    ended = []
    for stream in streams:
        usage = stream.result().usage
        ended.append(stream.submitted + usage.queue_s + usage.prefill_s + usage.decode_s)
    assert engine.metrics().preemptions > 0
    assert ended == sorted(ended)


def test_replies_that_outgrow_the_cells_step_back_and_go_on(
    open_engine: Open, chatty: Path
) -> None:
    texts = [f"{index} tell" for index in range(6)]
    alone = [
        answer(open_engine(chatty, 512), text, constraint=ENDLESS, max_tokens=200) for text in texts
    ]
    engine = open_engine(chatty, n_ctx=512)
    with held_still(engine):
        streams = [start(engine, text, constraint=ENDLESS, max_tokens=200) for text in texts]
    replies = [stream.result() for stream in streams]
    assert {reply.usage.completion_tokens for reply in replies} == {200}
    metrics = engine.metrics()
    assert metrics.preemptions > 0 and all_free(engine)
    # A step back costs little: what was read is read again at most a few times over.
    assert metrics.tokens < 3 * sum(200 + r.usage.prompt_tokens for r in replies)
    # Long greedy replies of random weights part at the first tie; their beginnings are the same.
    pairs = zip(replies, alone, strict=True)
    assert sum(reply.text[:40] == expected[:40] for reply, expected in pairs) >= 5
    prompts = sum(reply.usage.prompt_tokens for reply in replies)
    assert metrics.prompt_tokens == prompts  # however often they were read
    assert metrics.cached_tokens == sum(reply.usage.cached_tokens for reply in replies)


def test_one_reply_may_fill_the_context_beside_others(open_engine: Open, chatty: Path) -> None:
    engine = open_engine(chatty, n_ctx=512)
    greedy = start(engine, "all of it", constraint=ENDLESS)
    others = [start(engine, f"{index}", constraint=ENDLESS, max_tokens=60) for index in range(5)]
    done = greedy.result()
    assert done.finish_reason == "length"
    assert done.usage.prompt_tokens + done.usage.completion_tokens == 512
    assert [stream.result().usage.completion_tokens for stream in others] == [60] * 5


def test_a_tiny_context_with_host_memory_still_gives_right_replies(open_engine: Open) -> None:
    """States come and go all the time, and no reply is mixed up by it."""
    engine = open_engine(n_ctx=512, host=HostCache(2_000_000))
    rng = random.Random(5)
    for _ in range(6):
        texts = [f"{rng.randrange(6)} {rng.choice(KEYS[1:])} {'y' * 120}" for _ in range(8)]
        streams = [start(engine, text) for text in texts]
        for text, stream in zip(texts, streams, strict=True):
            assert stream.result().text == SCRIPT[text.split()[1]]
        assert engine.host.bytes <= 2_000_000
    assert engine.metrics().restores > 0 and engine.metrics().preemptions > 0


# --- Who is let in --------------------------------------------------------------------------------


def test_a_full_queue_refuses_and_then_takes_again(open_engine: Open, chatty: Path) -> None:
    engine = open_engine(chatty, max_waiting=4)
    running = []
    for index in range(REPLIES):
        running.append(start(engine, str(index), constraint=ENDLESS))
        wait_until(lambda: engine.metrics().waiting == 0)
    assert engine.metrics().active == REPLIES
    waiting = [start(engine, f"{index}!", max_tokens=2) for index in range(4)]
    with pytest.raises(EngineBusyError, match=r"4 requests wait for 'chatty\.gguf'.*fewer"):
        start(engine)
    assert engine.metrics().waiting == 4
    running.clear()
    assert [stream.result().usage.completion_tokens for stream in waiting] == [2] * 4
    assert start(engine, max_tokens=1).result().usage.completion_tokens == 1


def test_a_dropped_stream_lets_the_next_one_in(open_engine: Open, chatty: Path) -> None:
    engine = open_engine(chatty)
    running = [start(engine, str(index), constraint=ENDLESS) for index in range(REPLIES)]
    late = start(engine, "late", max_tokens=2)
    wait_until(lambda: engine.metrics().active == REPLIES)
    assert engine.metrics().waiting == 1
    running.pop(3)
    assert late.result().usage.completion_tokens == 2
    assert engine.metrics().active == REPLIES - 1


def test_deadlines_of_a_crowd(open_engine: Open, chatty: Path) -> None:
    engine = open_engine(chatty)
    end = time.monotonic() + 0.3
    fields = {"constraint": ENDLESS, "deadline": end}
    streams = [start(engine, str(index), **fields) for index in range(3 * REPLIES)]
    for stream in streams:
        with pytest.raises(CallTimeoutError):
            stream.result()
    wait_until(lambda: all_free(engine))


@pytest.mark.parametrize("prompt", [(), (5, 10**6), (5, -1)])
def test_senseless_prompts_are_refused_at_once(open_engine: Open, prompt: tuple[int, ...]) -> None:
    """In a batch with others they would fail all of it, or take another's logits for theirs."""
    engine = open_engine()
    good = start(engine, "KEYA")
    with pytest.raises(CallError, match=r"tokens from 0 to \d+, at least one; got \("):
        engine.submit(GenerationRequest(prompt))
    assert good.result().text == SCRIPT["KEYA"]


# --- The prefix cache -----------------------------------------------------------------------------


@LAYOUTS
def test_twenty_agents_read_their_common_prompt_once(open_engine: Open, slots: int | None) -> None:
    engine = open_engine(slots=slots)
    system = "s" * 1000
    texts = [f"{system} {index} {KEYS[1 + index % 4]}" for index in range(20)]
    prompts = [len(ask(engine, text).prompt) for text in texts]
    streams = [start(engine, text) for text in texts]
    replies = [stream.result() for stream in streams]
    assert [reply.text for reply in replies] == [SCRIPT[text.split()[2]] for text in texts]
    assert replies[0].usage.cached_tokens == 0
    assert all(reply.usage.cached_tokens >= 1000 for reply in replies[1:])
    metrics = engine.metrics()
    assert metrics.prompt_tokens == sum(prompts)
    assert metrics.cached_tokens == sum(reply.usage.cached_tokens for reply in replies)
    written = sum(reply.usage.completion_tokens for reply in replies)
    assert metrics.tokens <= sum(prompts) - metrics.cached_tokens + written
    assert metrics.hit_rate == pytest.approx(metrics.cached_tokens / sum(prompts))
    assert metrics.hit_rate > 0.8
    assert metrics.saved_bytes == metrics.cached_tokens * engine.model.kv_bytes_per_token


def test_six_conversations_over_one_prompt_take_turns(open_engine: Open) -> None:
    engine = open_engine(n_ctx=8192)
    talks = [ask(engine, f"{'s' * 600} {index} KEYA").prompt for index in range(6)]
    for turn in range(4):
        streams = [engine.submit(GenerationRequest(talk)) for talk in talks]
        for index, stream in enumerate(streams):
            done = stream.result()
            key = "KEYA" if turn == 0 else "KEYB"
            assert done.text == SCRIPT[key]
            if turn:  # all of the last turn, and its reply but for the last token
                assert done.usage.cached_tokens >= done.usage.prompt_tokens - 60
            said = engine.model.tokenize(done.text)
            more = f"<|im_end|>\n<|im_start|>user\n{index} KEYB<|im_end|>\n<|im_start|>assistant\n"
            talks[index] = (*talks[index], *said, *engine.model.tokenize(more))


@LAYOUTS
def test_a_request_that_failed_leaves_nothing_wrong_behind(
    open_engine: Open, slots: int | None
) -> None:
    engine = open_engine(slots=slots)
    for _ in range(3):
        with start(engine, f"{'z' * 600} KEYA") as stream:
            next(iter(stream))
    wait_until(lambda: all_free(engine))
    done = start(engine, f"{'z' * 600} KEYB").result()
    assert done.text == SCRIPT["KEYB"] and done.usage.cached_tokens >= 600


@LAYOUTS
def test_a_sequence_whose_reply_broke_off_is_not_trusted(
    open_engine: Open, slots: int | None
) -> None:
    engine = open_engine(slots=slots)
    request = ask(engine, f"{'z' * 100} KEYA")
    with held_still(engine):
        stream = engine.submit(request)
        real = stream.mailbox.put

        def put(event: object) -> None:
            if isinstance(event, Delta) and event.text == "p":
                raise ZeroDivisionError("no one can take any more")
            real(event)  # type: ignore[arg-type]

        stream.mailbox.put = put  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        stream.result()
    assert all_free(engine)
    assert engine.cached_prefix(request.prompt) == 0
    assert engine.submit(request).result().text == SCRIPT["KEYA"]


@LAYOUTS
def test_cold_prefixes_come_back_with_the_same_replies(
    open_engine: Open, slots: int | None
) -> None:
    engine = open_engine(n_ctx=1024, slots=slots, host=HostCache(20_000_000))
    texts = [f"{str(index) * 300} {KEYS[1 + index % 4]}" for index in range(8)]
    for _ in range(2):
        assert [answer(engine, text) for text in texts] == [SCRIPT[t.split()[1]] for t in texts]
    metrics = engine.metrics()
    assert metrics.restores >= 6 and metrics.evictions >= 6
    assert 0 < metrics.host_bytes <= 20_000_000
    assert metrics.hit_rate > 0.35  # all of the second round but what came back too late


def test_recurrent_replies_in_one_batch_are_right(open_engine: Open, tmp_path: Path) -> None:
    path = write_tiny_mamba(tmp_path / "mamba.gguf", context=1024)
    texts = [f"{'abc' * 30} {index}" for index in range(12)]
    alone = [answer(open_engine(path, 512), text, max_tokens=12) for text in texts]
    engine = open_engine(path, 1024, host=HostCache(10**8))
    for _ in range(2):
        streams = [start(engine, text, max_tokens=12) for text in texts]
        replies = [stream.result() for stream in streams]
        assert [reply.text for reply in replies] == alone
        assert {reply.usage.cached_tokens for reply in replies} == {0}


# --- Growth ---------------------------------------------------------------------------------------


def test_growing_in_the_middle_of_replies(open_engine: Open) -> None:
    engine = open_engine(n_ctx=512, host=HostCache(10**8))
    assert answer(engine, f"{'k' * 200} KEYC") == SCRIPT["KEYC"]
    streams = [start(engine, f"{index} {KEYS[1 + index % 4]}") for index in range(24)]
    next(iter_0 := iter(streams[0]))
    for n_ctx in (1024, 2048, 1024, 4096):
        engine.grow_soon(n_ctx).result(60)
    assert engine.n_ctx == 4096
    rest = "".join(delta.text for delta in iter_0)
    assert SCRIPT["KEYA"].endswith(rest)
    for index, stream in enumerate(streams[1:], 1):
        assert stream.result().text == SCRIPT[KEYS[1 + index % 4]]
    done = start(engine, f"{'k' * 200} KEYD").result()
    assert done.text == SCRIPT["KEYD"] and done.usage.cached_tokens >= 200
    assert start(engine, "x" * 3000 + " KEYA").result().text == SCRIPT["KEYA"]


def test_slots_come_and_go_in_the_middle_of_replies(open_engine: Open) -> None:
    engine = open_engine(n_ctx=512, slots=1, host=HostCache(10**8))
    assert answer(engine, f"{'k' * 200} KEYC") == SCRIPT["KEYC"]
    streams = [start(engine, f"{index} {KEYS[1 + index % 4]}") for index in range(24)]
    next(iter_0 := iter(streams[0]))
    for n_ctx, slots in ((512, 2), (512, 8), (1024, 8), (1024, 3)):
        engine.grow_soon(n_ctx, slots).result(60)
        assert (engine.n_ctx, engine.slots) == (n_ctx, slots)
    assert SCRIPT["KEYA"].endswith("".join(delta.text for delta in iter_0))
    for index, stream in enumerate(streams[1:], 1):
        assert stream.result().text == SCRIPT[KEYS[1 + index % 4]]
    done = start(engine, f"{'k' * 200} KEYD").result()
    assert done.text == SCRIPT["KEYD"] and done.usage.cached_tokens >= 200


def test_one_slot_answers_one_after_the_other_and_loses_no_prefix(open_engine: Open) -> None:
    engine = open_engine(n_ctx=1024, slots=1, host=HostCache(10**8))
    talks = [f"{'s' * 300} {str(index) * 100}" for index in range(4)]
    for turn, key in enumerate(("KEYA", "KEYB")):
        streams = [start(engine, f"{talk} {key}") for talk in talks]
        replies = [stream.result() for stream in streams]
        assert {reply.text for reply in replies} == {SCRIPT[key]}
        assert engine.metrics().active <= 1
        cached = [reply.usage.cached_tokens for reply in replies]
        assert min(cached[1:]) >= (400 if turn else 300)
    assert engine.wanted_slots == 2
    engine.grow_soon(1024, 2).result(60)
    assert engine.slots == engine.wanted_slots == 2


def limit_memory(engine: Engine, most: int) -> None:
    """As if the machine had no room for larger contexts. (To let llama.cpp find out by itself
    would take all the memory of the machine that runs the test.)"""
    real = engine._scheduler._open_context

    def open_context(n_ctx: int, sequences: int) -> Context:
        if n_ctx > most:
            raise OutOfMemoryError(f"no room for a context of {n_ctx} tokens")
        return real(n_ctx, sequences)

    engine._scheduler._open_context = open_context


def test_growth_that_fails_keeps_what_runs(open_engine: Open) -> None:
    engine = open_engine(n_ctx=1024, host=HostCache(10**8))
    assert answer(engine, f"{'k' * 200} KEYC") == SCRIPT["KEYC"]
    streams = [start(engine, f"{index} KEYB") for index in range(6)]
    next(iter_0 := iter(streams[0]))
    limit_memory(engine, 2048)
    with pytest.raises(OutOfMemoryError, match="4096 tokens"):
        engine.grow_soon(4096).result(60)
    assert engine.n_ctx == 1024
    assert SCRIPT["KEYB"].endswith("".join(delta.text for delta in iter_0))
    assert [stream.result().text for stream in streams[1:]] == [SCRIPT["KEYB"]] * 5
    assert start(engine, f"{'k' * 200} KEYD").result().usage.cached_tokens >= 200


def test_who_finds_no_room_after_a_growth_that_failed_begins_again(
    open_engine: Open, chatty: Path
) -> None:
    """What lay in shared cells is restored for each by itself, and needs more of them."""
    engine = open_engine(chatty, n_ctx=1024)
    requests = [
        ask(engine, f"{'s' * 500} {index}", constraint=ENDLESS, max_tokens=60) for index in range(6)
    ]
    expected = [engine.submit(request).result().text for request in requests]
    with held_still(engine):
        streams = [engine.submit(request) for request in requests]
    for stream in streams:
        wait_until(lambda stream=stream: stream.mailbox._events)
    limit_memory(engine, 1024)
    with pytest.raises(OutOfMemoryError):
        engine.grow_soon(4096).result(60)
    replies = [stream.result() for stream in streams]
    assert {reply.usage.completion_tokens for reply in replies} == {60}
    pairs = zip(replies, expected, strict=True)
    assert sum(reply.text[:20] == text[:20] for reply, text in pairs) >= 5
    assert all_free(engine)


def test_a_cancelled_growth_harms_nobody(open_engine: Open, chatty: Path) -> None:
    engine = open_engine(chatty)
    running = start(engine)
    cancelled = [engine.grow_soon(8192) for _ in range(20)]
    done = [future.cancel() for future in cancelled]
    assert any(done)
    assert start(engine, "still there", max_tokens=2).result().usage.completion_tokens == 2
    running.close()


def test_a_closed_engine_grows_no_more(open_engine: Open) -> None:
    engine = open_engine()
    engine.close()
    with pytest.raises(EngineClosedError):
        engine.grow_soon(8192).result(60)


def test_when_even_the_old_context_is_gone_nobody_waits_for_ever(
    open_engine: Open, chatty: Path
) -> None:
    engine = open_engine(chatty)
    running = iter(start(engine, constraint=ENDLESS))
    next(running)
    waiting = [start(engine, str(index)) for index in range(12)]
    limit_memory(engine, 0)
    with pytest.raises(OutOfMemoryError, match="of 4096 tokens"):
        engine.grow_soon(8192).result(60)
    with pytest.raises(EngineClosedError):
        list(running)
    for stream in waiting:
        with pytest.raises(EngineClosedError):
            stream.result()
    request = GenerationRequest((5,))
    for action in (lambda: engine.submit(request), lambda: engine.grow_soon(8192).result(60)):
        with pytest.raises(EngineClosedError):
            action()
    engine.close()


def test_an_error_of_ours_leaves_nobody_waiting(
    open_engine: Open, chatty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    engine = open_engine(chatty)
    streams = [start(engine, str(index), constraint=ENDLESS) for index in range(12)]
    next(running := iter(streams[0]))

    def fail() -> bool:
        raise ZeroDivisionError("an error that nobody thought of")

    engine._scheduler._drop_dead = fail
    for reply in (running, *streams[1:]):
        with pytest.raises(EngineClosedError):
            list(reply)
    with pytest.raises(EngineClosedError):
        engine.submit(GenerationRequest((5,)))
    engine.close()
    assert [args.exc_type for args in seen] == [ZeroDivisionError]
    assert not engine.model._handle  # freed all the same
