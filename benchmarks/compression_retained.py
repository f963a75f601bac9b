"""How much of the base's tool calling its tiers keep, and how much quicker they are.

Success on BFCL simple_python and on our own suite; `retained` is a tier's success divided by the
base's on the same tasks, with a paired bootstrap interval of 95 %; `speedup` the base's seconds at
Q8_0 divided by the tier's over the same prompts, in short blocks in turn. Replies are kept by the
files' hashes, so that a run that was stopped (or had no more seconds) goes on where it was.

python benchmarks/compression_retained.py FAMILY_OR_GGUF... [--base GGUF] [--bfcl N] [--own N]
    [--bfcl-files PATH] [--speed-prompts N] [--at-once N] [--seconds S] [--overlap] [--json FILE]

The questions of BFCL: pip install --no-deps bfcl-eval==2026.3.23, or --bfcl-files WHEEL_OR_FOLDER.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, report, say

from tierwise import Family
from tierwise.compression.distillation.documents import DataConfig, collect_documents, totals
from tierwise.compression.distillation.overlap import overlap
from tierwise.compression.quantize import quantize
from tierwise.compression.source import resolve_base
from tierwise.evaluation.bfcl import load_bfcl
from tierwise.evaluation.success import AT_ONCE, run_suite
from tierwise.evaluation.task_generator import generate_tasks
from tierwise.evaluation.tasks import SUITE_NAME, Checkable, wilson_interval
from tierwise.runtime.files import home, sha256_of
from tierwise.runtime.llama import Model
from tierwise.runtime.loaded_tier import LoadedTier
from tierwise.runtime.resources import probe

CONTEXT = 8192
BLOCK = 12
"""Prompts that each file answers before the next one has its turn."""

RESAMPLES = 10_000
OWN_SEED = 4
"""Of our suite here; the family's own measurements use other tasks."""


@dataclass(frozen=True)
class Candidate:
    """A file whose success is measured."""

    name: str
    path: Path
    sha256: str


