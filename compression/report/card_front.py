"""A model card's front matter: what sites that host models read of it.

The keys are the Hugging Face Hub's (``docs/hub/model-cards.md`` in its ``hub-docs``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from tierwise.runtime.family import Base, Estimate, Tier
from tierwise.runtime.lineage import Lineage

_HUB_ID = re.compile(r"([\w-][\w.-]*/[\w.-]+?)(?:@[\w./-]+)?(?::[^:\\]+\.gguf)?")


def front_matter(base: Base, tier: Tier) -> dict[str, Any]:
    """Keys of the Hub, and our own record under ``tierwise``.

    Of an adopted tier neither licence nor base are known.
    """
    lineage = tier.lineage
    pruned = is_pruned(lineage)
    tags = ["gguf", "llama.cpp", "tierwise"]
    tags += ["pruned"] if pruned else []
    tags += ["distilled"] if lineage.distillation else []
    taught = pruned or lineage.distillation is not None
    built = lineage.origin == "built"
    front: dict[str, Any] = {"license": (built and base.licence) or "unknown"}
    if built:
        front["base_model"] = _base_id(base)
        front["base_model_relation"] = "finetune" if taught else "quantized"
    front |= {
        "pipeline_tag": "text-generation",
        "library_name": "gguf",
        "tags": tags,
        "tierwise": _record(base, tier),
    }
    results = _results(tier)
    if results:
        front["model-index"] = [{"name": f"{base.name} {tier.name}", "results": results}]
    return {key: _in_lines(value) for key, value in front.items()}


def _in_lines(value: Any) -> Any:
    """Every text on one line: simple readers take a line of dashes for the end."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, list):
        return [_in_lines(item) for item in value]
    if isinstance(value, dict):
        return {_in_lines(key): _in_lines(item) for key, item in value.items()}
    return value


def _base_id(base: Base) -> str:
    """The Hub's id where the base was named by it; else the name, and never a path."""
    found = _HUB_ID.fullmatch(base.source)
    is_file = base.source.endswith(".gguf") and ":" not in base.source
    return found[1] if found and not is_file else base.name


def _record(base: Base, tier: Tier) -> dict[str, Any]:
    lineage = tier.lineage
    built = lineage.origin == "built"
    record: dict[str, Any] = {
        "tier": tier.name,
        "file": tier.file,
        "sha256": tier.sha256,
        "bytes": tier.bytes,
        "parameters": tier.parameters,
        "layers": tier.layers,
        "origin": lineage.origin,
        "quantization": lineage.quantization,
        "kv_type": tier.kv_type,
        "base_sha256": base.sha256 if built else None,
        "base_dequantized_from": base.dequantized_from if built else None,
        "pruned_layers": list(lineage.pruned_layers) or None,
        "ffn_channels": lineage.ffn_channels,
        "kv_heads": lineage.kv_heads,
        "searched_tensors": len(lineage.tensor_overrides) or None,
        "imatrix_sha256": lineage.imatrix_sha256,
    }
    if (run := lineage.distillation) is not None:
        record["distillation"] = run.model_dump(mode="json", exclude={"curve"}, exclude_none=True)
    return {key: value for key, value in record.items() if value is not None}


def _results(tier: Tier) -> list[dict[str, Any]]:
    """What was measured, as the Hub's evaluation results."""
    results: list[dict[str, Any]] = []
    if (tools := tier.quality.tools) is not None:
        dataset = {"name": f"{tools.suite}, seed {tools.seed}", "type": tools.suite}
        results.append(_result(dataset, [_metric(tools.overall)]))
    if (found := tier.quality.divergence) is not None:
        top1 = found.top1_agreement
        metrics: list[tuple[str, str, float]] = [
            ("kl_divergence", "mean KL(base ‖ tier), nats", found.kl_mean),
            ("perplexity", "perplexity", found.perplexity),
            ("accuracy", "top-1 agreement with the base", top1.value),
        ]
        dataset = {"name": f"{found.tokens} held-out tokens", "type": "held-out-agent-text"}
        finite = [metric for metric in metrics if math.isfinite(metric[2])]
        results.append(_result(dataset, finite))
    return results


def _result(dataset: dict[str, str], metrics: Sequence[tuple[str, str, float]]) -> dict[str, Any]:
    return {
        "task": {"type": "text-generation"},
        "dataset": dataset,
        "metrics": [
            {"type": kind, "name": name, "value": round(value, 6)} for kind, name, value in metrics
        ],
    }


def _metric(share: Estimate) -> tuple[str, str, float]:
    interval = f"n {share.n}, 95 % interval {share.low:.3f} to {share.high:.3f}"
    return "accuracy", f"tasks solved ({interval})", share.value


def is_pruned(lineage: Lineage) -> bool:
    """Whether layers, channels or heads went."""
    widths = (lineage.ffn_channels, lineage.kv_heads)
    return bool(lineage.pruned_layers) or any(width is not None for width in widths)
