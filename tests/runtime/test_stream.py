"""Streams: read from threads and from event loops, left early, and waited for in vain."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator

import pytest
from engine_calls import all_free, start, wait_until
from tiny_models import write_scripted_gguf, write_tiny_gguf

from tierwise.runtime.engine import Engine
from tierwise.runtime.errors import CallTimeoutError, EngineClosedError
from tierwise.runtime.generation import Delta
from tierwise.runtime.grammar import Constraint
from tierwise.runtime.llama import Model
from tierwise.runtime.stream import Mailbox

SCRIPT = {"": "Nothing in particular.", "KEYA": "Alpha, ä, 🎉.", "KEYB": "Beta comes after that."}
pytestmark = pytest.mark.usefixtures("may_loop")

ENDLESS = Constraint("start: /[a-z ]{6000}/")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = tmp_path_factory.mktemp("models") / "scripted.gguf"
    write_scripted_gguf(path, SCRIPT, context=8192)
    with Engine(Model(path), n_ctx=8192, threads=1) as opened:
        yield opened


@pytest.fixture
def rambler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = write_tiny_gguf(tmp_path_factory.mktemp("models") / "chatty.gguf", context=8192)
    with Engine(Model(path), n_ctx=8192, threads=1) as opened:
        yield opened


# --- A mailbox ------------------------------------------------------------------------------------


def test_a_mailbox_gives_events_in_order_and_none_after_the_wait() -> None:
    box = Mailbox()
    for text in "abc":
        box.put(Delta(text))
    assert [box.get(None) for _ in range(3)] == [Delta("a"), Delta("b"), Delta("c")]
    began = time.monotonic()
    assert box.get(0.05) is None
    assert time.monotonic() - began >= 0.05


def test_a_mailbox_wakes_a_thread() -> None:
    box, got = Mailbox(), []
    thread = threading.Thread(target=lambda: got.append(box.get(60)))
    thread.start()
    box.put(Delta("late"))
    thread.join(60)
    assert got == [Delta("late")]


async def test_a_mailbox_wakes_a_coroutine() -> None:
    box = Mailbox()
    reading = asyncio.create_task(box.aget(60))
    await asyncio.sleep(0.01)
    assert not reading.done()
    threading.Thread(target=box.put, args=(Delta("late"),)).start()
    assert await asyncio.wait_for(reading, 60) == Delta("late")
    box.put(Delta("early"))
    assert await box.aget(0) == Delta("early")
    assert await box.aget(0.02) is None


def test_an_event_for_a_closed_loop_closes_the_mailbox() -> None:
    box = Mailbox()

    async def wait() -> None:
        await box.aget(0.01)

    asyncio.run(wait())
    assert not box.closed
    box.put(Delta("to nobody"))
    assert box.closed


# --- Event loops ----------------------------------------------------------------------------------


async def test_a_coroutine_gets_what_a_thread_gets(engine: Engine) -> None:
    stream = start(engine, "KEYA")
    pieces = [delta.text async for delta in stream]
    assert "".join(pieces) == SCRIPT["KEYA"] == (await stream.aresult()).text
    assert pieces == [delta.text for delta in start(engine, "KEYA")]


async def test_many_coroutines_take_no_threads(engine: Engine) -> None:
    before = set(threading.enumerate())  # others of this process may end meanwhile
    new: set[threading.Thread] = set()

    async def one(index: int) -> bool:
        key = ("KEYA", "KEYB")[index % 2]
        stream = start(engine, f"{index} {key}")
        text = ""
        async for delta in stream:
            text += delta.text
            new.update(set(threading.enumerate()) - before)
        return text == SCRIPT[key]

    assert all(await asyncio.gather(*map(one, range(120))))
    assert new == set()


async def test_the_loop_stays_free_while_replies_come(rambler: Engine) -> None:
    done = asyncio.create_task(start(rambler, constraint=ENDLESS, max_tokens=600).aresult())
    seen = set()
    while not done.done():
        await asyncio.sleep(0.001)
        seen.add(rambler.metrics().tokens)
    assert done.result().usage.completion_tokens == 600
    assert len(seen) > 10  # the reply was seen to grow


@pytest.mark.parametrize("how", ["cancel", "wait_for", "break", "exception", "drop"])
async def test_a_coroutine_that_leaves_frees_its_sequence(rambler: Engine, how: str) -> None:
    async def read() -> None:
        async for _ in start(rambler, constraint=ENDLESS):
            if how == "break":
                break
            if how == "exception":
                raise ZeroDivisionError

    if how == "wait_for":
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(), 0.05)
    elif how == "exception":
        with pytest.raises(ZeroDivisionError):
            await read()
    elif how == "break":
        await read()
    elif how == "drop":
        stream = start(rambler, constraint=ENDLESS)
        await anext(aiter(stream))
        del stream
    else:
        task = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        assert rambler.busy
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.sleep(0)
    gc.collect()
    await asyncio.to_thread(wait_until, lambda: all_free(rambler))
    assert rambler.metrics().requests == 0
    assert (await start(rambler, max_tokens=2).aresult()).usage.completion_tokens == 2


async def test_a_cancelled_coroutine_in_the_queue_never_runs(rambler: Engine) -> None:
    running = [start(rambler, str(index), constraint=ENDLESS) for index in range(8)]
    waiting = asyncio.create_task(start(rambler, "late").aresult())
    await asyncio.sleep(0.02)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.to_thread(wait_until, lambda: rambler.metrics().waiting == 0)
    assert rambler.metrics().active == 8
    running.clear()


async def test_a_deadline_holds_in_an_event_loop_too(rambler: Engine) -> None:
    began = time.monotonic()
    stream = start(rambler, constraint=ENDLESS, deadline=began + 0.1)
    with pytest.raises(CallTimeoutError, match="Allow more time"):
        await stream.aresult()
    assert time.monotonic() - began >= 0.1
    with pytest.raises(CallTimeoutError):
        await stream.aresult()


def test_a_loop_that_ends_during_a_reply_frees_it(rambler: Engine) -> None:
    stream = start(rambler, constraint=ENDLESS)
    kept = []

    async def begin() -> None:
        kept.append(aiter(stream))
        await anext(kept[0])

    asyncio.run(begin())
    wait_until(lambda: all_free(rambler))
    assert rambler.metrics().requests == 0
    with pytest.raises(EngineClosedError, match="cancelled"):
        stream.result()


def test_a_loop_that_closes_while_it_waits_frees_the_reply(rambler: Engine) -> None:
    """The reader is asleep when its loop ends, and nobody is there to be woken."""
    stream = start(rambler, "x" * 1000, constraint=ENDLESS)
    loop = asyncio.new_event_loop()
    reading = stream.aresult()
    task = loop.create_task(reading)
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    wait_until(lambda: all_free(rambler))
    assert rambler.metrics().requests == 0 and rambler.metrics().tokens < 3000
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    task.get_coro().close()


def test_several_loops_at_once(engine: Engine) -> None:
    wrong: list[str] = []

    async def crowd(seed: int) -> None:
        async def one(index: int) -> None:
            done = await start(engine, f"{seed} {index} KEYB").aresult()
            if done.text != SCRIPT["KEYB"]:
                wrong.append(done.text)

        await asyncio.gather(*map(one, range(10)))

    threads = [threading.Thread(target=asyncio.run, args=(crowd(seed),)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == [] and all_free(engine)


# --- Slow and careless readers --------------------------------------------------------------------


def test_a_reader_that_stops_reading_holds_nobody_up(rambler: Engine) -> None:
    sleepy = start(rambler, "sleepy", constraint=ENDLESS, max_tokens=500)
    next(pieces := iter(sleepy))
    others = [start(rambler, str(index), max_tokens=20) for index in range(12)]
    assert all(stream.result().usage.completion_tokens <= 20 for stream in others)
    wait_until(lambda: all_free(rambler))  # its reply waits in its mailbox
    assert sum(1 for _ in pieces) == 499
    assert sleepy.result().usage.completion_tokens == 500


def test_an_exception_in_a_reader_harms_nobody(rambler: Engine) -> None:
    def show(_: str) -> None:
        raise ZeroDivisionError

    other = start(rambler, "other", constraint=ENDLESS, max_tokens=100)
    with pytest.raises(ZeroDivisionError):
        for delta in start(rambler, constraint=ENDLESS):
            show(delta.text)
    assert other.result().usage.completion_tokens == 100
    gc.collect()
    wait_until(lambda: all_free(rambler))
