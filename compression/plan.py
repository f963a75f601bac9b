"""Which tiers are worth making: sizes are known before a byte is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tierwise.compression.quantize import plan_quantization
from tierwise.compression.recipe import BuildConfig, TierRecipe
from tierwise.compression.tier_source import FULL_PRECISION, TierSource
from tierwise.runtime.context import KVType
from tierwise.runtime.errors import ConfigError

LADDER = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M")
"""Types considered without a recipe, best first. Below Q3_K_M small models are of no use."""

MIN_STEP = 0.08
"""A type must save this share of the type above it; fallbacks often eat the difference."""

PRUNE_SHARE = 0.1
"""Of the layers, for the pruned candidate of a thorough build. More needs distillation."""

PROTECTED = 2
"""Layers at either end that are never pruned."""

BEST_TYPE = "Q8_0"
"""The most exact type that is worth its bytes."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tier that may be made.

    Args:
        quantization: llama.cpp file type, or "copy" for the base as it is.
        prune_count: Layers of the source that go.
        pruned_layers: Their numbers; None until they are chosen.
        bytes: Of its file; of a searched mix about so many until it is found.
        source: The student that it is made of; empty for the base.
        overrides: Tensor types by name in the source.
        kv_type: Of its keys and values when it runs.
    """

    name: str
    quantization: str
    prune_count: int
    pruned_layers: tuple[int, ...] | None
    bytes: int
    source: str = ""
    overrides: Mapping[str, str] = field(default_factory=dict)
    kv_type: KVType = "f16"


@dataclass(frozen=True, slots=True)
class Plan:
    candidates: tuple[Candidate, ...]
    skipped: dict[str, str]
    """Names of those not worth making, and why."""


def plan_tiers(sources: Sequence[TierSource], *, file_type: str, config: BuildConfig) -> Plan:
    """Chooses candidates from exact sizes.

    Args:
        sources: The base first, then its students.
        file_type: The base's own type; a quantized base is itself a candidate.

    Raises:
        ConfigError: Nothing fits ``config.max_bytes``; says what the smallest would take. Or a
            recipe's source is not there.
    """
    base, *students = sources
    recipes = config.candidates or (
        *_default_recipes(file_type, base.layers, prune=_prunes(config)),
        *(recipe for student in students for recipe in _student_recipes(student)),
    )
    by_name = {source.name: source for source in sources}
    sized = [_size(_source_of(recipe, by_name), recipe, file_type) for recipe in recipes]
    names = [candidate.name for candidate in sized]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"the recipe has more than one tier called {', '.join(map(repr, twice))}; give each "
            "a name of its own"
        )
    skipped: dict[str, str] = {}
    fitting = []
    for candidate in sized:
        if (reason := too_large(candidate.bytes, config)) is not None:
            skipped[candidate.name] = reason
        else:
            fitting.append(candidate)
    if not fitting:
        smallest = min(sized, key=lambda candidate: candidate.bytes)
        raise ConfigError(
            f"no tier fits max_bytes={config.max_bytes:,}: the smallest, {smallest.name}, takes "
            f"{smallest.bytes:,} bytes. Raise the limit or take a smaller base."
        )
    if not config.candidates:
        own = [candidate for candidate in fitting if not candidate.source]
        if config.effort != "thorough":
            own = _no_larger_than_base(own, skipped)
        taught = [candidate for candidate in fitting if candidate.source]
        room = config.tiers + 2 - len(students)
        fitting = [*_spread(_steps(own, skipped), max(1, room), skipped), *taught]
    return Plan(tuple(fitting), skipped)


def too_large(size: int, config: BuildConfig) -> str | None:
    """Why a tier of so many bytes cannot be, if it is over the limit."""
    if config.max_bytes is None or size <= config.max_bytes:
        return None
    return f"{size / 1e6:,.0f} MB is over the limit of {config.max_bytes / 1e6:,.0f} MB"


def _source_of(recipe: TierRecipe, sources: Mapping[str, TierSource]) -> TierSource:
    if recipe.source in sources:
        return sources[recipe.source]
    known = ", ".join(repr(name) for name in sources if name) or "none (`distill` makes them)"
    raise ConfigError(f"the recipe has a tier of student {recipe.source!r}; students are: {known}")


def _default_recipes(file_type: str, layers: int, *, prune: bool) -> list[TierRecipe]:
    copies = [] if file_type in FULL_PRECISION else [TierRecipe(quantization="copy")]
    types = [TierRecipe(quantization=name) for name in LADDER if name != file_type]
    pruned = [TierRecipe(quantization="Q8_0", prune=PRUNE_SHARE)]
    return [*copies, *types, *(pruned if prune and _prune_count(layers, PRUNE_SHARE) else [])]


def _student_recipes(student: TierSource) -> list[TierRecipe]:
    """The most exact type and the one that it was trained to be rounded to."""
    types = dict.fromkeys(filter(None, (BEST_TYPE, student.trained_for)))
    return [TierRecipe(source=student.name, quantization=kind) for kind in types]


def _prunes(config: BuildConfig) -> bool:
    """Whether a pruned tier without recovery is tried: it hardly ever stays, and students are
    better in every way."""
    return config.effort == "thorough" and config.distill is None


def _prune_count(layers: int, share: float) -> int:
    """How many layers a share is; one between the protected ones stays."""
    return min(round(layers * share), max(0, layers - 2 * PROTECTED - 1))


def _size(source: TierSource, recipe: TierRecipe, file_type: str) -> Candidate:
    if isinstance(recipe.prune, tuple):
        wrong = [layer for layer in recipe.prune if not 0 <= layer < source.layers]
        if wrong:
            raise ConfigError(
                f"the recipe prunes layers {wrong}; the base has 0 to {source.layers - 1}"
            )
        chosen: tuple[int, ...] | None = tuple(sorted(set(recipe.prune)))
        count = len(chosen or ())
    else:
        count = _prune_count(source.layers, recipe.prune)
        chosen = None if count else ()
    if recipe.quantization == "copy":
        name, size = file_type.lower(), source.gguf.stat().st_size
        if count:
            raise ConfigError("a tier with quantization 'copy' cannot be pruned; name a type")
    else:
        name = recipe.quantization.lower()
        # All layers of a decoder are of one size, so any will do until they are chosen.
        layers_out = chosen if chosen is not None else range(PROTECTED, PROTECTED + count)
        size = plan_quantization(
            source.gguf,
            recipe.quantization,
            pruned_layers=layers_out,
            overrides=recipe.overrides,
        ).bytes
    if count:
        name = f"d{source.layers - count}-{name}"
    if source.name:
        name = f"{source.name}-{name}"
    return Candidate(
        recipe.name or name,
        recipe.quantization,
        count,
        chosen,
        size,
        source=source.name,
        overrides=recipe.overrides,
        kv_type=recipe.kv_type,
    )


def _no_larger_than_base(
    candidates: Sequence[Candidate], skipped: dict[str, str]
) -> list[Candidate]:
    """Leaves out types that take more room than a quantized base itself, which loses nothing.

    They could only be quicker, and the quickest of those is tried: `BEST_TYPE` has the fastest
    kernels on most processors.
    """
    whole = min((c.bytes for c in candidates if c.quantization == "copy"), default=None)
    kept = []
    for candidate in candidates:
        named = candidate.quantization in ("copy", BEST_TYPE)
        if whole is not None and candidate.bytes > whole and not named:
            skipped[candidate.name] = (
                f"{candidate.bytes / 1e6:,.0f} MB is more than the base itself, which loses nothing"
            )
        else:
            kept.append(candidate)
    return kept


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
