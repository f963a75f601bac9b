"""A typed view on a transformers decoder, and its layers swapped or copied.

Only decoders that are built the same way have one: blocks of grouped-query attention and a gated
MLP, each behind a norm and added to the hidden states. Llama, Mistral (and so SmolLM, TinyLlama),
Qwen2, Qwen3, Gemma, Gemma 2 and the text part of Gemma 3 are. Mixtures of experts, encoders and
multimodal wrappers are not.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from tierwise.runtime.errors import UnsupportedModelError

SUPPORTED = (
    "LlamaModel",
    "MistralModel",
    "Qwen2Model",
    "Qwen3Model",
    "GemmaModel",
    "Gemma2Model",
    "Gemma3TextModel",
)
"""transformers classes of the decoder's body; any head may stand on it."""

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class DecoderLayer:
    """One block: its projections, weights of shape (out, in), and its norms in order."""

    index: int
    module: nn.Module
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear
    norms: tuple[nn.Module, ...]

    @property
    def projections(self) -> dict[str, nn.Linear]:
        """All linear layers of the block, by the name that GGUF gives their tensors."""
        return {
            "attn_q": self.q,
            "attn_k": self.k,
            "attn_v": self.v,
            "attn_output": self.o,
            "ffn_gate": self.gate,
            "ffn_up": self.up,
            "ffn_down": self.down,
        }


@dataclass(frozen=True, eq=False)
class Decoder:
    """What pruning needs to know of a decoder. It is a view: changes go to the model.

    Args:
        model: As it was given, with its head.
        body: The part with the embeddings, the layers and the last norm.
        layers: In order, as they were when the view was made.
    """

    model: nn.Module
    body: Any
    layers: tuple[DecoderLayer, ...]

    @property
    def config(self) -> Any:
        """The body's configuration (a transformers ``PreTrainedConfig``)."""
        return self.body.config

    @property
    def device(self) -> torch.device:
        """Where the embeddings lie, and so where token ids must go."""
        weight: torch.Tensor = self.body.get_input_embeddings().weight
        return weight.device

    @property
    def width(self) -> int:
        """Hidden size."""
        return int(self.config.hidden_size)

    @property
    def ffn(self) -> int:
        """Channels of each layer's MLP."""
        return int(self.config.intermediate_size)

    @property
    def heads(self) -> int:
        """Query heads of each layer."""
        return int(self.config.num_attention_heads)

    @property
    def kv_heads(self) -> int:
        """Key and value heads of each layer, each the centre of one group."""
        return int(self.config.num_key_value_heads)

    @property
    def head_dim(self) -> int:
        """Numbers per head."""
        return int(getattr(self.config, "head_dim", None) or self.width // self.heads)

    @property
    def group_size(self) -> int:
        """Query heads that share one key and value head."""
        return self.heads // self.kv_heads

    @property
    def layer_types(self) -> tuple[str, ...] | None:
        """What each layer attends to, where the architecture tells layers apart."""
        types = getattr(self.config, "layer_types", None)
        return None if types is None else tuple(types)


def decoder_of(model: nn.Module) -> Decoder:
    """The view on a model.

    Args:
        model: A transformers decoder with any head, or without one.

    Raises:
        UnsupportedModelError: It is built another way, or its layers differ in width.
    """
    body: Any = getattr(model, "base_model", model)
    if type(body).__name__ not in SUPPORTED:
        raise UnsupportedModelError(
            f"cannot prune a {type(model).__name__}: its decoder would have to be one of "
            f"{', '.join(SUPPORTED)}. Of a model with adapters or several parts, give the merged "
            "text model."
        )
    decoder = Decoder(model, body, tuple(_layer(i, m) for i, m in enumerate(body.layers)))
    rows = decoder.heads * decoder.head_dim
    for layer in decoder.layers:
        found = (layer.q.out_features, layer.k.out_features, layer.up.out_features)
        if found != (rows, decoder.kv_heads * decoder.head_dim, decoder.ffn):
            raise UnsupportedModelError(
                f"layer {layer.index} of this {type(model).__name__} has query, key and MLP widths "
                f"{found}, which are not those of its configuration. Only models whose layers all "
                "have the same widths can be pruned."
            )
    return decoder


def _layer(index: int, module: Any) -> DecoderLayer:
    attention, mlp = module.self_attn, module.mlp
    parts = {
        "q": attention.q_proj,
        "k": attention.k_proj,
        "v": attention.v_proj,
        "o": attention.o_proj,
        "gate": mlp.gate_proj,
        "up": mlp.up_proj,
        "down": mlp.down_proj,
    }
    for name, part in parts.items():
        if not isinstance(part, nn.Linear) or not part.weight.is_floating_point():
            raise UnsupportedModelError(
                f"the {name} projection of layer {index} is a {type(part).__name__} and no plain "
                "linear layer of floating-point weights. Merge adapters and load the model "
                "unquantized."
            )
    norms = tuple(child for name, child in module.named_children() if name.endswith("norm"))
    return DecoderLayer(index, module, norms=norms, **parts)


class Bypass(nn.Module):
    """Stands in for a layer that is left out: hidden states pass unchanged."""

    def forward(self, hidden: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """Hidden states, shape (batch, tokens, width)."""
        return hidden


@contextmanager
def replaced(decoder: Decoder, modules: Mapping[int, nn.Module]) -> Iterator[None]:
    """Puts other modules in the place of layers, and the layers back at the end.

    The model itself is changed meanwhile, so that nothing is copied: no other thread may use it.
    """
    layers = decoder.body.layers
    try:
        for index, module in modules.items():
            layers[index] = module
        yield
    finally:
        for index in modules:
            layers[index] = decoder.layers[index].module


def skipped(decoder: Decoder, layers: Collection[int]) -> Any:
    """A context in which the model runs without these layers; see `replaced`."""
    return replaced(decoder, {index: Bypass() for index in layers})


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients and no dropout; every module's mode is as before at the end."""
    before = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in before.items():
            module.training = training


def copy_without(model: ModelT, layers: Collection[int] = ()) -> ModelT:
    """A deep copy that lacks some layers, which are not even copied on the way.

    Per-layer entries of the configuration go with them, and the layers left are renumbered, as
    the KV cache finds them by ``layer_idx``. Tied weights stay tied. Gradients are not copied.

    Raises:
        UnsupportedModelError: See `decoder_of`.
    """
    decoder = decoder_of(model)
    memo: dict[int, Any] = {id(decoder.layers[index].module): nn.Identity() for index in layers}
    copied = copy.deepcopy(model, memo)
    if not layers:
        return copied
    body: Any = getattr(copied, "base_model", copied)
    kept = [layer.index for layer in decoder.layers if layer.index not in layers]
    body.layers = nn.ModuleList(body.layers[index] for index in kept)
    for number, layer in enumerate(body.layers):
        layer.self_attn.layer_idx = number
        if hasattr(layer, "layer_idx"):
            layer.layer_idx = number
    types = decoder.layer_types
    body.config.num_hidden_layers = len(kept)
    if types is not None:
        body.config.layer_types = [types[index] for index in kept]
    return copied
