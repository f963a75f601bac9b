"""How large a model is, counted so that zeros and copies save nothing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tierwise.compression.adapter.quantized import QuantizedWeight


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the state dict that has memory of its own, by its first name."""
    seen: dict[tuple[int, tuple[int, ...], torch.dtype], str] = {}
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if seen.setdefault(_memory(tensor), name) == name:
            found[name] = tensor.detach()
    return found


def tied_names(model: nn.Module) -> dict[str, str]:
    """Names that share another one's memory, with that one (tied embeddings)."""
    seen: dict[tuple[int, tuple[int, ...], torch.dtype], str] = {}
    return {
        name: first
        for name, tensor in model.state_dict(keep_vars=True).items()
        if (first := seen.setdefault(_memory(tensor), name)) != name
    }


def count_bytes(model: nn.Module) -> int:
    """What the stored tensors take, in memory and (but for a header of names) on disk."""
    return sum(tensor.nbytes for tensor in stored_tensors(model).values())


def count_parameters(model: nn.Module) -> int:
    """Numbers that the model has learned; shared ones once, zeros like all others.

    The integers of a quantized matrix are its parameters, whatever their bits. Its scales are
    not, but `count_bytes` has them.
    """
    return sum(numel for _, numel in _learned(model))


def share_of_zeros(model: nn.Module) -> float:
    """Share of the learned numbers that are zero."""
    zeros = total = 0
    for tensor, numel in _learned(model):
        zeros += numel - int(tensor.count_nonzero())
        total += numel
    return zeros / max(total, 1)


def _learned(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
    seen = set()
    for parameter in model.parameters():  # shared ones once
        yield parameter.detach(), parameter.numel()
    for module in model.modules():
        if isinstance(module, QuantizedWeight) and _memory(module.codes) not in seen:
            seen.add(_memory(module.codes))
            weight = module.weight
            yield weight, weight.numel()


def _memory(tensor: Tensor) -> tuple[int, tuple[int, ...], torch.dtype]:
    # Empty tensors have no address of their own.
    address = tensor.data_ptr() if tensor.numel() else id(tensor)
    return address, tuple(tensor.shape), tensor.dtype
