"""Puts quantized modules in the place of a model's matrices, and plain ones back for training.

`quantize_model` stores every matrix with the same number of bits, or (adaptive) with as many as
it needs: each matrix alone is rounded to each choice, the divergence of the model's answers is
measured, and the sum of divergences is made smallest under a budget of bytes. That the sum
stands for the whole assumes that errors add up, which holds while each is small.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from tierwise.compression.adapter.batches import Batch
from tierwise.compression.adapter.config import QuantizeOptions
from tierwise.compression.adapter.importance import Reference
from tierwise.compression.adapter.packing import padded, rounded
from tierwise.compression.adapter.quantized import (
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedWeight,
)
from tierwise.compression.adapter.size import count_bytes
from tierwise.compression.precision.allocate import Choice, allocate
from tierwise.runtime.errors import ConfigError, UnsupportedModelError


def quantize_model(
    model: nn.Module, options: QuantizeOptions, batches: Sequence[Batch]
) -> dict[str, int]:
    """Quantizes a model in place.

    Args:
        model: Any model; its linear layers (also GPT-2's) and embeddings are stored anew.
        options: How.
        batches: To measure sensitivity with; unused unless the bits are adaptive.

    Returns:
        The bits of each matrix, by the name of its module.

    Raises:
        UnsupportedModelError: There is nothing to quantize.
        ConfigError: The budget is smaller than the smallest that the choices allow.
    """
    groups = _matrices(model, options.keep)
    if not groups:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no linear layer or embedding that could be quantized "
            f"(left out by the option keep: {list(options.keep)})"
        )
    if options.bits == "adaptive":
        bits = choose_bits(model, options, batches)
    else:
        bits = {names[0]: options.bits for names in groups}
    for names in groups:
        made: QuantizedWeight | None = None
        for name in names:
            made = _replace(model, name, bits[names[0]], options.group, made)
    return {name: bits[names[0]] for names in groups for name in names}


def choose_bits(
    model: nn.Module, options: QuantizeOptions, batches: Sequence[Batch]
) -> dict[str, int]:
    """The bits of each matrix (by the first name it has) that a budget of bytes pays for.

    Raises:
        ConfigError: The budget is smaller than the smallest that the choices allow.
    """
    groups = _matrices(model, options.keep)
    modules = dict(model.named_modules())
    before = count_bytes(model)
    weights = {names[0]: _weight(modules[names[0]]) for names in groups}
    kept = _held_elsewhere(model, {name for names in groups for name in names})
    rest = before - sum(
        weight.nbytes for name, weight in weights.items() if id(modules[name].weight) not in kept
    )
    budget = options.budget if options.budget is not None else int(before * options.budget_share)
    choices = sorted(set(options.choices))
    costs = {
        name: {bits: stored_bytes(weight.shape, bits, options.group) for bits in choices}
        for name, weight in weights.items()
    }
    least = rest + sum(min(cost.values()) for cost in costs.values())
    if least > budget:
        raise ConfigError(
            f"a budget of {budget} bytes is too small: with {choices[0]} bits for every matrix the "
            f"model takes {least}, {rest} of them for what is not quantized. Allow fewer bits, "
            "larger groups, or more bytes."
        )
    reference = Reference(model, batches)
    offers: dict[str, list[Choice]] = {}
    for name in weights:
        offers[name] = []
        for bits in choices:
            with _rounded_for_now(modules[name], bits, options.group):
                loss = reference.divergence(model)
            offers[name].append(Choice(type=str(bits), cost=costs[name][bits], loss=loss))
    chosen = allocate(offers, budget=budget - rest)
    return {name: int(choice.type) for name, choice in chosen.items()}


def stored_bytes(shape: Sequence[int], bits: int, group: int) -> int:
    """Bytes of a matrix of that shape, (rows, columns), with its scales."""
    width, size = padded(shape[1], bits, group)
    return int(shape[0]) * (width * bits // 8 + 2 * (width // size))


def _matrices(model: nn.Module, keep: Sequence[str]) -> list[list[str]]:
    """Names of modules that can be quantized; those that share a matrix stand together."""
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        if any(fnmatch(name, pattern) for pattern in keep):
            continue
        plain = type(module) in (nn.Linear, Conv1D) or is_plain_embedding(module)
        weight = getattr(module, "weight", None)
        if plain and isinstance(weight, Tensor) and weight.is_floating_point():
            found.setdefault(id(weight), []).append(name)
    return list(found.values())


def _held_elsewhere(model: nn.Module, names: Collection[str]) -> set[int]:
    """Ids of the parameters of all other modules: what they share stays in floats for them."""
    return {
        id(parameter)
        for name, module in model.named_modules(remove_duplicate=False)
        if name not in names
        for parameter in module.parameters(recurse=False)
    }


def is_plain_embedding(module: nn.Module) -> bool:
    """An embedding that only looks rows up, and perhaps multiplies them by a number (Gemma)."""
    scaled = type(module).__name__.endswith("ScaledWordEmbedding")
    return isinstance(module, nn.Embedding) and (
        (type(module) is nn.Embedding and module.max_norm is None)
        or (scaled and isinstance(getattr(module, "scalar_embed_scale", None), float))
    )


def _weight(module: nn.Module) -> Tensor:
    """A module's matrix, shape (out, in); GPT-2's is stored the other way."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.T if isinstance(module, Conv1D) else weight


def _replace(
    model: nn.Module, name: str, bits: int, group: int, tied: QuantizedWeight | None
) -> QuantizedWeight:
    old: Any = model.get_submodule(name)
    weight = _weight(old)
    made: QuantizedWeight
    if isinstance(old, nn.Embedding):
        made = QuantizedEmbedding(
            old.num_embeddings,
            old.embedding_dim,
            bits,
            group,
            padding_idx=old.padding_idx,
            factor=float(getattr(old, "scalar_embed_scale", 1.0)),
            dtype=weight.dtype,
        )
    else:
        rows, columns = weight.shape
        made = QuantizedLinear(
            columns, rows, bits, group, bias=old.bias is not None, dtype=weight.dtype
        )
        made.bias = old.bias
    made.train(old.training)
    if tied is None:
        made.store(weight)
    else:
        made.share(tied)
    model.set_submodule(name, made)
    return made


@contextmanager
def _rounded_for_now(module: nn.Module, bits: int, group: int) -> Iterator[None]:
    weight: Tensor = module.weight  # type: ignore[assignment]
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            new = rounded(_weight(module), bits, group)
            weight.copy_(new.T if isinstance(module, Conv1D) else new)
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)


