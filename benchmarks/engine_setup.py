"""What the measurements share: the model file, the sides over it, and ratios run by run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common import spread
from engine_peers import LlamaCpp, Prompts, Server, Tierwise
from engine_server import LlamaServer
from engine_workloads import Agent, agents

from tierwise import BuildConfig, Family, build_family
from tierwise.compression.recipe import TierRecipe
from tierwise.runtime.cores import release_workers
from tierwise.runtime.files import home

Figures = dict[str, Any]

SLOT_CONTEXT = 3072
"""Tokens of context for each slot of the server: enough for every conversation here."""


@dataclass
class Bench:
    """What all measurements share; sides are loaded when first asked for."""

    runs: int
    quick: bool
    threads: int
    llama_server: Path | None

    def __post_init__(self) -> None:
        self._open = ExitStack()
        self._sessions = itertools.count()
        self.family = _family(self.threads)
        self.path = self.family.path(self.family.tiers[0])
        self.prompts = Prompts(self.path)

    @cached_property
    def ours(self) -> Tierwise:
        side = Tierwise(self.family, self.prompts, self.threads)
        self._open.callback(side.model.close)
        return side

    @cached_property
    def peer(self) -> LlamaCpp:
        side = LlamaCpp(self.path, self.prompts, self.threads)
        self._open.callback(side.model.client.close)
        return side

    @contextmanager
    def server(self, slots: int, *, unified: bool = False) -> Iterator[Server]:
        process = LlamaServer(
            self.path,
            n_ctx=slots * SLOT_CONTEXT,
            slots=slots,
            threads=self.threads,
            unified=unified,
            program=self.llama_server,
        )
        with process:
            yield Server(process, self.prompts)

    def few(self, usual: int, quick: int) -> int:
        return quick if self.quick else usual

    @property
    def turns(self) -> int:
        """Of each agent."""
        return self.few(4, 2)

    def agents(self, count: int, *, own_tools: bool) -> list[Agent]:
        """Some whose prompts nobody has seen before."""
        session = next(self._sessions)
        return agents(session, count, own_tools=own_tools, max_tokens=self.few(64, 16))

    def close(self) -> None:
        self._open.close()


def in_turn(run: int, *sides: Any) -> Iterator[Any]:
    """The sides, in the other order every second run: what heats up or drifts hits all alike.

    After each, this thread's OpenMP helpers go: with those of two sides there would be more than
    cores, and all would compute at half their speed (see `runtime.cores`).
    """
    for side in sides if run % 2 == 0 else sides[::-1]:
        yield side
        release_workers()


def quotients(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Run by run."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def _family(threads: int) -> Family:
    """SmolLM2 at Q8_0, made once; later calls find it."""
    config = BuildConfig(
        candidates=(TierRecipe(quantization="Q8_0", name="q8_0"),),
        imatrix=False,
        held_out_tokens=512,
        suite_tasks=4,
        threads=threads,
    )
    return build_family("bundled:smollm2", home() / "benchmarks" / "smollm2-q8_0", config)
