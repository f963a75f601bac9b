"""Width pruning of a transformers decoder: MLP channels, and attention by whole KV groups.

A channel's importance is the root mean square of its activation times the norm of its column in
the down projection: Wanda's score (Sun et al., arXiv 2306.11695) summed over a structure, which
is FLAP's "Wanda-sp" (An et al., arXiv 2312.11983). A KV group is one key and value head with the
query heads that share it; its importance is the root mean square of what it adds to the hidden
states. Groups go whole, for with part of one the heads could no longer be shared evenly.

What is left is refitted: the columns kept take over, by ridge regression on the calibration
activations, what the columns that go had contributed (the closed form behind OBC and SparseGPT,
Frantar & Alistarh, arXiv 2208.11580 and 2301.00774). Layers are cut in order, so that each is
measured on what the cut ones before it put out.

All layers keep the same widths, as llama.cpp's architectures want one number for all of them.
Widths are kept to multiples: llama.cpp stores rows in blocks, of 32 numbers for Q8_0 and Q4_0 and
of 256 for K-quants, and a row that is no multiple falls back to a larger type.

What did not work (SmolLM2-135M, 1,152 of 1,536 channels, 13,900 tokens of calibration; KL of
replies to 59 prompts of another kind, 0.142 nats as it is): choosing channels one at a time by
optimal brain surgeon 0.184, weighing tokens by the inverse of their hidden states' norms 0.143,
and with these weights a tenth of the damping 0.163, and refitting towards the base's hidden states
instead of the layer's own output 0.151. Leaving out the first token, whose activations
are the largest by far, 0.505: nothing may happen to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tierwise.compression.pruning.calibration import Batch, LayerWalk
from tierwise.compression.pruning.decoder import (
    Decoder,
    DecoderLayer,
    ModelT,
    copy_without,
    decoder_of,
    evaluating,
)
from tierwise.compression.pruning.order import Progress
from tierwise.runtime.errors import ConfigError

DAMPING = 0.1
"""Ridge of the refit as a share of the mean squared activation. SmolLM2-135M with 1,152 of 1,536
channels, refitted on 4,096 tokens: held-out KL 0.193 nats, and 0.309 without refit."""

_QUERY_AS_WIDE_AS_HIDDEN = ("Qwen2Model",)
"""Shapes whose query projection llama.cpp loads as a square matrix only."""


def prune_width(
    model: ModelT,
    batches: Sequence[Batch],
    *,
    channels: int | None = None,
    kv_heads: int | None = None,
    refit: bool = True,
    progress: Progress | None = None,
) -> ModelT:
    """A narrower copy of the model; the model itself is not touched.

    Args:
        model: Any decoder that `decoder_of` knows.
        batches: Calibration text; more tokens than there are channels, or the refit learns little.
        channels: Of each layer's MLP that stay; see `possible_channels`.
        kv_heads: Of each layer that stay, with their query heads; see `possible_kv_heads`.
        refit: Whether the columns that stay take over for those that go.
        progress: Called after each layer.

    Raises:
        UnsupportedModelError: See `decoder_of`.
        ConfigError: A width that the model cannot have; no batches.
    """
    before = decoder_of(model)
    _check(before, channels, kv_heads)
    pruned = copy_without(model)
    decoder = decoder_of(pruned)
    if channels in (None, before.ffn) and kv_heads in (None, before.kv_heads):
        return pruned
    walk = LayerWalk(decoder, batches)
    with evaluating(pruned):
        for layer in walk:
            if kv_heads is not None and kv_heads < before.kv_heads:
                _cut_groups(decoder, layer, _second_moment(walk, layer.o), kv_heads, refit)
            if channels is not None and channels < before.ffn:
                _cut_channels(layer, _second_moment(walk, layer.down), channels, refit)
            if progress is not None:
                share = (layer.index + 1) / len(decoder.layers)
                progress(f"layer {layer.index + 1} of {len(decoder.layers)}", share)
    _configure(decoder.config, before, channels, kv_heads)
    return pruned


def possible_channels(decoder: Decoder, keep: float, *, multiple: int = 32) -> int:
    """The fewest MLP channels that are at least the share ``keep`` and a multiple.

    Args:
        decoder: See `decoder_of`.
        keep: In 0..1.
        multiple: 32 for llama.cpp's Q8_0 and Q4_0, 256 for K-quants.

    Returns:
        All channels, where no fewer of them will do.

    Raises:
        ConfigError: ``keep`` or ``multiple`` makes no sense.
    """
    _check_keep(keep, multiple)
    wanted = max(1, math.ceil(decoder.ffn * keep - 1e-9))
    return min(decoder.ffn, -(-wanted // multiple) * multiple)


def possible_kv_heads(decoder: Decoder, keep: float, *, multiple: int = 32) -> int:
    """The fewest KV heads that are at least the share ``keep`` and that the model can have.

    With them the rows of the output projection must be a multiple, and the configuration valid:
    Llama and Gemma 2 and 3 want the number of query heads to divide the hidden size. llama.cpp's
    Qwen2 wants all query heads together to be as wide as the hidden states, so that it keeps its
    groups (`prune_width` can take them, for transformers only).

    Args:
        decoder: See `decoder_of`.
        keep: In 0..1.
        multiple: 32 for llama.cpp's Q8_0 and Q4_0, 256 for K-quants.

    Returns:
        All KV heads, where no fewer of them will do.

    Raises:
        ConfigError: ``keep`` or ``multiple`` makes no sense.
    """
    _check_keep(keep, multiple)
    group = decoder.group_size * decoder.head_dim
    if type(decoder.body).__name__ in _QUERY_AS_WIDE_AS_HIDDEN:
        return decoder.kv_heads
    fewest = max(1, math.ceil(decoder.kv_heads * keep - 1e-9))
    for count in range(fewest, decoder.kv_heads):
        if count * group % multiple == 0 and _refusal(decoder, None, count) is None:
            return count
    return decoder.kv_heads


def _check_keep(keep: float, multiple: int) -> None:
    if not 0 < keep <= 1 or multiple < 1:
        raise ConfigError(
            f"keep is {keep} and multiple {multiple}; the first must be above 0 and at most 1, the "
            "second 1 or more"
        )


def _check(decoder: Decoder, channels: int | None, kv_heads: int | None) -> None:
    for name, wanted, has in (
        ("channels", channels, decoder.ffn),
        ("KV heads", kv_heads, decoder.kv_heads),
    ):
        if wanted is not None and not 1 <= wanted <= has:
            raise ConfigError(f"cannot keep {wanted} of {has} {name}; give 1 to {has}")
    if (reason := _refusal(decoder, channels, kv_heads)) is not None:
        raise ConfigError(
            f"a {type(decoder.body).__name__} cannot have {kv_heads} KV heads: {reason}. "
            "possible_kv_heads() finds a number that it can have."
        )


def _refusal(decoder: Decoder, channels: int | None, kv_heads: int | None) -> str | None:
    """Why transformers would not load a configuration of these widths, if it would not."""
    from huggingface_hub.errors import StrictDataclassError

    config = type(decoder.config).from_dict(decoder.config.to_dict())
    _configure(config, decoder, channels, kv_heads)
    try:
        type(config).from_dict(config.to_dict())
    except (ValueError, StrictDataclassError) as error:
        return str(error).strip().splitlines()[-1].strip().rstrip(".")
    return None


def _configure(config: Any, before: Decoder, channels: int | None, kv_heads: int | None) -> None:
    if channels is not None:
        config.intermediate_size = channels
    if kv_heads is not None:
        head_dim = before.head_dim  # before the heads change: it may be derived from them
        config.num_attention_heads = kv_heads * before.group_size
        config.num_key_value_heads = kv_heads
        config.head_dim = head_dim


def _second_moment(walk: LayerWalk, linear: nn.Linear) -> Tensor:
    """Mean of x·xᵀ over the tokens that go into a linear layer, float32 (in, in)."""
    moment = torch.zeros(linear.in_features, linear.in_features, device=linear.weight.device)
    tokens = 0

    def add(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        nonlocal tokens
        rows = walk.rows(arguments[0])
        moment.addmm_(rows.T, rows)
        tokens += len(rows)

    hook = linear.register_forward_pre_hook(add)
    try:
        walk.run()
    finally:
        hook.remove()
    return moment / max(1, tokens)


def channel_importance(weight: Tensor, moment: Tensor) -> Tensor:
    """Root mean square activation times column norm, per input channel.

    Args:
        weight: Shape (out, in).
        moment: Mean of x·xᵀ, shape (in, in).
    """
    norms: Tensor = weight.float().norm(dim=0)
    return moment.diagonal().clamp_min(0).sqrt() * norms


def group_importance(weight: Tensor, moment: Tensor, groups: int) -> Tensor:
    """Root mean square of what each group of inputs adds to the output, shape (groups,).

    E‖W_g·x_g‖² is the trace of W_g·E[x_g·x_gᵀ]·W_gᵀ: exact, also where inputs are correlated.

    Args:
        weight: Shape (out, in), the inputs of a group side by side.
        moment: Mean of x·xᵀ, shape (in, in).
        groups: How many, of equal width.
    """
    size = weight.shape[1] // groups
    found = []
    for group in range(groups):
        part = slice(group * size, (group + 1) * size)
        columns = weight[:, part].float()
        found.append(((columns @ moment[part, part]) * columns).sum().clamp_min(0).sqrt())
    return torch.stack(found)


def refitted(weight: Tensor, moment: Tensor, kept: Tensor, *, damping: float = DAMPING) -> Tensor:
    """The kept columns, with what can be foretold of the others from their inputs added.

    With x_R ≈ B·x_S by ridge regression, W·x ≈ (W_S + W_R·B)·x_S. The ridge draws B to 0, so
    that inputs seen too seldom leave the columns as they were.

    Args:
        weight: Shape (out, in).
        moment: Mean of x·xᵀ, shape (in, in).
        kept: Indices of the columns S, ascending.
        damping: The ridge, as a share of the mean squared input.

    Returns:
        Shape (out, kept), in the dtype of ``weight``.
    """
    others = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    others[kept] = False
    inner = moment[kept][:, kept]
    ridge = damping * float(moment.diagonal().mean()) + 1e-12
    inner = inner + ridge * torch.eye(len(kept), device=inner.device)
    foretold = torch.linalg.solve(inner, moment[kept][:, others])  # Bᵀ
    found: Tensor = weight[:, kept].float() + weight[:, others].float() @ foretold.T
    return found.to(weight.dtype)


def _cut_channels(layer: DecoderLayer, moment: Tensor, count: int, refit: bool) -> None:
    kept = _best(channel_importance(layer.down.weight, moment), count)
    _keep_inputs(layer.down, moment, kept, refit)
    _keep_outputs(layer.gate, kept)
    _keep_outputs(layer.up, kept)
    mlp: Any = layer.module.mlp
    mlp.intermediate_size = count


def _cut_groups(
    decoder: Decoder, layer: DecoderLayer, moment: Tensor, count: int, refit: bool
) -> None:
    groups = decoder.kv_heads
    kept = _best(group_importance(layer.o.weight, moment, groups), count)
    rows = _rows_of(kept, decoder.group_size * decoder.head_dim)
    _keep_inputs(layer.o, moment, rows, refit)
    _keep_outputs(layer.q, rows)
    for linear in (layer.k, layer.v):
        _keep_outputs(linear, _rows_of(kept, decoder.head_dim))


def _best(scores: Tensor, count: int) -> Tensor:
    """Indices of the highest scores, ascending, so that what stays keeps its order."""
    return scores.topk(count).indices.sort().values


def _rows_of(groups: Tensor, size: int) -> Tensor:
    return (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()


def _keep_inputs(linear: nn.Linear, moment: Tensor, kept: Tensor, refit: bool) -> None:
    weight = linear.weight.detach()
    cut = refitted(weight, moment, kept) if refit else weight[:, kept]
    linear.weight = _like(linear.weight, cut)
    linear.in_features = len(kept)


def _keep_outputs(linear: nn.Linear, kept: Tensor) -> None:
    linear.weight = _like(linear.weight, linear.weight.detach()[kept])
    linear.out_features = len(kept)
    if linear.bias is not None:
        linear.bias = _like(linear.bias, linear.bias.detach()[kept])


def _like(old: Tensor, values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.contiguous(), requires_grad=old.requires_grad)
