"""What an engine survives: crowds that come and go, careless readers, forks, sudden ends."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from engine_calls import all_free, ask, start, wait_until
from tiny_models import write_scripted_gguf, write_tiny_gguf

from tierwise.runtime.chat import Sampling
from tierwise.runtime.engine import Engine
from tierwise.runtime.errors import (
    CallTimeoutError,
    ContextOverflowError,
    EngineClosedError,
    TierwiseError,
)
from tierwise.runtime.generation import Generated
from tierwise.runtime.grammar import Constraint
from tierwise.runtime.llama import Model
from tierwise.runtime.prefix_cache import HostCache
from tierwise.runtime.stream import GenerationStream

SCRIPT = {
    "": "Nothing was asked.",
    "KEYA": "Alpha comes first of all the letters.",
    "KEYB": '{"b": 2, "more": [1, 2, 3]}',
    "KEYC": "Third, C: grüße, 🎉!",
}
pytestmark = pytest.mark.usefixtures("may_loop")

ENDLESS = Constraint("start: /[a-z ]{6000}/")
THREADS, TASKS = 32, 64


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_scripted_gguf(folder / "scripted.gguf", SCRIPT, context=4096)
    write_tiny_gguf(folder / "chatty.gguf", context=8192)
    return folder


@pytest.fixture
def rambler(models: Path) -> Iterator[Engine]:
    with Engine(Model(models / "chatty.gguf"), n_ctx=2048, threads=1) as engine:
        yield engine


# --- A crowd --------------------------------------------------------------------------------------


@dataclass
class Crowd:
    """Callers who ask, check that the answer is theirs, and now and then leave half-way."""

    engine: Engine
    end: float
    wrong: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    def request(self, rng: random.Random) -> tuple[GenerationStream, str | None]:
        """A stream, and the text that must come of it; None for one that must fail."""
        kind = rng.random()
        nonce = f"{rng.getrandbits(40):x}"
        filler = rng.choice("stuv") * rng.choice((0, 30, 150, 400))
        if kind < 0.05:
            self.seen["too long"] += 1
            return start(self.engine, "x" * 5000), None
        if kind < 0.1:
            self.seen["late"] += 1
            return start(self.engine, filler, deadline=time.monotonic() - 1), None
        if kind < 0.5:
            # Whatever this model would like to say: the nonce among others must come back.
            self.seen["nonce"] += 1
            constraint = Constraint(f'start: "<{nonce}>" /[a-c]{{3}}/ "</{nonce}>"')
            sampling = Sampling(temperature=rng.choice((0.0, 1.5)), seed=rng.randrange(99))
            stream = start(
                self.engine, f"{filler} {nonce}", constraint=constraint, sampling=sampling
            )
            return stream, nonce
        self.seen["scripted"] += 1
        key = rng.choice(("KEYA", "KEYB", "KEYC"))
        return start(self.engine, f"{filler} {nonce} {key}"), SCRIPT[key]

    def check(self, expected: str | None, came: Generated | TierwiseError | str) -> None:
        text = came.text if isinstance(came, Generated) else came
        if expected is None:
            right = isinstance(came, ContextOverflowError | CallTimeoutError)
        elif expected in SCRIPT.values():
            right = text == expected
        else:
            ends = f"<{expected}>", f"</{expected}>"
            right = isinstance(text, str) and text.startswith(ends[0]) and text.endswith(ends[1])
        if not right:
            self.wrong.append(f"{expected!r} was to come, but it was {came!r}")

    def thread(self, seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < self.end:
            stream, expected = self.request(rng)
            how = rng.random()
            if how < 0.1:
                del stream  # never read
            elif how < 0.25:
                self.seen["left"] += 1
                with stream:
                    for _, _delta in zip(range(rng.randrange(8)), _quietly(stream), strict=False):
                        pass
            else:
                try:
                    came = stream.result()
                except TierwiseError as error:
                    self.check(expected, error)
                else:
                    self.check(expected, came)

    async def task(self, seed: int) -> None:
        rng = random.Random(-seed)
        while time.monotonic() < self.end:
            stream, expected = self.request(rng)
            text = ""

            async def read(stream: GenerationStream = stream) -> str:
                return "".join([delta.text async for delta in stream])

            try:
                if rng.random() < 0.25:
                    text = await asyncio.wait_for(read(), rng.random() / 5)
                else:
                    text = await read()
            except TierwiseError as error:
                self.check(expected, error)
            except TimeoutError:
                self.seen["cancelled"] += 1
            else:
                self.check(expected, text)


def _quietly(stream: GenerationStream) -> Iterator[object]:
    try:
        yield from stream
    except TierwiseError:
        return


def run_crowd(engine: Engine, seconds: float, seed: int) -> Crowd:
    """All threads and tasks at once; their errors are errors of the test."""
    crowd = Crowd(engine, time.monotonic() + seconds)
    failed: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            crowd.thread(seed + number)
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()

    async def tasks() -> None:
        await asyncio.gather(*(crowd.task(seed + number + 1) for number in range(TASKS)))

    asyncio.run(tasks())
    for thread in threads:
        thread.join(300)
    assert failed == [] and not any(thread.is_alive() for thread in threads)
    return crowd


def resident_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


@pytest.mark.parametrize(
    "seconds", [6.0, pytest.param(120.0, marks=pytest.mark.slow)], ids=["short", "two minutes"]
)
def test_a_crowd_that_comes_and_goes(models: Path, seconds: float) -> None:
    """No crash, no leak, and nobody gets another's answer."""
    host = HostCache(4_000_000)
    with Engine(Model(models / "scripted.gguf"), n_ctx=1024, threads=1, host=host) as engine:
        run_crowd(engine, max(2.0, seconds / 8), seed=10_000)  # what grows once, has grown
        threads = set(threading.enumerate())  # others of this process may end meanwhile
        before = resident_bytes()
        crowd = run_crowd(engine, seconds, seed=1)
        assert crowd.wrong == []
        assert set(crowd.seen) == {"too long", "late", "nonce", "scripted", "left", "cancelled"}
        gc.collect()
        wait_until(lambda: all_free(engine))
        assert set(threading.enumerate()) <= threads
        assert host.bytes <= 4_000_000
        metrics = engine.metrics()
        assert metrics.preemptions > 0 and metrics.evictions > 0 and metrics.requests > 50
        grown = resident_bytes() - before
        assert grown < 24 * 2**20, f"{grown / 2**20:.1f} MB more than before"
        done = start(engine, "KEYA").result()
        assert done.text == SCRIPT["KEYA"]


