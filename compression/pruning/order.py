"""The order in which layers can go: greedy, by what is measured after each removal.

Neither torch nor llama.cpp is needed here: `depth` searches transformers models with it and
`gguf_depth` GGUF files.

Block influence alone ranks layers by how little each changes the hidden states (Men et al.,
arXiv 2403.03853). It does not see what the layers behind make of the change, nor that two layers
may each be spared but not both; the divergence of the model that is left sees both. So influence
only says which layers are worth a measurement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tierwise.runtime.errors import ConfigError

Progress = Callable[[str, float], None]
"""Called with what was done and the share of it all in 0..1."""


@dataclass(frozen=True, slots=True)
class Removal:
    """One layer that goes, in order.

    Args:
        layer: Its number in the base.
        kl: KL(base ‖ what is left) in nats per token, once it and all before it are gone.
        influence: Its block influence, 1 − cos(input, output), just before it went.
    """

    layer: int
    kl: float
    influence: float


def greedy_order(
    layers: int,
    count: int,
    influence: Callable[[tuple[int, ...]], Mapping[int, float]],
    divergence: Callable[[tuple[int, ...]], float],
    *,
    protected: int = 1,
    shortlist: int = 6,
    known: Sequence[Removal] = (),
    found: Callable[[Removal], None] | None = None,
    progress: Progress | None = None,
) -> tuple[Removal, ...]:
    """Chooses layers one at a time, so that the choice for fewer is the start of that for more.

    Args:
        layers: Of the base.
        count: How many shall go.
        influence: Of the layers left (base's numbers) once those given are gone. Asked once per
            removal.
        divergence: In nats per token, with those given gone. Asked ``shortlist`` times per
            removal; what is not finite is never chosen while something else is.
        protected: So many layers at either end stay.
        shortlist: Layers of the least influence that are measured per removal.
        known: The first removals, from a search that was cut short.
        found: Called with each new removal as soon as it is certain.
        progress: Called after each measurement.

    Raises:
        ConfigError: More layers shall go than may, or ``known`` does not fit.
    """
    free = range(protected, layers - protected)
    _check(layers, count, protected, shortlist, free, known)
    order = list(known[:count])
    while len(order) < count:
        gone = tuple(removal.layer for removal in order)
        rank = influence(gone)
        rest = [layer for layer in free if layer not in gone]
        rest.sort(key=lambda layer: (_or_infinite(rank.get(layer, math.nan)), layer))
        measured: list[tuple[float, int]] = []
        for layer in rest[:shortlist]:
            kl = divergence((*gone, layer))
            measured.append((_or_infinite(kl), layer))
            if progress is not None:
                share = len(order) + len(measured) / min(shortlist, len(rest))
                progress(f"without layer {layer}: KL {kl:.4f}", min(1.0, share / count))
        kl, layer = min(measured)
        removal = Removal(layer, kl, rank.get(layer, math.nan))
        order.append(removal)
        if found is not None:
            found(removal)
    return tuple(order)


def _or_infinite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _check(
    layers: int,
    count: int,
    protected: int,
    shortlist: int,
    free: range,
    known: Sequence[Removal],
) -> None:
    if protected < 0 or shortlist < 1:
        raise ConfigError(
            f"protected is {protected} and shortlist {shortlist}; the first must be 0 or more, the "
            "second 1 or more"
        )
    if not 0 <= count <= len(free):
        raise ConfigError(
            f"{count} layers shall go, but of {layers} layers with {protected} protected at either "
            f"end 0 to {len(free)} may. Ask for fewer."
        )
    numbers = [removal.layer for removal in known]
    if len(set(numbers)) < len(numbers) or not set(numbers) <= set(free):
        raise ConfigError(
            f"the removals known already ({numbers}) do not fit a model of {layers} layers with "
            f"{protected} protected at either end. Start the search afresh."
        )
