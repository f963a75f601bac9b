"""What each layer, head and channel is worth, measured on batches.

A head's or channel's worth is how much it adds to the hidden states: E‖Wx‖², for the numbers x
that it hands to the matrix out of it, whose columns for them are W (of a channel, E[x²] · ‖w‖²).
That is the exact mean square of what would be missing, and needs no gradients (as in Wanda,
arXiv 2306.11695, with whole columns in place of single weights). A layer's is the divergence of
the model's answers once it is gone; block influence (arXiv 2403.03853) says which to try.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tierwise.compression.adapter.anatomy import Width, find_stack, only_layers
from tierwise.compression.adapter.batches import Batch
from tierwise.compression.distillation.losses import forward_kl
from tierwise.compression.pruning.decoder import evaluating
from tierwise.compression.pruning.order import greedy_order
from tierwise.runtime.errors import ConfigError

SHORTLIST = 6
"""Layers that are tried for each that goes."""


def logits_of(model: nn.Module, batch: Mapping[str, Tensor], **options: Any) -> Any:
    """What the model answers to a batch on its own device; labels are not shown to it.

    Raises:
        ConfigError: It writes with a decoder of its own, which would have to see the labels.
    """
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
    known, kind = inspect.signature(model.forward).parameters, type(model).__name__
    if (
        getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        and "decoder_input_ids" in known
        and not kind.endswith("Classification")
    ):
        raise ConfigError(
            f"{kind} has an encoder and a decoder, and what its decoder is to read is not known "
            "here, so that it cannot be distilled or measured. Quantize it with a fixed number of "
            'bits: steps: ["quantize"].'
        )
    if "use_cache" in known:
        options["use_cache"] = False
    return model(**inputs, **options)


class Reference:
    """A model's answers as they are now, and how far it is from them later.

    Logits of whole vocabularies are large (tokens · vocabulary · 4 bytes): a few batches do.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        self._batches = batches
        with evaluating(model):
            self._answers = [_answer(logits_of(model, batch)) for batch in batches]

    def divergence(self, model: nn.Module) -> float:
        """Mean KL(answers then ‖ answers now) in nats; for bare models the cosine distance."""
        total = weight = 0.0
        with evaluating(model):
            for batch, (then, probable) in zip(self._batches, self._answers, strict=True):
                now, _ = _answer(logits_of(model, batch))
                mask = token_mask(batch, now)
                if probable:
                    value = forward_kl(now, then, mask=mask)
                else:
                    apart = 1 - torch.cosine_similarity(now.float(), then.float(), dim=-1)
                    value = apart.mean() if mask is None else apart[mask.bool()].mean()
                count = len(now) if mask is None else float(mask.sum())
                total += float(value) * count
                weight += count
        return max(0.0, total / max(weight, 1e-12))  # float32 may leave a little less than none


def token_mask(batch: Mapping[str, Tensor], answer: Tensor) -> Tensor | None:
    """Which tokens of an answer count, where it has one for every token: shape (batch, tokens)."""
    if answer.ndim < 3:
        return None
    return batch["attention_mask"].to(answer.device)


def _answer(output: Any) -> tuple[Tensor, bool]:
    """What to compare, and whether it is logits."""
    logits = getattr(output, "logits", None)
    if logits is None:
        return output.last_hidden_state, False
    # One number is a score (regression), not a distribution.
    return logits, logits.shape[-1] > 1


