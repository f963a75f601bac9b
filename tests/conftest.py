"""What every test shares: a Tierwise home of its own, and tiny models made once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest


def _keep_to_one_core() -> None:
    """For a worker of pytest-xdist: threads of llama.cpp, OpenBLAS and torch wait for each other
    in loops, which takes ten to a hundred times as long where two processes want the same cores."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"


_keep_to_one_core()  # before NumPy and torch are imported

from tiny_models import write_tiny_gguf  # noqa: E402

# A job that a shell started in the background ignores Ctrl-C, and its children with it; the
# tests that press it must not depend on who started them.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _home_of_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For fixtures that outlive a test; nothing may touch the user's own home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIERWISE_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERWISE_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def may_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets models with random weights ramble within a grammar for as long as a test wants."""
    monkeypatch.setattr("tierwise.runtime.loops.LOOP_TOKENS", 1 << 30)


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights that loads and runs; never write to it."""
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")
