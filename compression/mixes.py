"""Searched mixes: a type for every tensor, as candidates beside the stock types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tierwise.compression.make import Maker
from tierwise.compression.measure import Measurements
from tierwise.compression.plan import BEST_TYPE, Candidate, too_large
from tierwise.compression.precision.search import costs_for, search_precision, weights_s
from tierwise.compression.precision.sensitivity import PROBE_TOKENS
from tierwise.compression.quantize import plan_quantization
from tierwise.compression.recipe import BuildConfig
from tierwise.compression.reporting import Reporter
from tierwise.compression.stages import Stages
from tierwise.compression.tier_source import TierSource
from tierwise.runtime.errors import ConfigError

ALONE = 0.7
"""Share of the best type's bytes that a mix gets where no other type was made."""


@dataclass(frozen=True, slots=True)
class _Budget:
    """Of a mix: bytes, or seconds of the reference call."""

    bytes: int | None = None
    seconds: float | None = None


def find_mixes(
    source: TierSource,
    maker: Maker,
    stock: Sequence[Candidate],
    measure: Measurements,
    config: BuildConfig,
    stages: Stages,
    reporter: Reporter,
    *,
    threads: int,
) -> tuple[list[Candidate], dict[str, str]]:
    """A mix of as many bytes as each stock type below the best, and one that is as quick as the
    quickest of them.

    For a student whose weights were trained to be rounded to a type there is nothing to gain at
    that type's own size; its mix lies between that and the best type.

    Args:
        stock: The source's candidates.

    Returns:
        The mixes, and those that were left out with the reason.
    """
    whole = [one for one in stock if not one.prune_count and one.quantization != "copy"]
    if not whole:
        return [], {}
    found: list[Candidate] = []
    skipped: dict[str, str] = {}
    imatrix = maker.seen.imatrix if config.imatrix else {}
    prefix = f"{source.name}-" if source.name else ""
    documents = measure.calibration_tokens(4 * PROBE_TOKENS)
    with reporter.stage(f"Searching types of {source.name or 'the base'}") as progress:
        budgets = [_Budget(bytes=size) for size in _sizes(source, whole)]
        if not source.name:
            table = costs_for(source.gguf, threads=threads, progress=progress)
            plans = (plan_quantization(source.gguf, one.quantization) for one in whole)
            budgets.append(
                _Budget(seconds=min(weights_s(source.gguf, plan.types, table) for plan in plans))
            )
        for budget in budgets:
            try:
                mix = search_precision(
                    source.gguf,
                    imatrix=imatrix,
                    documents=documents,
                    stages=stages,
                    threads=threads,
                    budget_bytes=budget.bytes,
                    budget_seconds=budget.seconds,
                    progress=progress,
                )
            except ConfigError:
                continue  # no mix is that small or that quick: the stock type is the least
            name = f"{prefix}mix-{mix.bytes / 1e6:.0f}mb"
            if name in skipped or name in {one.name for one in (*found, *stock)}:
                continue
            if (reason := too_large(mix.bytes, config)) is not None:
                skipped[name] = reason
                continue
            found.append(
                Candidate(
                    name=name,
                    quantization=mix.file_type,
                    prune_count=0,
                    pruned_layers=(),
                    bytes=mix.bytes,
                    source=source.name,
                    overrides=mix.overrides,
                )
            )
    return found, skipped


def _sizes(source: TierSource, whole: Sequence[Candidate]) -> list[int]:
    best = max(one.bytes for one in whole)
    others = sorted({one.bytes for one in whole if one.quantization != BEST_TYPE}, reverse=True)
    if not others:
        return [int(best * ALONE)]
    if source.trained_for is not None:
        return [int((best * others[0]) ** 0.5)]
    return others
