"""How tiers were made, for the family table and its JSON: rows only where some tier has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tierwise.runtime.family import Family, Tier
from tierwise.runtime.lineage import Distillation

UNKNOWN = "–"

_Row = tuple[str, Callable[[Tier], str]]


def lineage_rows(family: Family) -> Sequence[_Row]:
    """Label and cell of what at least one tier has: widths, searched types, KV type, training."""
    rows: tuple[tuple[_Row, Callable[[Tier], bool]], ...] = (
        (("MLP channels", _channels), lambda tier: tier.lineage.ffn_channels is not None),
        (("KV heads", _kv_heads), lambda tier: tier.lineage.kv_heads is not None),
        (("searched types", _searched), lambda tier: bool(tier.lineage.tensor_overrides)),
        (("KV cache", lambda tier: tier.kv_type), lambda tier: tier.kv_type != "f16"),
        (("prompt that shows tools, tokens", _shown), lambda tier: bool(tier.demonstration_tokens)),
        (("distillation, tokens", _trained), lambda tier: tier.lineage.distillation is not None),
        (("held-out KL by it, nats", _gained), lambda tier: tier.lineage.distillation is not None),
        (("taught logged calls", _learned), lambda tier: tier.lineage.learning is not None),
    )
    return [row for row, of in rows if any(of(tier) for tier in family.tiers)]


def lineage_json(tier: Tier) -> dict[str, Any]:
    """Keys ``origin, quantization, pruned_layers, ffn_channels, kv_heads, kv_type,
    demonstration_tokens, tensor_types, tensor_overrides, imatrix_sha256, distillation,
    learning``.

    Distillation is None or ``{teacher_sha256, loss, steps, skipped_steps, tokens, seconds,
    documents, quantization_aware, kl_before, kl_after, cross_entropy, nll_before, nll_after}``;
    its curve is in ``family.json``. Learning is None or ``{at, calls, calls_key, parent_sha256,
    held_out, before, after, training}``, where training is a distillation.
    """
    lineage = tier.lineage
    run, learning = lineage.distillation, lineage.learning
    return {
        "origin": lineage.origin,
        "quantization": lineage.quantization,
        "pruned_layers": list(lineage.pruned_layers),
        "ffn_channels": lineage.ffn_channels,
        "kv_heads": lineage.kv_heads,
        "kv_type": tier.kv_type,
        "demonstration_tokens": tier.demonstration_tokens,
        "tensor_types": dict(lineage.tensor_types),
        "tensor_overrides": dict(lineage.tensor_overrides),
        "imatrix_sha256": lineage.imatrix_sha256,
        "distillation": None if run is None else _run_json(run),
        "learning": None
        if learning is None
        else {**learning.model_dump(mode="json"), "training": _run_json(learning.training)},
    }


def _run_json(run: Distillation) -> dict[str, Any]:
    found = run.model_dump(mode="json", exclude={"curve"})
    for key in ("kl_before", "kl_after"):  # JSON has no infinity
        found[key] = found[key] if abs(getattr(run, key)) < float("inf") else None
    return found


def _channels(tier: Tier) -> str:
    channels = tier.lineage.ffn_channels
    return "all" if channels is None else f"{channels:,}"


def _kv_heads(tier: Tier) -> str:
    heads = tier.lineage.kv_heads
    return "all" if heads is None else str(heads)


def _searched(tier: Tier) -> str:
    found = len(tier.lineage.tensor_overrides)
    return f"{found} tensors" if found else UNKNOWN


def _shown(tier: Tier) -> str:
    shown = tier.demonstration_tokens
    return UNKNOWN if shown is None else str(shown or "none")


def _trained(tier: Tier) -> str:
    run = tier.lineage.distillation
    return UNKNOWN if run is None else f"{run.tokens:,}"


def _gained(tier: Tier) -> str:
    run = tier.lineage.distillation
    return UNKNOWN if run is None else f"{run.kl_before:.3f} → {run.kl_after:.3f}"


def _learned(tier: Tier) -> str:
    learning = tier.lineage.learning
    return UNKNOWN if learning is None else f"{learning.calls:,}, {learning.at[:10]}"
