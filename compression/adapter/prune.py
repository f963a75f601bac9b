"""Leaves parts of a model out, so that it really is smaller: layers, heads, channels, embeddings.

`prune_model` does all at once. With `PruneOptions.gradual`, heads, channels and zeros wait for
`gradual.Gradual`, which runs inside of a training loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tierwise.compression.adapter.anatomy import (
    HEAD_COUNTS,
    KV_COUNTS,
    Width,
    find_stack,
    find_widths,
    keep_layers,
)
from tierwise.compression.adapter.batches import Batch
from tierwise.compression.adapter.compact import CompactEmbedding, compact
from tierwise.compression.adapter.config import PruneOptions
from tierwise.compression.adapter.importance import layers_to_drop, measure_moments, unit_worth
from tierwise.compression.pruning.sparsity import nm_mask, unstructured_mask, wanda_scores
from tierwise.runtime.errors import ConfigError, UnsupportedModelError


def prune_model(
    model: nn.Module,
    options: PruneOptions,
    batches: Sequence[Batch],
    text: Iterable[Batch] | None = None,
) -> dict[str, Any]:
    """Prunes a model in place.

    Args:
        model: Of transformers.
        options: What shall go.
        batches: To measure with.
        text: To count tokens in; ``batches`` if not given.

    Returns:
        What went, for people: "layers" (numbers that went), "heads" and "channels" (left in each
        layer), "embedding_rank", "embedding_rows".

    Raises:
        UnsupportedModelError: Its parts cannot be told apart, or its embeddings are tied.
        ConfigError: Layers that it does not have, or nothing would be left.
    """
    told: dict[str, Any] = {}
    if options.min_token_count or options.embedding_rank is not None:
        told |= _prune_embedding(model, options, batches if text is None else text)
    gone = _layers_that_go(model, options, batches)
    if gone:
        count = len(find_stack(model).layers)
        keep_layers(model, [place for place in range(count) if place not in gone])
        told["layers"] = sorted(gone)
    if options.gradual:
        return told
    for kind in ("heads", "channels"):
        share = getattr(options, kind)
        if share:
            widths = find_widths(model, kind)
            outs = [width.out_of for width in widths]
            moments = measure_moments(model, batches, outs, widths[0].block)
            for width in widths:
                left = units_left(width, share, options.multiple)
                worth = unit_worth(width, width.out_of.weight, moments)
                cut(width, worth.topk(left).indices.sort().values)
            told[kind] = settle(model, kind)
    if options.sparsity:
        _zero(model, options, batches)
        told["sparsity"] = options.sparsity
    return told


def units_left(width: Width, share: float, multiple: int) -> int:
    """How many units stay of a width when ``share`` of them shall go; one at least.

    The columns that are left are a multiple of ``multiple``, as far as whole units allow it.
    """
    left = max(1, round(width.units * (1 - share)))
    if width.block % multiple:
        step = multiple if width.block == 1 else 1
        left = max(step, round(left / step) * step)
    return min(left, width.units)


def cut(width: Width, keep: Tensor) -> None:
    """Leaves out all units but ``keep`` (ascending), in all matrices that belong to them."""
    for module in width.into:
        rows = _columns(keep, module.out_features // width.units)
        module.weight = _cut(module.weight, rows, 0)
        if module.bias is not None:
            module.bias = _cut(module.bias, rows, 0)
        module.out_features = len(rows)
    columns = _columns(keep, width.block)
    width.out_of.weight = _cut(width.out_of.weight, columns, 1)
    width.out_of.in_features = len(columns)


def _columns(units: Tensor, block: int) -> Tensor:
    return (units.unsqueeze(1) * block + torch.arange(block, device=units.device)).flatten()


def _cut(parameter: Tensor, keep: Tensor, dimension: int) -> nn.Parameter:
    kept = parameter.detach().index_select(dimension, keep.to(parameter.device))
    return nn.Parameter(kept.clone(), requires_grad=parameter.requires_grad)


def _layers_that_go(
    model: nn.Module, options: PruneOptions, batches: Sequence[Batch]
) -> tuple[int, ...]:
    if not options.layers:
        return ()
    count = len(find_stack(model).layers)
    if isinstance(options.layers, float):
        drop = min(round(options.layers * count), count - 1)
        return layers_to_drop(model, batches, drop) if drop else ()
    if not set(options.layers) < set(range(count)):
        raise ConfigError(
            f"cannot take the layers {list(options.layers)} out of {count}: they must be numbers "
            f"from 0 to {count - 1}, and one layer must stay"
        )
    return options.layers


def settle(model: Any, kind: str) -> list[int]:
    """Lets counts of the layers' modules and of the config follow; returns the widths left."""
    widths = find_widths(model, kind)
    left = [width.units for width in widths]
    even = len(set(left)) == 1
    if kind == "channels":
        if even and hasattr(model.config, "intermediate_size"):
            model.config.intermediate_size = left[0]
        return left
    for width, layer in zip(widths, find_stack(model).layers, strict=True):
        query, key = width.into[:2]
        per_group = query.out_features // key.out_features
        for module in layer.modules():
            _set_counts(module, width.units * per_group, width.units)
    return left


def _set_counts(module: nn.Module, heads: int, groups: int) -> None:
    for names, count in ((HEAD_COUNTS, heads), (KV_COUNTS, groups)):
        for name in names:
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, count)
    size = getattr(module, "attention_head_size", None)
    if isinstance(getattr(module, "all_head_size", None), int) and isinstance(size, int):
        module.all_head_size = heads * size  # type: ignore[assignment]


def _zero(model: nn.Module, options: PruneOptions, batches: Sequence[Batch]) -> None:
    linears = stack_linears(model)
    moments = measure_moments(model, batches, linears)
    for linear in linears:
        norms = moments.mean_squares(linear).sqrt().to(linear.weight.device)
        with torch.no_grad():
            linear.weight.mul_(_mask(options, wanda_scores(linear.weight, norms)))


def _mask(options: PruneOptions, scores: Tensor) -> Tensor:
    return (
        nm_mask(scores) if options.pattern == "2:4" else unstructured_mask(scores, options.sparsity)
    )


def stack_linears(model: nn.Module) -> list[nn.Linear]:
    """All linear layers inside of the model's layers."""
    modules = [module for layer in find_stack(model).layers for module in layer.modules()]
    return [module for module in modules if isinstance(module, nn.Linear)]


def _prune_embedding(model: Any, options: PruneOptions, text: Iterable[Batch]) -> dict[str, Any]:
    embedding = model.get_input_embeddings()
    if type(embedding) is not nn.Embedding:
        raise UnsupportedModelError(
            f"the word embedding is a {type(embedding).__name__}, not a plain one. Write "
            "embedding_rank: null and min_token_count: 0."
        )
    head = model.get_output_embeddings()
    if head is not None and getattr(head, "weight", None) is embedding.weight:
        raise UnsupportedModelError(
            f"{type(model).__name__} predicts words with the very embedding that reads them "
            "(tied), so that it cannot be made smaller alone. Write embedding_rank: null and "
            "min_token_count: 0."
        )
    counts = torch.zeros(embedding.num_embeddings)
    for batch in text:
        ids = batch["input_ids"][batch["attention_mask"].bool()]
        counts += torch.bincount(ids.cpu(), minlength=len(counts))
    counts = counts.to(embedding.weight.device)
    made: CompactEmbedding = compact(
        embedding, counts, min_count=options.min_token_count, rank=options.embedding_rank
    )
    model.set_input_embeddings(made)
    return {"embedding_rows": made.kept, "embedding_rank": made.rank}
