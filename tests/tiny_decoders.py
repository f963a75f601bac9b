"""Transformers decoders of every shape that can be pruned, made in memory; and how far two are
from each other, in transformers and in llama.cpp."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from tierwise.runtime.context import Context
from tierwise.runtime.llama import Model

SHAPES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
VOCABULARY = 96

_CLASSES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": 16}),
    "qwen2": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
    ),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 24}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {"head_dim": 8}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {"head_dim": 8, "sliding_window": 4, "sliding_window_pattern": 3},
    ),
}


def tiny_decoder(shape: str, *, layers: int = 5, seed: int = 0, **options: Any) -> Any:
    """A model in float32 and evaluation mode: width 64, 8 heads in 4 groups, 128 MLP channels."""
    config_class, model_class, habits = _CLASSES[shape]
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    config = getattr(transformers, config_class)(**sizes | habits | options)
    model = getattr(transformers, model_class)(config).eval()
    noise = torch.Generator().manual_seed(seed)
    norm_middle = 0.0 if shape.startswith("gemma") else 1.0  # Gemma's norms add one themselves
    with torch.no_grad():
        for name, weight in model.named_parameters():
            random = torch.randn(weight.shape, generator=noise)
            if "norm" in name:
                weight.copy_(norm_middle + 0.2 * random)
            elif weight.ndim == 1 or "embed_tokens" in name or "lm_head" in name:
                weight.copy_(0.3 * random)
            else:
                weight.copy_(random * weight.shape[1] ** -0.5)
    return model


def token_batches(count: int = 2, rows: int = 2, tokens: int = 24, seed: int = 1) -> list[Tensor]:
    """Random ids, each of shape (rows, tokens)."""
    noise = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (rows, tokens), generator=noise) for _ in range(count)]


def logits_of(model: Any, ids: Tensor) -> Tensor:
    """Shape (batch, tokens, vocabulary)."""
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def mean_kl(base: Any, other: Any, batches: list[Tensor]) -> float:
    """KL(base ‖ other), mean over all tokens, in nats."""
    parts = []
    for ids in batches:
        wanted, found = (logits_of(model, ids).double().log_softmax(-1) for model in (base, other))
        parts.append((wanted.exp() * (wanted - found)).sum(-1).flatten())
    return float(torch.cat(parts).mean())


def kl_in_llama_cpp(model: Any, path: Path, ids: list[int]) -> float:
    """The largest KL(transformers ‖ llama.cpp) after any token, in nats."""
    wanted = logits_of(model, torch.tensor([ids]))[0].float().log_softmax(-1)
    with Model(path) as loaded, Context(loaded, 128, threads=1, all_logits=True) as context:
        context.decode(ids, 0)
        found = torch.from_numpy(np.array(context.batch_logits(len(ids)))).log_softmax(-1)
    return float((wanted.exp() * (wanted - found)).sum(-1).max())


def fingerprint(model: nn.Module) -> str:
    """Of all that a model is: weights, configuration, modules, hooks and modes."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().float().numpy().tobytes())
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        digest.update(f"{name} {id(module)} {module.training} {hooks}".encode())
    digest.update(str(model.config.to_dict()).encode())  # type: ignore[union-attr,operator]
    return digest.hexdigest()


def parameters_of(model: nn.Module) -> int:
    """How many numbers the model has, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