# --- One among many -------------------------------------------------------------------------------


def test_a_request_longer_than_the_context_among_valid_ones(models: Path) -> None:
    with Engine(Model(models / "scripted.gguf"), n_ctx=1024, threads=1) as engine:
        streams = [
            start(engine, "x" * 3000 if index % 3 == 1 else f"{index} KEYB") for index in range(18)
        ]
        for index, stream in enumerate(streams):
            if index % 3 == 1:
                with pytest.raises(ContextOverflowError, match="the context 1024"):
                    stream.result()
            else:
                assert stream.result().text == SCRIPT["KEYB"]
        assert all_free(engine)


def test_readers_that_stop_reading_hold_nobody_up(rambler: Engine) -> None:
    """More of them than there are replies at once: nobody ever reads what came for them."""
    asleep = [start(rambler, f"asleep {i}", constraint=ENDLESS, max_tokens=120) for i in range(12)]
    heads = [next(iter_) for iter_ in map(iter, asleep[:4])]
    done = [start(rambler, str(i), max_tokens=8).result() for i in range(6)]
    assert len(heads) == 4 and all(one.usage.completion_tokens <= 8 for one in done)
    assert asleep[11].result().usage.completion_tokens == 120


def test_an_exception_in_a_callback_stays_with_its_caller(rambler: Engine) -> None:
    calls = 0

    def callback(_: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ZeroDivisionError("in the caller's own code")

    others = [start(rambler, str(i), constraint=ENDLESS, max_tokens=50) for i in range(4)]
    with pytest.raises(ZeroDivisionError):
        for delta in start(rambler, constraint=ENDLESS):
            callback(delta.text)
    growing = rambler.grow_soon(4096)
    growing.add_done_callback(lambda _: callback("again") or 1 / 0)
    assert growing.result(60) is None
    assert [one.result().usage.completion_tokens for one in others] == [50] * 4
    gc.collect()
    wait_until(lambda: all_free(rambler))
    assert rambler.n_ctx == 4096


def test_a_tokenizer_in_use_outlives_its_engine(models: Path) -> None:
    """Prompts are made in the callers' threads, while another thread unloads the model."""
    for _ in range(5):
        engine = Engine(Model(models / "scripted.gguf"), n_ctx=256, threads=1)

        def make_prompts(engine: Engine = engine) -> None:
            try:
                while True:
                    ask(engine, "x" * 5000)
            except TierwiseError:
                return

        threads = [threading.Thread(target=make_prompts) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        engine.close()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)


# --- The end of a process -------------------------------------------------------------------------


def run_python(models: Path, code: str) -> subprocess.CompletedProcess[str]:
    head = """
        import asyncio, atexit, gc, os, sys, threading, time
        from pathlib import Path
        report = []
        atexit.register(lambda: [print(line()) for line in report])  # called last
        from tierwise.runtime.engine import Engine
        from tierwise.runtime.errors import EngineError
        from tierwise.runtime.generation import GenerationRequest
        from tierwise.runtime.grammar import Constraint
        from tierwise.runtime.llama import Model

        engine = Engine(Model(Path(sys.argv[1])), n_ctx=2048, threads=1)
        request = GenerationRequest((5, 6, 7), constraint=Constraint("start: /[a-z ]{6000}/"))
        short = GenerationRequest((5, 6, 7), max_tokens=4)
    """
    program = textwrap.dedent(head) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", program, models / "chatty.gguf"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("how", ["returns", "raises", "exits"])
def test_the_interpreter_exits_while_coroutines_wait(models: Path, how: str) -> None:
    code = f"""
        worker = engine._thread
        report.append(lambda: "running" if worker.is_alive() else "ended")

        async def main():
            tasks = [asyncio.create_task(engine.submit(request).aresult()) for _ in range(12)]
            while (active := engine.metrics().active) < 8:
                await asyncio.sleep(0.001)
            print(active)
            if {how!r} == "raises":
                raise KeyError("in the program")
            if {how!r} == "exits":
                sys.exit(3)

        asyncio.run(main())
    """
    run = run_python(models, code)
    assert run.returncode == {"returns": 0, "raises": 1, "exits": 3}[how], run.stderr
    assert run.stdout.split() == ["8", "ended"]
    assert ("KeyError" in run.stderr) == (how == "raises")


def test_an_engine_dropped_with_its_streams_ends_with_the_interpreter(models: Path) -> None:
    """Nobody waits for the thread of a dropped engine, but the interpreter does."""
    code = """
        streams = [engine.submit(request) for _ in range(4)]
        next(iter(streams[0]))
        del streams, engine
        report.append(lambda: [t.name for t in threading.enumerate() if t.is_alive()])
        print("bye")
    """
    for _ in range(3):
        run = run_python(models, code)
        assert (run.returncode, run.stdout, run.stderr) == (0, "bye\n[]\n", "")


@pytest.mark.skipif(not hasattr(os, "kill") or sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_during_a_reply_ends_the_program(models: Path) -> None:
    code = f"""
        import signal
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Timer(0.3, os.kill, (os.getpid(), {int(signal.SIGINT)})).start()
        try:
            while True:
                engine.submit(request).result()
        except KeyboardInterrupt:
            print(len(engine.submit(short).result().text) > 0)
    """
    run = run_python(models, code)
    assert (run.returncode, run.stdout) == (0, "True\n"), run.stderr


# --- Fork -----------------------------------------------------------------------------------------

FORK = """
    import warnings
    warnings.simplefilter("ignore")  # Python 3.12 warns of forks with threads, rightly
    running = engine.submit(request)
    next(pieces := iter(running))
    # As bad as it gets: another thread holds every lock at the moment of the fork.
    holder, ready, done = None, threading.Event(), threading.Event()

    def hold():
        with engine._lock, engine._scheduler._wake, engine.grammars._lock, engine.host._lock:
            ready.set()
            done.wait()

    if {locked}:
        holder = threading.Thread(target=hold)
        holder.start()
        ready.wait()
    child = os.fork()
    if child == 0:
        for action in (lambda: engine.submit(short), lambda: engine.grow_soon(4096)):
            try:
                action()
            except EngineError as error:
                assert "forked" in str(error) and "spawn" in str(error)
                print("refused")
        for read in (lambda: list(running), running.result, lambda: asyncio.run(running.aresult())):
            try:
                read()
            except EngineError as error:
                assert "this reply was asked for before this process was forked" in str(error)
                print("not to be read")
        print(engine.metrics().requests, engine.n_ctx, engine.cached_prefix((5, 6, 7)) >= 0)
        engine.close()
        del running, pieces, engine
        gc.collect()
        print("child ends", flush=True)
        {end}
    done.set()
    if holder:
        holder.join()
    _, status = os.waitpid(child, 0)
    print("status", status)
    print(next(pieces).text != "", engine.submit(short).result().usage.prompt_tokens == 3)
    engine.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)"])
def test_a_fork_gets_a_clear_error_and_harms_nobody(models: Path, locked: bool, end: str) -> None:
    run = run_python(models, FORK.format(locked=locked, end=end))
    assert run.returncode == 0, run.stderr
    lines = ["refused"] * 2 + ["not to be read"] * 3
    lines += ["0 2048 True", "child ends", "status 0", "True True"]
    assert run.stdout.splitlines() == lines, run.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_can_load_a_model_of_its_own(models: Path) -> None:
    code = """
        import warnings
        warnings.simplefilter("ignore")
        expected = engine.submit(short).result().text
        child = os.fork()
        if child == 0:
            with Engine(Model(Path(sys.argv[1])), n_ctx=2048, threads=1) as own:
                print(own.submit(short).result().text == expected, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    """
    run = run_python(models, code)
    assert (run.returncode, run.stdout) == (0, "True\n"), run.stderr


def test_streams_outlive_the_name_of_their_engine(models: Path) -> None:
    engine = Engine(Model(models / "scripted.gguf"), n_ctx=1024, threads=1)
    thread = engine._thread
    streams = [start(engine, f"{index} KEYC") for index in range(12)]
    del engine
    gc.collect()
    assert [stream.result().text for stream in streams] == [SCRIPT["KEYC"]] * 12
    streams.clear()
    gc.collect()
    thread.join(120)
    assert not thread.is_alive()


def test_closing_under_a_crowd_ends_everybody(models: Path) -> None:
    engine = Engine(Model(models / "chatty.gguf"), n_ctx=2048, threads=1)
    ends: list[str] = []

    def caller(index: int) -> None:
        try:
            while True:
                start(engine, str(index), constraint=ENDLESS).result()
        except EngineClosedError:
            ends.append("closed")
        except TierwiseError as error:  # the tokenizer has gone already
            ends.append("closed" if "was closed" in str(error) else repr(error))

    threads = [threading.Thread(target=caller, args=(index,)) for index in range(THREADS)]
    for thread in threads:
        thread.start()
    wait_until(lambda: engine.metrics().active == 8)
    closers = [threading.Thread(target=engine.close) for _ in range(3)]
    for thread in closers:
        thread.start()
    for thread in closers + threads:
        thread.join(120)
    assert ends == ["closed"] * THREADS
