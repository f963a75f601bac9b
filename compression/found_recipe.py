"""The recipe that a build found: every choice spelled out, so that it can be repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tierwise.compression.distillation.config import DistillConfig
from tierwise.compression.plan import Candidate
from tierwise.compression.recipe import BuildConfig
from tierwise.compression.tier_source import TierSource
from tierwise.runtime.files import write_atomically

RECIPE = "recipe.yaml"
"""Beside ``family.json``."""


def found_recipe(
    config: BuildConfig,
    kept: Sequence[Candidate],
    students: Sequence[TierSource],
    *,
    threads: int,
) -> dict[str, Any]:
    """A recipe whose build gives the same tiers, byte by byte.

    Nothing is left to a search or to a clock: candidates are the kept ones, with the layers and
    tensor types that were chosen; students have their layers, and the steps that they took in
    place of minutes. The processor must be of the same kind, as matrix products are rounded
    differently elsewhere.
    """
    recipe = config.model_dump(mode="json", exclude={"candidates", "distill", "max_bytes"})
    recipe |= {"tiers": len(kept), "keep_all": True, "mixed": False, "threads": threads}
    if config.distill is not None:
        recipe["distill"] = _pinned(config.distill, students)
    recipe["candidates"] = [
        {
            "name": candidate.name,
            "source": candidate.source,
            "quantization": candidate.quantization,
            "prune": list(candidate.pruned_layers or ()),
            "overrides": dict(candidate.overrides),
            "kv_type": candidate.kv_type,
        }
        for candidate in kept
    ]
    return recipe


def _pinned(config: DistillConfig, students: Sequence[TierSource]) -> dict[str, Any]:
    """The distillation with layers and steps as they came out."""
    out = config.model_dump(mode="json")
    for name in ("transcripts", "corpus"):
        out[name] = [str(path.expanduser().resolve()) for path in getattr(config, name)]
    taught = [source.distillation for source in students]
    if len(students) != len(config.students) or any(one is None for one in taught):
        return out
    steps = [one.steps for one in taught if one is not None]
    out["steps"] = sum(steps)
    for recipe, source, count in zip(out["students"], students, steps, strict=True):
        recipe |= {"layers": source.layers, "prune": list(source.pruned_layers), "share": count}
    return out


def write_recipe(folder: Path, base: str, recipe: Mapping[str, object]) -> Path:
    """Writes ``recipe.yaml``.

    Raises:
        DiskFullError: There is no room for it.
    """
    path = folder / RECIPE
    text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=100)
    first = f"# tierwise build {base} --out DIR --recipe {RECIPE}   makes these tiers again\n"
    write_atomically(path, first + text)
    return path
