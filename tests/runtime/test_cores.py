"""Turns at the processor: nobody more than there are cores, in order, and nobody waits for ever."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_calls import wait_until
from tiny_models import write_tiny_gguf

from tierwise.runtime import cores
from tierwise.runtime.chat import Call, Message
from tierwise.runtime.context import Context
from tierwise.runtime.cores import Turns, release_workers, turns
from tierwise.runtime.llama import Model
from tierwise.runtime.loaded_tier import LoadedTier


def test_never_more_than_there_are() -> None:
    four = Turns(4)
    lock, used, most = threading.Lock(), 0, 0

    def work(threads: int) -> None:
        nonlocal used, most
        for _ in range(300):
            taken = four.take(threads)
            with lock:
                used += taken
                most = max(most, used)
            with lock:
                used -= taken
            four.give(taken)

    workers = [threading.Thread(target=work, args=(n,)) for n in (1, 1, 2, 3, 4, 9)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert 1 <= most <= 4 and four.take(4) == 4


def waiting(two: Turns, act: Callable[[], None]) -> threading.Thread:
    """A thread that has queued up."""
    before = len(two._queue)
    thread = threading.Thread(target=act)
    thread.start()
    wait_until(lambda: len(two._queue) > before)
    return thread


def test_turns_come_in_order_of_arrival() -> None:
    two, order = Turns(2), []
    taken = two.take(2)

    def act(number: int) -> None:
        mine = two.take(2 if number % 2 else 1)
        order.append(number)
        two.give(mine)

    threads = [waiting(two, lambda number=number: act(number)) for number in range(1, 6)]
    assert order == []
    two.give(taken)
    for thread in threads:
        thread.join(60)
    assert order == [1, 2, 3, 4, 5]


def test_who_gives_up_waiting_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while another computes."""
    two = Turns(2)
    taken = two.take(1)
    done = threading.Event()

    class Interrupted:
        """A lock whose second `acquire` is broken off, after somebody else has queued up."""

        def __init__(self) -> None:
            self.calls = 0

        def acquire(self) -> None:
            self.calls += 1
            if self.calls == 2:
                monkeypatch.undo()
                later.append(waiting(two, lambda: (two.take(1), done.set())[1]))
                raise KeyboardInterrupt

    later: list[threading.Thread] = []
    monkeypatch.setattr(cores.threading, "Lock", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        two.take(2)
    later[0].join(60)  # the one core that was free all the time
    assert done.is_set() and not two._queue
    two.give(taken)
    two.give(1)
    assert two.take(2) == 2


def threads() -> set[str]:
    """Of this process, as the kernel sees them."""
    return set(os.listdir("/proc/self/task"))  # noqa: PTH208 - a folder that changes meanwhile


def wait_for_helpers(before: set[str], count: int) -> None:
    """Until so many threads came since, or are still there. Others may end meanwhile, and one that
    was joined is listed for a moment."""
    wait_until(lambda: len(threads() - before) == count)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_helpers_go_and_come_back(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf")
    before = threads()
    with Model(path) as model, Context(model, 256, threads=3) as context:
        for position in range(2):
            context.decode([5], position)
            assert len(threads() - before) == 2
            release_workers()
            wait_for_helpers(before, 0)
        context.decode([5], 2)
    wait_for_helpers(before, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_tier_with_nothing_to_do_keeps_no_helpers(tmp_path: Path) -> None:
    call = Call((Message("user", "hello"),), max_tokens=4)
    before = threads()
    paths = [write_tiny_gguf(tmp_path / f"{name}.gguf") for name in "ab"]
    tiers = [LoadedTier(path, n_ctx=256, threads=2) for path in paths]
    for _ in range(2):
        for tier in tiers:
            assert tier.reply(call).usage.completion_tokens > 0
            wait_for_helpers(before, 2)  # the two engines' own threads
    for tier in tiers:
        tier.close()
    assert turns().take(99) == turns().cores  # nobody has kept any
    turns().give(turns().cores)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_childs_turns_are_its_own() -> None:
    taken = turns().take(1)
    child = os.fork()
    if child == 0:
        os._exit(0 if turns().take(99) == turns().cores else 1)
    assert os.waitpid(child, 0)[1] == 0
    turns().give(taken)
