"""Coroutines: no thread per call, nothing that blocks the loop, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from family_factory import TierSpec, make_family
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import AIMessage
from scripted_model import FRUIT, write_scripted_gguf
from tiny_models import write_tiny_gguf

from tierwise import ChatTierwise, TierwiseLLM
from tierwise.runtime.errors import CallTimeoutError

LONG = 1500


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Families by name: fruit (scripted), babbler (random weights, never ends)."""
    work = tmp_path_factory.mktemp("families")
    fruit = write_scripted_gguf(work / "fruit.gguf", {"": "Hello.", **FRUIT}, context=8192)
    babbler = write_tiny_gguf(work / "babbler.gguf", seed=2, layers=1, context=2048)
    made = {"fruit": fruit, "babbler": babbler}
    return {
        name: make_family(work / name, [TierSpec("only", file)]).folder
        for name, file in made.items()
    }


Make = Callable[..., ChatTierwise]


@pytest.fixture
def make(folders: dict[str, Path]) -> Iterator[Make]:
    models: list[ChatTierwise] = []

    def one(kind: str = "fruit", **options: Any) -> ChatTierwise:
        models.append(ChatTierwise(family=folders[kind], threads=1, **options))
        return models[-1]

    yield one
    for model in models:
        model.close()


class CountingExecutor(ThreadPoolExecutor):
    """Counts what is handed to threads."""

    submitted = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.submitted += 1
        return super().submit(fn, *args, **kwargs)


def leases(model: ChatTierwise) -> int:
    return sum(tier.leases for tier in model.router.pool.resident().values())