class Kept:
    """What was measured already: JSON lines of a key and a value; damaged ones are ignored."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    key, value = json.loads(line)
                except ValueError:
                    continue
                self._values[key] = value

    def get(self, *key: object) -> Any:
        return self._values.get(" ".join(map(str, key)))

    def put(self, value: Any, *key: object) -> None:
        name = " ".join(map(str, key))
        self._values[name] = value
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([name, value]) + "\n")


def main() -> None:
    options = parse()
    base, tiers = files(options)
    suites = tasks_of(options)
    kept = Kept(options.cache / f"retained-{SUITE_NAME}.jsonl")
    ends = time.monotonic() + options.seconds
    rest = sum(
        measure(one, name, tasks, kept, ends=ends, threads=options.threads)
        for one in (base, *tiers)
        for name, tasks in suites.items()
    )
    name = next(iter(suites), "")
    timed = blocks_of(name, suites.get(name, ())[: options.speed_prompts])
    if tiers and not rest:
        rest += time_in_turn(base, tiers, timed, kept, options, ends=ends)
    figures: dict[str, Any] = {
        "base": {"file": base.path.name, **success(base, suites, kept)},
        "tiers": {
            tier.name: {
                "file": tier.path.name,
                "bytes": tier.path.stat().st_size,
                **success(tier, suites, kept),
                "retained": {
                    name: retained(base, tier, name, tasks, kept) for name, tasks in suites.items()
                },
                **speedup(base, tier, timed, kept, options),
            }
            for tier in tiers
        },
    }
    if options.overlap:
        figures["overlap"] = overlap_with_bfcl(base, options)
    if rest:
        figures["unfinished"] = f"{rest} prompts are left; run the same command again"
    report(figures, options.json)


def parse() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="family folders or GGUF files")
    parser.add_argument("--base", help="what to compare with; bundled:smollm2, at Q8_0")
    parser.add_argument("--bfcl", type=int, default=400, help="prompts of BFCL simple_python")
    parser.add_argument("--own", type=int, default=240, help="tasks of our own suite")
    parser.add_argument("--bfcl-files", type=Path, help="folder or wheel of bfcl-eval")
    parser.add_argument("--speed-prompts", type=int, default=96)
    parser.add_argument("--at-once", type=int, default=1, help="prompts in progress, for speed")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so many")
    parser.add_argument("--threads", type=int, default=probe().threads)
    parser.add_argument("--overlap", action="store_true", help="with the distillation documents")
    parser.add_argument("--cache", type=Path, default=home() / "benchmarks")
    return parser.parse_args()


def files(options: argparse.Namespace) -> tuple[Candidate, list[Candidate]]:
    """The base at Q8_0, and the tiers to compare with it (but not the base itself)."""
    if options.base and Path(options.base).is_file():
        path = Path(options.base)
    else:
        source = resolve_base(options.base or "bundled:smollm2").gguf
        path = options.cache / f"{source.stem.removesuffix('.Q4_1')}.Q8_0.gguf"
        if not path.is_file():
            options.cache.mkdir(parents=True, exist_ok=True)
            quantize(source, path, "Q8_0", threads=options.threads)
    base = Candidate("base", path, sha256_of(path))
    tiers: list[Candidate] = []
    for given in options.files:
        found = {given.stem: given}
        if given.is_dir():
            family = Family.load(given)
            found = {tier.name: family.path(tier) for tier in family.tiers if tier.file}
        tiers += [Candidate(name, file, sha256_of(file)) for name, file in found.items()]
    return base, [tier for tier in tiers if tier.sha256 != base.sha256]


def tasks_of(options: argparse.Namespace) -> dict[str, tuple[Checkable, ...]]:
    suites: dict[str, tuple[Checkable, ...]] = {}
    if options.bfcl:
        suites["bfcl"] = load_bfcl("simple_python", options.bfcl_files, limit=options.bfcl)
    if options.own:
        suites["own"] = generate_tasks(options.own, seed=OWN_SEED, split="test")
    return suites


def loaded(one: Candidate, threads: int) -> LoadedTier:
    return LoadedTier(one.path, n_ctx=CONTEXT, threads=threads)


# --- Success --------------------------------------------------------------------------------------


def measure(
    one: Candidate,
    suite: str,
    tasks: Sequence[Checkable],
    kept: Kept,
    *,
    ends: float,
    threads: int,
) -> int:
    """Runs the tasks that are not known yet, until time is up; returns how many are left."""
    missing = [task for task in tasks if kept.get(one.sha256, suite, task.id) is None]
    if not missing or time.monotonic() > ends:
        return len(missing)
    say(f"{one.name}: {len(missing)} prompts of {suite}")
    with loaded(one, threads) as tier:
        while missing and time.monotonic() < ends:
            block, missing = missing[:AT_ONCE], missing[AT_ONCE:]
            for outcome in run_suite(tier, block):
                kept.put(int(outcome.passed), one.sha256, suite, outcome.task.id)
    return len(missing)


def outcomes(one: Candidate, suite: str, tasks: Sequence[Checkable], kept: Kept) -> list[Any]:
    return [kept.get(one.sha256, suite, task.id) for task in tasks]


def success(
    one: Candidate, suites: Mapping[str, Sequence[Checkable]], kept: Kept
) -> dict[str, dict[str, Any]]:
    out = {}
    for name, tasks in suites.items():
        known = [passed for passed in outcomes(one, name, tasks, kept) if passed is not None]
        share = wilson_interval(sum(known), len(known))
        out[name] = {
            "success": round(share.value, 4),
            "low": round(share.low, 4),
            "high": round(share.high, 4),
            "n": share.n,
        }
    return out


def retained(
    base: Candidate, tier: Candidate, suite: str, tasks: Sequence[Checkable], kept: Kept
) -> dict[str, float | int]:
    """The tier's success divided by the base's, over the tasks that both have answered."""
    pairs = np.array([
        pair
        for pair in zip(
            outcomes(base, suite, tasks, kept), outcomes(tier, suite, tasks, kept), strict=True
        )
        if None not in pair
    ]).reshape(-1, 2)  # fmt: skip
    return ratio(pairs, lambda sums: sums[..., 1] / np.maximum(1, sums[..., 0]))


def ratio(pairs: np.ndarray, of: Callable[[np.ndarray], np.ndarray]) -> dict[str, float | int]:
    """A ratio of sums over pairs, with its interval from resampling the pairs."""
    if not len(pairs):
        return {"n": 0}
    drawn = np.random.default_rng(0).integers(0, len(pairs), (RESAMPLES, len(pairs)))
    low, high = np.quantile(of(pairs[drawn].sum(axis=1)), (0.025, 0.975))
    return {
        "value": round(float(of(pairs.sum(axis=0))), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "n": len(pairs),
    }


# --- Speed ----------------------------------------------------------------------------------------


Block = tuple[str, Sequence[Checkable]]
"""Prompts that are timed together, and the name that says which these are."""


def blocks_of(suite: str, tasks: Sequence[Checkable]) -> list[Block]:
    """All of them; the last may be shorter."""
    parts = [tasks[at : at + BLOCK] for at in range(0, len(tasks), BLOCK)]
    return [(f"{suite} {part[0].id} {len(part)}", part) for part in parts]


def time_in_turn(
    base: Candidate,
    tiers: Sequence[Candidate],
    blocks: Sequence[Block],
    kept: Kept,
    options: argparse.Namespace,
    *,
    ends: float,
) -> int:
    """Times blocks of prompts, each by the base and by all tiers in turn; returns what is left.

    A block's seconds are kept only where base and tier had it in the same turn.
    """
    todo = [
        (block, waiting)
        for block in blocks
        if (waiting := [t for t in tiers if kept.get(*timing(base, t, block, options)) is None])
    ]
    if not todo or time.monotonic() > ends:
        return sum(len(tasks) for (_, tasks), _ in todo)
    say(f"speed: {len(todo)} blocks of {BLOCK} prompts")
    with ExitStack() as stack:
        open_tiers = {
            one.sha256: stack.enter_context(loaded(one, options.threads)) for one in (base, *tiers)
        }
        warm = generate_tasks(4, seed=OWN_SEED, split="calibration")
        for tier in open_tiers.values():
            run_suite(tier, warm, at_once=options.at_once)
        while todo and time.monotonic() < ends:
            block, waiting = todo.pop(0)
            turn = [base, *waiting] if len(todo) % 2 == 0 else [*waiting, base]
            seconds = {}
            for one in turn:
                began = time.perf_counter()
                run_suite(open_tiers[one.sha256], block[1], at_once=options.at_once)
                seconds[one.sha256] = time.perf_counter() - began
            for tier in waiting:
                pair = [seconds[base.sha256], seconds[tier.sha256]]
                kept.put(pair, *timing(base, tier, block, options))
    return sum(len(tasks) for (_, tasks), _ in todo)


def timing(
    base: Candidate, tier: Candidate, block: Block, options: argparse.Namespace
) -> tuple[object, ...]:
    how = f"{options.threads}x{options.at_once}"
    return "seconds", base.sha256, tier.sha256, how, block[0]


def speedup(
    base: Candidate,
    tier: Candidate,
    blocks: Sequence[Block],
    kept: Kept,
    options: argparse.Namespace,
) -> dict[str, Any]:
    found = [(len(block[1]), kept.get(*timing(base, tier, block, options))) for block in blocks]
    pairs = np.array([pair for _, pair in found if pair is not None]).reshape(-1, 2)
    out: dict[str, Any] = {"speedup": ratio(pairs, lambda sums: sums[..., 0] / sums[..., 1])}
    if len(pairs):
        base_s, tier_s = pairs.sum(axis=0) / sum(n for n, pair in found if pair is not None)
        out["seconds_per_prompt"] = {
            "base": round(float(base_s), 4),
            "tier": round(float(tier_s), 4),
        }
    return out


# --- What was learned from ------------------------------------------------------------------------


def overlap_with_bfcl(base: Candidate, options: argparse.Namespace) -> dict[str, Any]:
    """Questions of BFCL that share eight words in a row with the distillation documents."""
    documents = collect_documents(base.path, DataConfig(answers="gold"))
    with Model(base.path, vocab_only=True) as model:
        texts = [
            b"".join(model.piece(int(token)) or b" " for token in document.tokens).decode(
                errors="replace"
            )
            for document in documents
        ]
    questions = load_bfcl("simple_python", options.bfcl_files)
    found = overlap(texts, {task.id: task.question for task in questions})
    names = {tool.name for task in questions for tool in task.call.tools}
    same = sorted(name for name in names if any(f"- {name}(" in text for text in texts))
    return {
        "documents": len(documents),
        "tokens": sum(total.tokens for total in totals(documents).values()),
        "questions": found.questions,
        "touched": found.touched,
        "share_of_8_grams": round(found.share, 6),
        "examples": dict(list(found.examples.items())[:8]),
        "tools_of_the_same_name": same,
    }


if __name__ == "__main__":
    main()
