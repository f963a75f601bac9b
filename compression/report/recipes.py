"""How each tier was made, as facts with labels: for the report and for the model cards."""

from __future__ import annotations

from tierwise.compression.report.text import (
    count_text,
    nats_text,
    ranges_text,
    size_text,
    span_text,
)
from tierwise.runtime.family import Base, Tier
from tierwise.runtime.lineage import Distillation, Lineage

Facts = list[tuple[str, str]]
"""Labels and values."""


def shape_facts(tier: Tier, base: Base) -> Facts:
    """Layers, widths and parameters, and what of them went."""
    lineage = tier.lineage
    facts = [("Layers", layers_text(tier, base))]
    if lineage.ffn_channels is not None:
        facts.append(("MLP width", f"{lineage.ffn_channels:,} channels a layer (pruned)"))
    if lineage.kv_heads is not None:
        facts.append(("Key-value heads", f"{lineage.kv_heads} a layer (pruned)"))
    facts.append(("Parameters", parameters_text(tier, base)))
    facts.append(("Context", f"{tier.context_tokens:,} tokens"))
    cache = f"{tier.kv_type}, {size_text(1000 * tier.kv_bytes_per_token)} per 1,000 tokens"
    facts.append(("KV cache", cache))
    return facts


def layers_text(tier: Tier, base: Base) -> str:
    """Such as "27 of 30; went: 3, 12–13"."""
    if tier.layers == base.layers:
        return f"all {tier.layers}"
    gone = tier.lineage.pruned_layers
    return f"{tier.layers} of {base.layers}" + (f"; went: {ranges_text(gone)}" if gone else "")


def parameters_text(tier: Tier, base: Base) -> str:
    """The count, and its share of the base's where some went."""
    text = count_text(tier.parameters)
    if tier.parameters == base.parameters or not base.parameters:
        return text
    return f"{text} ({tier.parameters / base.parameters:.0%} of the base's)"


def quantization_facts(lineage: Lineage) -> Facts:
    """The type, how many tensors have which, and what steered the rounding."""
    facts = [("Quantization", lineage.quantization)]
    if lineage.tensor_overrides:
        found = len(lineage.tensor_overrides)
        facts.append(("Searched", f"the types of {found} tensors, by measured divergence"))
    if lineage.tensor_types:
        counted = sorted(lineage.tensor_types.items(), key=lambda item: (-item[1], item[0]))
        facts.append(("Tensors", ", ".join(f"{n} × {kind.upper()}" for kind, n in counted)))
    if lineage.imatrix_sha256 is not None:
        facts.append(("Importance matrix", f"sha256 {lineage.imatrix_sha256[:12]}…"))
    elif lineage.origin == "built":
        facts.append(("Importance matrix", "none"))
    return facts


def distillation_facts(run: Distillation) -> Facts:
    """Settings, data and outcome."""
    steps = f"{run.steps:,}"
    if run.skipped_steps:
        steps += f" ({run.skipped_steps:,} skipped: not finite)"
    facts = [
        ("Loss", run.loss.replace("_", " ")),
        ("Steps", steps),
        ("Tokens", count_text(run.tokens)),
        ("Time", span_text(run.seconds)),
    ]
    if run.curve:
        peak = max(point.learning_rate for point in run.curve)
        facts.append(("Learning rate", f"{peak:.3g} at most"))
    if run.documents:
        facts.append(("Documents", documents_text(run)))
    if run.quantization_aware is not None:
        facts.append(("Trained for", f"{run.quantization_aware} (quantization-aware)"))
    facts.append(("KL from teacher", f"{nats_text(run.kl_before)} → {nats_text(run.kl_after)}"))
    if run.cross_entropy:
        facts.append(("Right token's share", f"{run.cross_entropy:g} of the loss of right replies"))
    if run.nll_before is not None:
        nll = f"{nats_text(run.nll_before)} → {nats_text(run.nll_after)}"
        facts.append(("NLL of right replies", nll))
    facts.append(("Teacher", f"sha256 {run.teacher_sha256[:12]}…"))
    return facts


def learning_facts(lineage: Lineage) -> Facts:
    """What it was taught since it was made; nothing if it was not."""
    found = lineage.learning
    if found is None:
        return []
    run = found.training
    return [
        (
            "Taught since",
            f"from {found.calls:,} logged calls on {found.at[:10]} ({run.steps:,} steps, "
            f"{count_text(run.tokens)} tokens)",
        ),
        ("File before", f"sha256 {found.parent_sha256[:12]}…"),
        (
            "Logged calls done, of those never learned",
            f"{found.before:.0%} → {found.after:.0%} of {found.held_out:,}",
        ),
    ]


def documents_text(run: Distillation) -> str:
    """How many from where: "1,200 agent tasks, 80 transcripts"."""
    return ", ".join(f"{count:,} {source}" for source, count in run.documents.items())


def badges_of(tier: Tier, base: Base) -> list[str]:
    """What is special about a tier, in a word each."""
    lineage = tier.lineage
    signs = [
        ("adopted", lineage.origin == "adopted"),
        ("fewer layers", bool(lineage.pruned_layers)),
        ("narrower", lineage.ffn_channels is not None or lineage.kv_heads is not None),
        ("distilled", lineage.distillation is not None),
        ("searched types", bool(lineage.tensor_overrides)),
        (f"KV cache {tier.kv_type}", tier.kv_type != "f16"),
        ("the base's own file", tier.sha256 == base.sha256),
    ]
    return [word for word, holds in signs if holds]