async def soon(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


def idle(model: ChatTierwise) -> bool:
    """Whether nothing runs and nothing is held."""
    if leases(model):
        return False
    with model.router.pool.acquire("only", context_tokens=100) as lease:
        return not lease.tier.engine.busy


async def running(model: ChatTierwise) -> asyncio.Task[Any]:
    """A call that would go on for long, once it has begun."""
    await model.ainvoke("hi", max_tokens=1)
    task = asyncio.create_task(model.ainvoke("hi"))
    await soon(lambda: leases(model) == 1)
    return task


def test_threads_are_for_loading_only(make: Make) -> None:
    model = make()

    async def calls() -> tuple[int, int]:
        executor = CountingExecutor(4)
        asyncio.get_running_loop().set_default_executor(executor)
        await model.ainvoke("hi")
        cold = executor.submitted
        replies = await asyncio.gather(*(model.ainvoke(f"The {name}?") for name in FRUIT))
        assert [reply.content for reply in replies] == [*FRUIT.values()]
        async for _ in model.astream("The durian?"):
            pass
        return cold, executor.submitted

    cold, warm = asyncio.run(calls())
    assert warm == cold > 0


@pytest.mark.parametrize("cold", [True, False])
def test_the_loop_goes_on_meanwhile(make: Make, cold: bool) -> None:
    model = make("babbler", max_tokens=300)

    async def beats_meanwhile() -> int:
        if not cold:
            await model.ainvoke("hi", max_tokens=1)
        beats = 0
        call = asyncio.create_task(model.ainvoke("hi"))
        while not call.done():
            await asyncio.sleep(0.001)
            beats += 1
        assert call.result().content
        return beats

    assert asyncio.run(beats_meanwhile()) > 10


def test_many_calls_each_get_their_own_answer(make: Make) -> None:
    model = make()
    names = [*FRUIT] * 6

    async def calls() -> list[AIMessage]:
        return await asyncio.gather(*(model.ainvoke(f"The {name}?") for name in names))

    assert [reply.content for reply in asyncio.run(calls())] == [FRUIT[name] for name in names]
    assert leases(model) == 0


def test_a_batch_with_errors_in_it(make: Make) -> None:
    model = make()
    questions: list[Any] = ["The apple?", "x" * 9000, "The durian?"]
    first, second, third = asyncio.run(model.abatch(questions, return_exceptions=True))
    assert first.content == FRUIT["apple"] and third.content == FRUIT["durian"]
    assert "Shorten the conversation" in str(second)


def test_other_coroutines_loops_and_threads_at_once(make: Make) -> None:
    model = make()

    async def calls() -> list[Any]:
        return await asyncio.gather(*(model.ainvoke(f"The {name}?") for name in FRUIT))

    with ThreadPoolExecutor(4) as threads:
        loops = [threads.submit(asyncio.run, calls()) for _ in range(2)]
        plain = [threads.submit(model.invoke, f"The {name}?") for name in FRUIT]
        for loop in loops:
            assert [reply.content for reply in loop.result()] == [*FRUIT.values()]
        assert [reply.result().content for reply in plain] == [*FRUIT.values()]


# --- cancellation -----------------------------------------------------------------------


def test_cancelling_a_call_frees_the_engine(make: Make) -> None:
    model = make("babbler", max_tokens=LONG)

    async def cancelled() -> None:
        task = await running(model)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert leases(model) == 0
        await soon(lambda: idle(model))

    asyncio.run(cancelled())
    assert model.invoke("hi", max_tokens=5).usage_metadata is not None


def test_asyncio_s_own_timeout_frees_the_engine(make: Make) -> None:
    model = make("babbler", max_tokens=LONG)

    async def timed_out() -> None:
        task = await running(model)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await task
        await soon(lambda: idle(model))

    asyncio.run(timed_out())


def test_the_call_s_own_timeout(make: Make) -> None:
    model = make("babbler", max_tokens=LONG)
    model.invoke("hi", max_tokens=1)
    with pytest.raises(CallTimeoutError):
        asyncio.run(model.ainvoke("hi", timeout=0.01))
    asyncio.run(soon(lambda: idle(model)))


def test_some_of_many_are_cancelled(make: Make) -> None:
    model = make()

    async def calls() -> None:
        names = [*FRUIT] * 4
        tasks = [asyncio.create_task(model.ainvoke(f"The {name}?")) for name in names]
        await soon(lambda: leases(model) > 0)
        for task in tasks[::3]:
            task.cancel()
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        for name, reply in zip(names, replies, strict=True):
            right = isinstance(reply, AIMessage) and reply.content == FRUIT[name]
            assert right or isinstance(reply, asyncio.CancelledError)
        assert sum(isinstance(reply, AIMessage) for reply in replies) >= len(names) * 2 // 3
        await soon(lambda: idle(model))

    asyncio.run(calls())


def test_a_call_cancelled_while_its_tier_is_loaded(make: Make) -> None:
    """A thread loads it to the end then, but nobody holds it."""
    model = make()

    async def cancelled() -> None:
        model.router.pool.tokenize("")
        executor = CountingExecutor(4)
        asyncio.get_running_loop().set_default_executor(executor)
        call = asyncio.create_task(model.ainvoke("hi"))
        await soon(lambda: executor.submitted == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await soon(lambda: "only" in model.router.pool.resident())
        await soon(lambda: idle(model))

    asyncio.run(cancelled())
    assert model.invoke("hi").content == "Hello."


async def first_chunk(model: ChatTierwise) -> None:
    async for chunk in model.astream("hi"):
        assert chunk.content
        break


async def first_event(model: ChatTierwise) -> None:
    async for event in model.astream_events("hi", version="v2"):
        if event["event"] == "on_chat_model_stream":
            break


@pytest.mark.parametrize("leave", [first_chunk, first_event])
def test_leaving_a_stream_frees_the_engine(
    make: Make, leave: Callable[[ChatTierwise], Awaitable[None]]
) -> None:
    model = make("babbler", max_tokens=LONG)

    async def left() -> None:
        await leave(model)
        gc.collect()  # an abandoned generator is closed when it is found
        await soon(lambda: idle(model))

    asyncio.run(left())


# --- callbacks that fail ----------------------------------------------------------------


class Failing(BaseCallbackHandler):
    raise_error = True

    def on_llm_new_token(self, token: Any, **_: Any) -> None:
        raise RuntimeError("the callback failed")


class AsyncFailing(AsyncCallbackHandler):
    raise_error = True

    async def on_llm_new_token(self, token: Any, **_: Any) -> None:
        raise RuntimeError("the callback failed")


@pytest.mark.filterwarnings("ignore:.* is in beta")
@pytest.mark.parametrize("handler", [Failing, AsyncFailing])
@pytest.mark.parametrize("way", ["ainvoke", "astream", "astream_events"])
def test_a_failing_callback_frees_the_engine(make: Make, handler: Any, way: str) -> None:
    model = make("babbler", max_tokens=LONG, streaming=True)
    config: Any = {"callbacks": [handler()]}

    async def fail() -> None:
        if way == "ainvoke":
            await model.ainvoke("hi", config=config)
            return
        options: Any = {"version": "v3"} if way == "astream_events" else {}
        stream: Any = getattr(model, way)("hi", config=config, **options)
        async for _ in await stream if options else stream:
            pass

    async def failed() -> None:
        with pytest.raises(RuntimeError, match="the callback failed"):
            await fail()
        await soon(lambda: idle(model))

    asyncio.run(failed())


@pytest.mark.filterwarnings("ignore:.* is in beta")
@pytest.mark.parametrize("way", ["invoke", "stream", "stream_events"])
def test_a_failing_callback_frees_the_engine_in_a_thread(make: Make, way: str) -> None:
    model = make("babbler", max_tokens=LONG, streaming=True)
    options: Any = {"version": "v3"} if way == "stream_events" else {}
    with pytest.raises(RuntimeError, match="the callback failed") as caught:
        for _ in getattr(model, way)("hi", config={"callbacks": [Failing()]}, **options):
            pass
    assert leases(model) == 0, "while the exception, with all its frames, is still alive"
    asyncio.run(soon(lambda: idle(model)))
    assert caught.value


# --- completions ------------------------------------------------------------------------


def test_completions_are_cancelled_together(folders: dict[str, Path]) -> None:
    """Where one prompt of a batch fails, the others need not run to their end."""
    with (
        TierwiseLLM(family=folders["babbler"], threads=1, max_tokens=LONG) as llm,
        ChatTierwise(family=folders["babbler"], threads=1) as model,
    ):

        async def failed() -> None:
            with pytest.raises(Exception, match="Shorten the conversation"):
                await llm.agenerate(["hi", "x" * 9000])
            for _ in range(5):
                await asyncio.sleep(0)
            assert len(asyncio.all_tasks()) == 1
            await soon(lambda: idle(model))

        asyncio.run(failed())
