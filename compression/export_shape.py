"""What config.json says of a model's shape, in GGUF's terms; what cannot be told is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tierwise.runtime.errors import DamagedModelError, UnsupportedModelError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from torch import Tensor

SHAPES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""transformers class → GGUF architecture. SmolLM and TinyLlama are Llama."""


@dataclass(frozen=True)
class Shape:
    """What config.json says, in GGUF's terms. Sizes are counts of numbers."""

    architecture: str
    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    rms_eps: float
    tied: bool
    rope: Mapping[str, Any]

    @property
    def permutes(self) -> bool:
        """Whether llama.cpp wants rotary pairs side by side (transformers: in two halves)."""
        return self.architecture == "llama"


def read_shape(config: Mapping[str, Any]) -> Shape:
    names = config.get("architectures") or ["none"]
    if names[0] not in SHAPES:
        raise UnsupportedModelError(
            f"cannot convert the architecture {names[0]!r}; supported are {', '.join(SHAPES)}. "
            "Give a GGUF file of the model instead."
        )
    for key, wanted in (("hidden_act", "silu"), ("partial_rotary_factor", 1.0)):
        if config.get(key, wanted) != wanted:
            raise UnsupportedModelError(
                f"cannot convert a model with {key} {config[key]!r}; only {wanted!r} is known "
                "to match llama.cpp. Give a GGUF file of the model instead."
            )
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise UnsupportedModelError(
            f"the checkpoint is quantized already ({method}). Give the unquantized original."
        )
    try:
        width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        context = int(config["max_position_embeddings"])
        window = config.get("sliding_window")
        if window and config.get("use_sliding_window", True):
            # llama.cpp attends to everything for these shapes: equal up to the window only.
            context = min(context, int(window))
        return Shape(
            architecture=SHAPES[names[0]],
            layers=int(config["num_hidden_layers"]),
            width=width,
            ffn=int(config["intermediate_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or width // heads),
            context=context,
            rms_eps=float(config["rms_norm_eps"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            rope=_read_rope(config),
        )
    except KeyError as error:
        raise DamagedModelError(
            f"config.json has no {error.args[0]!r}. Download it again."
        ) from error


def _read_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE parameters with keys ``rope_theta`` and ``rope_type``, of old and new transformers."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope.setdefault("rope_type", rope.get("type", "default"))
    rope.setdefault(
        "original_max_position_embeddings",
        config.get("original_max_position_embeddings") or config.get("max_position_embeddings"),
    )
    # llama.cpp computes YaRN's magnitude itself; these would ask for another.
    odd = {"attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow", "truncate"}
    odd = {key for key in odd & rope.keys() if rope[key] is not None}
    if rope["rope_type"] not in ("default", "linear", "yarn", "llama3") or odd:
        raise UnsupportedModelError(
            f"cannot convert the RoPE scaling {rope}; supported are default, linear, llama3, and "
            "yarn with its default magnitudes. Give a GGUF file of the model instead."
        )
    return rope


def add_shape(writer: GGUFWriter, shape: Shape) -> None:
    import gguf

    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_rope_dimension_count(shape.head_dim)
    if shape.head_dim * shape.heads != shape.width:
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
    writer.add_rope_freq_base(float(shape.rope["rope_theta"]))
    kind = shape.rope["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(float(shape.rope["factor"]))
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(shape.rope["original_max_position_embeddings"]))


def llama3_factors(shape: Shape) -> Tensor:
    """What Llama 3.1 divides each rotary frequency by, (head_dim / 2,) float32.

    Long wavelengths are stretched by ``factor``, short ones stay, those between are blended:
    transformers' ``_compute_llama3_parameters``.
    """
    import torch

    low, high = float(shape.rope["low_freq_factor"]), float(shape.rope["high_freq_factor"])
    factor = float(shape.rope["factor"])
    original = int(shape.rope["original_max_position_embeddings"])
    factors = []
    for pair in range(shape.head_dim // 2):
        frequency = float(shape.rope["rope_theta"]) ** (-2 * pair / shape.head_dim)
        turns = original * frequency / (2 * math.pi)  # within the original context
        blend = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / (blend + (1 - blend) / factor))
    return torch.tensor(factors, dtype=torch.float32)
