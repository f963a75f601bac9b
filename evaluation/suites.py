"""Suites by name: lists of tasks whose replies can be checked, and which of them are alike.

``SUITES`` says how each name becomes tasks; a path becomes the user's own prompts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tierwise.evaluation.bfcl import CATEGORIES, Category, load_bfcl
from tierwise.evaluation.own_prompts import OwnTask, read_prompts
from tierwise.evaluation.task_generator import generate_tasks
from tierwise.evaluation.tasks import Checkable
from tierwise.runtime.chat import Reasoning
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.files import sha256_of

DEFAULT_TASKS = 240
OWN_SEED = 1_000
"""Added to the seed of generated tasks, so that they are not those that builds measure on."""


@dataclass(frozen=True, slots=True)
class Suite:
    """Tasks under one name.

    Args:
        name: With all that decides what its tasks are, so that equal names have equal tasks.
        tasks: In the order in which they are worth running: any beginning is a fair sample.
        groups: Of each task; those of one group are alike.
    """

    name: str
    tasks: tuple[Checkable, ...]
    groups: tuple[str, ...]


def _tools(seed: int, limit: int | None) -> Suite:
    """Each task with tools of its own: what is learned of some is told of others in earnest.

    More of them begin with the same ones, so that nothing is asked twice. Of a thousand, some two
    dozen repeat a request: these are of one group.
    """
    # Students may have been taught on the other split.
    tasks = generate_tasks(limit or DEFAULT_TASKS, seed=OWN_SEED + seed, split="test")
    first: dict[str, str] = {}
    groups = [first.setdefault(task.call.request, task.id) for task in tasks]
    return _shuffled(f"tools-{seed}", tasks, groups, seed)


def _bfcl(category: Category) -> Callable[[int, int | None], Suite]:
    def load(seed: int, limit: int | None) -> Suite:
        tasks = load_bfcl(category)
        groups = [",".join(sorted(tool.name for tool in task.call.tools)) for task in tasks]
        whole = _shuffled(f"bfcl-{category}", tasks, groups, seed)
        return Suite(whole.name, whole.tasks[:limit], whole.groups[:limit])

    return load


SUITES: dict[str, Callable[[int, int | None], Suite]] = {
    "tools": _tools,
    **{f"bfcl-{category}": _bfcl(category) for category in CATEGORIES},
}
"""By name: the suite for a seed, and at most so many of its tasks."""


def load_suite(name: str, *, seed: int = 0) -> Suite:
    """A suite of `SUITES`, perhaps with a limit ("tools:120", "bfcl-multiple:50").

    Raises:
        ConfigError: There is no such suite, or the limit is no number above 0.
        MissingExtraError: The package with its data is not installed.
    """
    base, _, limit = name.partition(":")
    if base not in SUITES:
        raise ConfigError(
            f"there is no suite {base!r}; there are {', '.join(SUITES)}. Give your own prompts as "
            "a file: --data FILE.jsonl"
        )
    if limit and not (limit.isdigit() and int(limit)):
        raise ConfigError(f"the limit in {name!r} must be a whole number above 0")
    return SUITES[base](seed, int(limit) if limit else None)


def with_reasoning(suite: Suite, reasoning: Reasoning) -> Suite:
    """The same tasks asked of models that think, or do not; under a name of its own."""

    def told(task: Any) -> Checkable:
        changed: Checkable = replace(task, call=replace(task.call, reasoning=reasoning))
        return changed

    return Suite(f"{suite.name}-reasoning-{reasoning}", tuple(map(told, suite.tasks)), suite.groups)


def own_suite(path: Path, *, seed: int = 0) -> Suite:
    """The user's own prompts.

    Raises:
        ConfigError: See `read_prompts`.
    """
    tasks: tuple[OwnTask, ...] = read_prompts(path)
    name = f"own-{path.name}-{sha256_of(path)[:12]}"  # a file that was changed is another suite
    return _shuffled(name, tasks, [task.group for task in tasks], seed)


def _shuffled(name: str, tasks: Sequence[Checkable], groups: Sequence[str], seed: int) -> Suite:
    """In an order in which groups follow each other at random, each of them whole."""
    by_group: dict[str, list[Checkable]] = {}
    for task, group in zip(tasks, groups, strict=True):
        by_group.setdefault(group, []).append(task)
    names = sorted(by_group)
    random.Random(f"tierwise-suite-{name}-{seed}").shuffle(names)
    ordered = [(task, group) for group in names for task in by_group[group]]
    return Suite(name, tuple(task for task, _ in ordered), tuple(group for _, group in ordered))
