"""The pruners by name: plain functions of a model, calibration batches and the share to keep.

Each returns a copy and leaves the model as it was. ``keep`` is in 0..1 and a promise: never less
than that share stays, and more where whole layers, groups or multiples ask for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

from torch import nn

from tierwise.compression.pruning.calibration import Batch
from tierwise.compression.pruning.decoder import ModelT, decoder_of
from tierwise.compression.pruning.depth import prune_layers, removal_order
from tierwise.compression.pruning.sparsity import prune_nm, prune_wanda
from tierwise.compression.pruning.width import possible_channels, possible_kv_heads, prune_width
from tierwise.runtime.errors import ConfigError

_M = TypeVar("_M", bound=nn.Module)


class Pruner(Protocol):
    """A method of pruning."""

    def __call__(self, model: _M, batches: Sequence[Batch], keep: float) -> _M:
        """A pruned copy of the model, with at least the share ``keep`` left."""


def depth(model: ModelT, batches: Sequence[Batch], keep: float) -> ModelT:
    """Whole layers go, chosen greedily by real KL; fewer layers are quicker in every engine.

    The first and the last layer stay. Source: arXiv 2403.03853 for the shortlist; see
    `removal_order`.

    Raises:
        UnsupportedModelError: See `decoder_of`.
        ConfigError: ``keep`` is no share, or asks for more layers than may go.
    """
    layers = len(decoder_of(model).layers)
    count = layers - math.ceil(layers * _checked(keep) - 1e-9)
    order = removal_order(model, batches, count) if count else ()
    return prune_layers(model, [removal.layer for removal in order])


def width(model: ModelT, batches: Sequence[Batch], keep: float) -> ModelT:
    """MLP channels and whole KV groups go, the same number in every layer; rows stay multiples
    of 32. A model with few KV heads may keep them all.

    Source: arXiv 2312.11983 for the scores; see `prune_width`.

    Raises:
        UnsupportedModelError: See `decoder_of`.
        ConfigError: ``keep`` is no share.
    """
    decoder = decoder_of(model)
    return prune_width(
        model,
        batches,
        channels=possible_channels(decoder, _checked(keep)),
        kv_heads=possible_kv_heads(decoder, keep),
    )


def wanda(model: ModelT, batches: Sequence[Batch], keep: float) -> ModelT:
    """Single weights become zero: neither bytes nor seconds are saved in llama.cpp.

    Source: arXiv 2306.11695; see `prune_wanda`.

    Raises:
        UnsupportedModelError: See `decoder_of`.
        ConfigError: ``keep`` is no share.
    """
    return prune_wanda(model, batches, 1 - _checked(keep))


def two_of_four(model: ModelT, batches: Sequence[Batch], keep: float) -> ModelT:
    """Two of every four neighbours become zero; quicker on NVIDIA's sparse tensor cores only.

    Source: arXiv 2306.11695 for the scores; see `prune_nm`.

    Raises:
        UnsupportedModelError: See `decoder_of`.
        ConfigError: ``keep`` is not 0.5, or rows are no multiples of four.
    """
    if keep != 0.5:
        raise ConfigError(f"2:4 sparsity keeps half of the weights; keep is {keep}, give 0.5")
    return prune_nm(model, batches)


def _checked(keep: float) -> float:
    if not 0 < keep <= 1:
        raise ConfigError(f"keep is {keep}; give the share to keep, above 0 and at most 1")
    return keep


PRUNERS: dict[str, Pruner] = {
    "depth": depth,
    "width": width,
    "wanda": wanda,
    "2:4": two_of_four,
}
"""Methods of pruning by name."""
