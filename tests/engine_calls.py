"""Requests to an engine in few words, for the tests of the scheduler and its neighbours."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tierwise.runtime.engine import Engine
from tierwise.runtime.generation import GenerationRequest
from tierwise.runtime.stream import GenerationStream


def ask(engine: Engine, text: str = "hi", **fields: Any) -> GenerationRequest:
    prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    return GenerationRequest(tuple(engine.model.tokenize(prompt)), **fields)


def answer(engine: Engine, text: str = "hi", **fields: Any) -> str:
    return engine.submit(ask(engine, text, **fields)).result().text


def start(engine: Engine, text: str = "hi", **fields: Any) -> GenerationStream:
    return engine.submit(ask(engine, text, **fields))


def wait_until(true: Callable[[], object], timeout_s: float = 300.0) -> None:
    """Returns as soon as something is so; fails if it never is."""
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


def all_free(engine: Engine) -> bool:
    """Whether nobody is being answered and no sequence is held."""
    metrics = engine.metrics()
    held = [one for one in engine._scheduler.cache.sequences if one.busy]
    return metrics.active == metrics.waiting == 0 and not held
