"""Quantization-aware training: weights are used as they will be stored.

In the forward pass every linear weight is rounded as llama.cpp's reference quantizer would, in
the backward pass the rounding is not there (straight-through estimator, Bengio et al.,
arXiv 1308.3432). What is trained are the weights behind it, so that the student learns to live
with the rounding before it happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor, nn

from tierwise.runtime.errors import ConfigError

BLOCK = 32
"""Weights that share a scale, along the input channels."""


def round_q4_0(weight: Tensor) -> Tensor:
    """As ``quantize_row_q4_0_ref`` (ggml-quants.c) stores it: 16 steps from −8·d to 7·d, where d
    makes the weight of largest magnitude −8·d, in float16."""
    blocks = weight.float().reshape(-1, BLOCK)
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    scale = torch.where(high > -low, high, low) / -8
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    steps = (blocks * inverse + 8.5).floor_().clamp_(0, 15).sub_(8)
    return steps.mul_(scale.half().float()).reshape(weight.shape)


def round_q8_0(weight: Tensor) -> Tensor:
    """As ``quantize_row_q8_0_ref`` stores it: 255 steps from −127·d to 127·d."""
    blocks = weight.float().reshape(-1, BLOCK)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    return (blocks * inverse).round_().mul_(scale.half().float()).reshape(weight.shape)


ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {"Q4_0": round_q4_0, "Q8_0": round_q8_0}
"""By llama.cpp's name of the type."""


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        return rounding(weight).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _linears(model: nn.Module, head: nn.Module | None) -> Iterator[nn.Linear]:
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield module


def check_rounding(model: nn.Module, quantization: str, head: nn.Module | None) -> None:
    """Refuses types that are not known here, and widths that they cannot store.

    Raises:
        ConfigError: Says which.
    """
    if quantization not in ROUNDINGS:
        raise ConfigError(
            f"training cannot be aware of {quantization!r}; it knows {', '.join(ROUNDINGS)}"
        )
    for module in _linears(model, head):
        if module.in_features % BLOCK:
            raise ConfigError(
                f"{quantization} stores blocks of {BLOCK} weights, and a layer has "
                f"{module.in_features} input channels"
            )


@contextmanager
def rounded(model: nn.Module, quantization: str, head: nn.Module | None = None) -> Iterator[None]:
    """Within it, all linear layers but ``head`` compute with rounded weights."""
    check_rounding(model, quantization, head)
    rounding = ROUNDINGS[quantization]
    straight_through: Any = _StraightThrough.apply

    def patched(module: nn.Linear) -> Callable[[Tensor], Tensor]:
        def forward(inputs: Tensor) -> Tensor:
            weight: Tensor = straight_through(module.weight, rounding)
            return F.linear(inputs, weight, module.bias)

        return forward

    modules = list(_linears(model, head))
    for module in modules:
        setattr(module, "forward", patched(module))  # noqa: B010 - a method, on this module alone
    try:
        yield
    finally:
        for module in modules:
            del module.forward


@torch.no_grad()
def round_weights(model: nn.Module, quantization: str, head: nn.Module | None = None) -> None:
    """Leaves in the model what the stored file will hold, in place."""
    check_rounding(model, quantization, head)
    for module in _linears(model, head):
        module.weight.copy_(ROUNDINGS[quantization](module.weight))