# --- training a quantized model ---------------------------------------------------------


class _Rounded(nn.Module):
    """A weight as it will be stored; gradients pass as if it were not (Bengio et al.,
    arXiv 1308.3432, straight-through)."""

    def __init__(self, bits: int, group: int) -> None:
        super().__init__()
        self.bits, self.group = bits, group

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (rounded(weight, self.bits, self.group) - weight).detach()


def thaw(model: nn.Module) -> dict[str, QuantizedWeight]:
    """Puts float modules in the place of quantized ones, that round in every forward pass.

    Training them is quantization-aware. Returns what `freeze` needs to undo it.

    Raises:
        UnsupportedModelError: An embedding that multiplies its rows (Gemma); nothing is changed.
    """
    frozen = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuantizedWeight)
    }
    for name, old in frozen.items():
        if isinstance(old, QuantizedEmbedding) and old.factor != 1.0:
            raise UnsupportedModelError(
                f"{name} multiplies its rows, so that it cannot be trained once it is quantized. "
                "Distil first: steps: [prune, distill, quantize]."
            )
    shared: dict[int, nn.Parameter] = {}
    for name, old in frozen.items():
        weight = shared.setdefault(old.codes.data_ptr(), nn.Parameter(old.weight.clone()))
        made: Any
        if isinstance(old, QuantizedEmbedding):
            made = nn.Embedding(
                old.num_embeddings, old.embedding_dim, padding_idx=old.padding_idx, device="meta"
            )
        else:
            assert isinstance(old, QuantizedLinear)
            made = nn.Linear(old.in_features, old.out_features, bias=False, device="meta")
            made.bias = old.bias
        made.weight = weight
        made.train(old.training)
        parametrize.register_parametrization(made, "weight", _Rounded(old.bits, old.group))
        model.set_submodule(name, made)
    return frozen


def freeze(model: nn.Module, frozen: Mapping[str, QuantizedWeight]) -> None:
    """Stores what `thaw` gave out to be trained, rounded as the training saw it."""
    stored: dict[int, QuantizedWeight] = {}
    for name, old in frozen.items():
        trained: Any = model.get_submodule(name)
        weight = trained.parametrizations.weight.original
        if id(weight) in stored:
            old.share(stored[id(weight)])
        else:
            old.store(weight, search=False)
            stored[id(weight)] = old
        if isinstance(old, QuantizedLinear):
            old.bias = trained.bias
        old.train(trained.training)
        model.set_submodule(name, old)
