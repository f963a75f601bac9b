"""Sparsity in place: Wanda's scores, unstructured and n:m masks, and what was really reached.

Wanda (Sun et al., arXiv 2306.11695) scores a weight by its size times the norm of its input over
calibration tokens and compares within a row of the matrix, layer by layer in order; nothing is
retrained.

What does not pay: llama.cpp stores a zero like any other weight and multiplies with it. A sparse
model is as many bytes in GGUF and as many seconds per token as a dense one, at any sparsity, and
it answers worse. 2:4 is read by the sparse tensor cores of NVIDIA GPUs (Ampere and later) through
PyTorch or vLLM, not by llama.cpp. For a family of GGUF tiers take depth or width instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tierwise.compression.pruning.calibration import Batch, LayerWalk
from tierwise.compression.pruning.decoder import (
    DecoderLayer,
    ModelT,
    copy_without,
    decoder_of,
    evaluating,
)
from tierwise.compression.pruning.order import Progress
from tierwise.runtime.errors import ConfigError

Mask = Callable[[Tensor], Tensor]
"""Scores of shape (out, in) become True where a weight stays."""


def wanda_scores(weight: Tensor, input_norms: Tensor) -> Tensor:
    """|W_ij| · ‖x_j‖, shape (out, in), float32. Source: arXiv 2306.11695, equation 1.

    Args:
        weight: Shape (out, in).
        input_norms: Of each input channel over all calibration tokens, shape (in,).
    """
    return weight.detach().abs().float() * input_norms.float()


def unstructured_mask(scores: Tensor, share: float) -> Tensor:
    """True where a weight stays; the lowest scores of each row go, the same number in every row.

    Args:
        scores: Shape (out, in).
        share: Of the weights that goes, in 0..1; rounded to whole weights of a row.

    Raises:
        ConfigError: No share in 0..1.
    """
    gone = round(checked_share(share) * scores.shape[1])
    lowest = scores.topk(gone, dim=1, largest=False).indices
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, False)


def layer_mask(scores: Tensor, share: float) -> Tensor:
    """True where a weight stays; the lowest scores of the whole matrix go.

    Args:
        scores: Shape (out, in).
        share: Of the weights that goes, in 0..1; rounded to whole weights.

    Raises:
        ConfigError: No share in 0..1.
    """
    return unstructured_mask(scores.reshape(1, -1), share).reshape(scores.shape)


def nm_mask(scores: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """True for the ``n`` highest scores of every ``m`` neighbours in a row.

    Args:
        scores: Shape (out, in), ``in`` a multiple of ``m``.
        n: Weights that stay.
        m: Of so many.

    Raises:
        ConfigError: No such pattern, or rows that it does not fit.
    """
    rows, width = scores.shape
    if not 0 < n < m or width % m:
        raise ConfigError(
            f"the pattern {n}:{m} does not fit rows of {width} weights: n must be from 1 to m - 1, "
            "and m divide the width"
        )
    blocks = scores.reshape(rows, width // m, m)
    mask = torch.zeros_like(blocks, dtype=torch.bool)
    return mask.scatter_(2, blocks.topk(n, dim=2).indices, True).reshape(rows, width)


def checked_share(share: float) -> float:
    """The share, if it is one.

    Raises:
        ConfigError: It is not in 0..1.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"the share of weights that go is {share}; it must be from 0 to 1")
    return share


def prune_wanda(
    model: ModelT,
    batches: Sequence[Batch],
    share: float = 0.5,
    *,
    progress: Progress | None = None,
) -> ModelT:
    """A copy with the lowest Wanda scores of each row set to zero, in all layers' projections.

    Embeddings, norms, biases and the head stay dense, as in the paper.

    Args:
        model: Any decoder that `decoder_of` knows; it is not touched.
        batches: Calibration text.
        share: Of each row's weights that becomes zero.
        progress: Called after each layer.

    Raises:
        UnsupportedModelError: See `decoder_of`.
        ConfigError: No share in 0..1; no batches.
    """
    checked_share(share)
    return _masked(model, batches, lambda scores: unstructured_mask(scores, share), progress)


def prune_nm(
    model: ModelT,
    batches: Sequence[Batch],
    n: int = 2,
    m: int = 4,
    *,
    progress: Progress | None = None,
) -> ModelT:
    """A copy with the ``n`` best Wanda scores of every ``m`` neighbours kept; see `prune_wanda`.

    Raises:
        UnsupportedModelError: See `decoder_of`.
        ConfigError: A pattern that the widths of the model do not fit; no batches.
    """
    decoder = decoder_of(model)
    for linear in (decoder.layers[0].q, decoder.layers[0].o, decoder.layers[0].down):
        nm_mask(linear.weight[:1], n, m)  # refuses before anything is copied
    return _masked(model, batches, lambda scores: nm_mask(scores, n, m), progress)


def _masked(
    model: ModelT, batches: Sequence[Batch], mask: Mask, progress: Progress | None
) -> ModelT:
    pruned = copy_without(model)
    walk = LayerWalk(decoder_of(pruned), batches)
    count = len(decoder_of(pruned).layers)
    with evaluating(pruned):
        for layer in walk:
            norms = _input_norms(walk, layer)
            for name, linear in layer.projections.items():
                linear.weight.mul_(mask(wanda_scores(linear.weight, norms[name])))
            if progress is not None:
                progress(f"layer {layer.index + 1} of {count}", (layer.index + 1) / count)
    return pruned


def _input_norms(walk: LayerWalk, layer: DecoderLayer) -> dict[str, Tensor]:
    """‖x_j‖ over all tokens for each projection of a layer, shape (in,), by its name."""
    squares: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            rows = walk.rows(arguments[0])
            squares[name] = squares.get(name, 0.0) + rows.square().sum(0)

        return add

    hooks = [
        linear.register_forward_pre_hook(watch(name)) for name, linear in layer.projections.items()
    ]
    try:
        walk.run()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total.sqrt() for name, total in squares.items()}


@dataclass(frozen=True, slots=True)
class SparsityReport:
    """Zeros that were counted in linear layers, weights alone.

    Args:
        zeros: In all of them.
        weights: In all of them.
        by_layer: Share of zeros by the module's name.
    """

    zeros: int
    weights: int
    by_layer: dict[str, float]

    @property
    def share(self) -> float:
        """Zeros per weight, 0..1."""
        return self.zeros / max(1, self.weights)


def sparsity_of(model: nn.Module) -> SparsityReport:
    """Counts the zeros in the weights of all linear layers of any model, its head included.

    Zeros are not bytes saved: see the head of this module.
    """
    zeros = weights = 0
    by_layer: dict[str, float] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            empty = module.weight.numel() - int(module.weight.count_nonzero())
            by_layer[name] = empty / module.weight.numel()
            zeros += empty
            weights += module.weight.numel()
    return SparsityReport(zeros, weights, by_layer)


def follows_nm(weight: Tensor, n: int = 2, m: int = 4) -> bool:
    """Whether no ``m`` neighbours of any row have more than ``n`` weights that are not zero.

    Args:
        weight: Shape (out, in).
    """
    if weight.shape[1] % m:
        return False
    return bool(((weight != 0).reshape(len(weight), -1, m).sum(2) <= n).all())
