"""Which tiers are worth making: sizes are known before a byte is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tierwise.compression.quantize import plan_quantization
from tierwise.compression.recipe import BuildConfig, TierRecipe
from tierwise.runtime.errors import ConfigError

LADDER = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M")
"""Types considered without a recipe, best first. Below Q3_K_M small models are of no use."""

MIN_STEP = 0.08
"""A type must save this share of the type above it; fallbacks often eat the difference."""

PRUNE_SHARE = 0.1
"""Of the layers, for the pruned candidate. More needs distillation to be of use."""

PROTECTED = 2
"""Layers at either end that are never pruned."""

FULL_PRECISION = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tier that may be made.

    ``quantization`` is "copy" for the base as it is.
    """

    name: str
    quantization: str
    prune_count: int
    pruned_layers: tuple[int, ...] | None
    """None until they are chosen."""
    bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    candidates: tuple[Candidate, ...]
    skipped: dict[str, str]
    """Names of those not worth making, and why."""


def plan_tiers(source: Path, *, file_type: str, layers: int, config: BuildConfig) -> Plan:
    """Chooses candidates from exact sizes.

    Args:
        source: The base's GGUF file.
        file_type: The base's own type; a quantized base is itself a candidate.
        layers: Of the base.

    Raises:
        ConfigError: Nothing fits ``config.max_bytes``; says what the smallest would take.
    """
    recipes = config.candidates or _default_recipes(file_type, layers)
    sized = [_size(source, recipe, file_type, layers) for recipe in recipes]
    names = [candidate.name for candidate in sized]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"the recipe has more than one tier called {', '.join(map(repr, twice))}; give each "
            "a name of its own"
        )
    skipped: dict[str, str] = {}
    fitting = []
    for candidate in sized:
        if config.max_bytes is not None and candidate.bytes > config.max_bytes:
            skipped[candidate.name] = (
                f"{candidate.bytes / 1e6:,.0f} MB is over the limit of "
                f"{config.max_bytes / 1e6:,.0f} MB"
            )
        else:
            fitting.append(candidate)
    if not fitting:
        smallest = min(sized, key=lambda candidate: candidate.bytes)
        raise ConfigError(
            f"no tier fits max_bytes={config.max_bytes:,}: the smallest, {smallest.name}, takes "
            f"{smallest.bytes:,} bytes. Raise the limit or take a smaller base."
        )
    if not config.candidates:
        fitting = _spread(_steps(fitting, skipped), config.tiers + 2, skipped)
    return Plan(tuple(fitting), skipped)


def _default_recipes(file_type: str, layers: int) -> list[TierRecipe]:
    copies = [] if file_type in FULL_PRECISION else [TierRecipe(quantization="copy")]
    types = [TierRecipe(quantization=name) for name in LADDER if name != file_type]
    pruned = [TierRecipe(quantization="Q8_0", prune=PRUNE_SHARE)]
    return [*copies, *types, *(pruned if _prune_count(layers, PRUNE_SHARE) else [])]


def _prune_count(layers: int, share: float) -> int:
    """How many layers a share is; one between the protected ones stays."""
    return min(round(layers * share), max(0, layers - 2 * PROTECTED - 1))


def _size(source: Path, recipe: TierRecipe, file_type: str, layers: int) -> Candidate:
    if isinstance(recipe.prune, tuple):
        wrong = [layer for layer in recipe.prune if not 0 <= layer < layers]
        if wrong:
            raise ConfigError(f"the recipe prunes layers {wrong}; the base has 0 to {layers - 1}")
        chosen: tuple[int, ...] | None = tuple(sorted(set(recipe.prune)))
        count = len(chosen or ())
    else:
        count = _prune_count(layers, recipe.prune)
        chosen = None if count else ()
    if recipe.quantization == "copy":
        name, size = file_type.lower(), source.stat().st_size
        if count:
            raise ConfigError("a tier with quantization 'copy' cannot be pruned; name a type")
    else:
        name = recipe.quantization.lower()
        # All layers of a decoder are of one size, so any will do until they are chosen.
        layers_out = chosen if chosen is not None else range(PROTECTED, PROTECTED + count)
        size = plan_quantization(source, recipe.quantization, pruned_layers=layers_out).bytes
    if count:
        name = f"d{layers - count}-{name}"
    return Candidate(recipe.name or name, recipe.quantization, count, chosen, size)


def _steps(candidates: Sequence[Candidate], skipped: dict[str, str]) -> list[Candidate]:
    """Leaves out types that are hardly smaller than a better one."""
    kept: list[Candidate] = []
    above: Candidate | None = None
    for candidate in candidates:
        if candidate.quantization == "copy" or candidate.prune_count:
            kept.append(candidate)
            continue
        if above is not None and candidate.bytes > above.bytes * (1 - MIN_STEP):
            skipped[candidate.name] = (
                f"{candidate.bytes / 1e6:,.0f} MB is hardly less than {above.name} with "
                f"{above.bytes / 1e6:,.0f} MB"
            )
            continue
        kept.append(candidate)
        above = candidate
    return kept


def _spread(candidates: Sequence[Candidate], most: int, skipped: dict[str, str]) -> list[Candidate]:
    """At most ``most``: the ends, and types spread evenly over the sizes between."""
    types = [c for c in candidates if c.quantization != "copy" and not c.prune_count]
    others = [c for c in candidates if c not in types]
    room = max(1, most - len(others))
    if len(types) > room:
        picks = {round(i) for i in np.linspace(0, len(types) - 1, room)}
        for index, candidate in enumerate(types):
            if index not in picks:
                skipped[candidate.name] = "enough other sizes were tried; name it in a recipe"
        types = [candidate for index, candidate in enumerate(types) if index in picks]
    return [*types, *others]


def choose_layers(influence: NDArray[np.float64], count: int) -> tuple[int, ...]:
    """The ``count`` layers that change the hidden state least (arXiv 2403.03853).

    Keeping neighbours apart does not help: of SmolLM2-135M at Q8_0, taking layers 25 and 26 costs
    a KL of 0.28, taking 13 and 25 costs 0.29 (1,024 held-out tokens).

    Args:
        influence: Per layer; NaN where unknown. `PROTECTED` layers at either end stay.
    """
    layers = len(influence)
    order = [int(i) for i in np.argsort(influence) if PROTECTED <= i < layers - PROTECTED]
    return tuple(sorted(order[:count]))
