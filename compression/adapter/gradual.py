"""Dynamic pruning in a training loop: masks that grow and may be lifted, cut at the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tierwise.compression.adapter.anatomy import Width, find_widths
from tierwise.compression.adapter.config import PruneOptions
from tierwise.compression.adapter.prune import cut, settle, stack_linears, units_left
from tierwise.compression.pruning.dynamic import DynamicPruner
from tierwise.compression.pruning.sparsity import nm_mask, unstructured_mask


class Gradual:
    """Masks heads, channels and weights while a loop trains, and cuts what is masked at the end.

    Units are compared by the size of their columns in the matrix out of them; those columns are
    zero while masked, and come back if training makes them larger than others (see
    `tierwise.compression.pruning.dynamic`).

    Args:
        model: Is changed in place.
        options: With ``gradual``.
        steps: Of the training.
    """

    def __init__(self, model: nn.Module, options: PruneOptions, steps: int) -> None:
        self._model, self._options = model, options
        self._widths: dict[str, list[Width]] = {}
        self._pruners: list[DynamicPruner] = []
        names = {module: name for name, module in model.named_modules()}
        end = max(1, round(steps * options.gradual_until))
        taken: set[str] = set()
        for kind in ("heads", "channels"):
            share = getattr(options, kind)
            if share:
                self._widths[kind] = widths = find_widths(model, kind)
                mask = _UnitMask(share, options.multiple, widths[0])
                only = {names[width.out_of] for width in widths}
                taken |= only
                self._start(share, end, mask, only)
        if options.sparsity:
            self._rest = [one for one in stack_linears(model) if names[one] not in taken]
            rest = {names[linear] for linear in self._rest}
            self._start(options.sparsity, end, _ZeroMask(options), rest)

    def _start(self, share: float, end: int, mask: Any, only: set[str]) -> None:
        every = self._options.gradual_every
        self._pruners.append(
            DynamicPruner(
                self._model, share, end=end, every=every, mask=mask, only=only.__contains__
            )
        )

    def step(self) -> None:
        """After each optimizer step."""
        for pruner in self._pruners:
            pruner.step()

    def finish(self) -> dict[str, Any]:
        """Cuts what is masked; says what is left, like `prune_model`."""
        told: dict[str, Any] = {}
        for pruner in self._pruners:
            pruner.finish()
        for kind, widths in self._widths.items():
            for width in widths:
                left = units_left(width, getattr(self._options, kind), self._options.multiple)
                size = _unit_size(width.out_of.weight, width.units)
                cut(width, size.topk(left).indices.sort().values)
            told[kind] = settle(self._model, kind)
        if self._options.sparsity:
            # Less than was asked for if the training ended early.
            weights = sum(linear.weight.numel() for linear in self._rest)
            left = sum(int(linear.weight.count_nonzero()) for linear in self._rest)
            told["sparsity"] = 1 - left / weights
        return told


class _UnitMask:
    """True for the columns of units that stay; all layers have widths like ``example``."""

    def __init__(self, share: float, multiple: int, example: Width) -> None:
        self._share, self._units = share, example.units
        self._left = units_left(example, share, multiple)

    def __call__(self, scores: Tensor, share: float) -> Tensor:
        gone = round((self._units - self._left) * share / self._share)
        size = _unit_size(scores, self._units)
        keep = torch.ones_like(size, dtype=torch.bool)
        keep[size.topk(gone, largest=False).indices] = False
        return keep.repeat_interleave(scores.shape[1] // self._units).expand_as(scores)


class _ZeroMask:
    """True for weights that stay, within rows; 2:4 comes as a whole once the share is reached."""

    def __init__(self, options: PruneOptions) -> None:
        self._options = options

    def __call__(self, scores: Tensor, share: float) -> Tensor:
        if self._options.pattern == "2:4" and share >= self._options.sparsity:
            return nm_mask(scores)
        return unstructured_mask(scores, share)


def _unit_size(weight: Tensor, units: int) -> Tensor:
    squares = weight.detach().float().square().sum(0)
    return squares.reshape(units, -1).sum(1)