def block_influence(model: nn.Module, batches: Sequence[Batch]) -> list[float]:
    """1 − cos(input, output) of every layer, a mean over tokens that are no padding."""
    layers = find_stack(model).layers
    totals = [0.0] * len(layers)
    counts = [0] * len(layers)
    mask = torch.ones(0)

    def watch(place: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = out[0] if isinstance(out, tuple) else out
            kept = mask.to(after.device).bool()
            cosine = torch.cosine_similarity(before[kept].float(), after[kept].float(), dim=-1)
            totals[place] += float((1 - cosine).sum())
            counts[place] += len(cosine)

        return hook

    handles = [
        layer.register_forward_hook(watch(place), with_kwargs=True)
        for place, layer in enumerate(layers)
    ]
    try:
        with evaluating(model):
            for batch in batches:
                mask = batch["attention_mask"]
                logits_of(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return [total / max(count, 1) for total, count in zip(totals, counts, strict=True)]


def layers_to_drop(model: nn.Module, batches: Sequence[Batch], count: int) -> tuple[int, ...]:
    """The layers that are missed least, one after the other: ``count`` of them, in order."""
    total = len(find_stack(model).layers)
    reference = Reference(model, batches)

    def left(gone: tuple[int, ...]) -> list[int]:
        return [place for place in range(total) if place not in gone]

    def influence(gone: tuple[int, ...]) -> dict[int, float]:
        with only_layers(model, left(gone)):
            return dict(zip(left(gone), block_influence(model, batches), strict=True))

    def divergence(gone: tuple[int, ...]) -> float:
        with only_layers(model, left(gone)):
            return reference.divergence(model)

    order = greedy_order(total, count, influence, divergence, protected=0, shortlist=SHORTLIST)
    return tuple(removal.layer for removal in order)


class Moments:
    """Second moments of what goes into linear layers.

    Args:
        modules: Their inputs end in their ``in_features``.
        block: Neighbouring inputs whose products are wanted as well, such as those of a head.
    """

    def __init__(self, modules: Sequence[nn.Linear], block: int = 1) -> None:
        self._block = block
        self._sums: dict[nn.Module, Tensor] = {}
        self._counts: dict[nn.Module, int] = {}
        self.mask: Tensor | None = None
        self._handles = [module.register_forward_pre_hook(self._see) for module in modules]

    def _see(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        values: Tensor = args[0].detach().float()
        mask = self.mask
        if mask is not None and values.ndim == 3 and mask.shape == values.shape[:2]:
            values = values[mask.to(values.device).bool()]
        values = values.reshape(-1, values.shape[-1])
        if self._block == 1:
            products = values.square().sum(0).reshape(-1, 1, 1)
        else:
            units = values.reshape(len(values), -1, self._block)
            products = torch.einsum("nub,nuc->ubc", units, units)
        self._sums[module] = products + self._sums.get(module, 0.0)
        self._counts[module] = len(values) + self._counts.get(module, 0)

    def mean_products(self, module: nn.Linear) -> Tensor:
        """E[xxᵀ] of each block, shape (blocks, block, block); 1 where the module never ran."""
        if module not in self._sums:
            return torch.eye(self._block).repeat(module.in_features // self._block, 1, 1)
        return self._sums[module] / max(self._counts[module], 1)

    def mean_squares(self, module: nn.Linear) -> Tensor:
        """E[x²] of each input, shape (in_features,)."""
        return self.mean_products(module).diagonal(dim1=1, dim2=2).flatten()

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def measure_moments(
    model: nn.Module, batches: Sequence[Batch], modules: Sequence[nn.Linear], block: int = 1
) -> Moments:
    """The moments of what goes into ``modules`` over the batches, padding left out."""
    moments = Moments(modules, block)
    try:
        with evaluating(model):
            for batch in batches:
                moments.mask = batch["attention_mask"]
                logits_of(model, batch)
    finally:
        moments.close()
    return moments


def unit_worth(width: Width, weight: Tensor, moments: Moments) -> Tensor:
    """What each head or channel adds to the hidden states (mean square), shape (units,).

    Args:
        weight: Of `Width.out_of`, shape (hidden, inputs), without any mask.
        moments: Of blocks of `Width.block`.
    """
    columns = weight.detach().float().reshape(len(weight), width.units, width.block)
    products = moments.mean_products(width.out_of).to(columns.device)
    return torch.einsum("hub,ubc,huc->u", columns, products, columns)
