"""Where a transformers model keeps its layers, heads and channels.

Layers are found in every model that has one stack of them. Widths (heads and feed-forward
channels) are known for the shapes in `HEADS` and `CHANNELS`: BERT, RoBERTa, ELECTRA, DistilBERT,
Llama, Mistral, Qwen, Gemma and whatever names its matrices alike.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from tierwise.runtime.errors import UnsupportedModelError

HEADS = (
    (
        ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.output.dense",
    ),
    (("attention.q_lin", "attention.k_lin", "attention.v_lin"), "attention.out_lin"),
    (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj"),
)
"""Query, key and value of a layer, and the matrix that reads what the heads say."""

CHANNELS = (
    (("intermediate.dense",), "output.dense"),
    (("ffn.lin1",), "ffn.lin2"),
    (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
)
"""The matrices into the feed-forward channels of a layer, and the one out of them."""

HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads")
KV_COUNTS = ("num_key_value_heads", "num_kv_heads")
COUNTS = (*HEAD_COUNTS, *KV_COUNTS, "all_head_size")
"""Attributes of modules that say how many heads there are."""


@dataclass(frozen=True)
class Width:
    """One width of one layer, in units that can only go as a whole.

    Args:
        kind: "heads" (with grouped keys: a group of them) or "channels".
        layer: Its place in the stack.
        into: Modules whose output rows belong to the units, in blocks of equal size.
        out_of: The module whose input columns do.
        units: How many there are.
    """

    kind: str
    layer: int
    into: tuple[nn.Linear, ...]
    out_of: nn.Linear
    units: int

    @property
    def block(self) -> int:
        """Columns of `out_of` that one unit has."""
        return self.out_of.in_features // self.units


@dataclass(frozen=True)
class Stack:
    """The layers of a model.

    Args:
        owner: The module that holds the list.
        name: Of the list in its owner.
        prefix: Of the list in the model, e.g. "bert.encoder.layer".
    """

    owner: nn.Module
    name: str
    prefix: str

    @property
    def layers(self) -> list[nn.Module]:
        return list(getattr(self.owner, self.name))


def find_stack(model: nn.Module) -> Stack:
    """The one stack of layers.

    Raises:
        UnsupportedModelError: The model has none, or several (encoder and decoder), or shares
            one layer's weights among all (ALBERT).
    """
    config = getattr(model, "config", None)
    count = getattr(config, "num_hidden_layers", None)
    kind = type(model).__name__
    if count is None or getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f'{kind} has no single stack of layers to prune. Leave out the step "prune".'
        )
    found: list[Stack] = []
    for prefix, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            path, _, name = prefix.rpartition(".")
            # A list inside of a layer (experts) is not the stack.
            if not any(prefix.startswith(f"{stack.prefix}.") for stack in found):
                found.append(Stack(model.get_submodule(path), name, prefix))
    if len(found) != 1:
        raise UnsupportedModelError(
            f"{kind} says that it has {count} layers, but has {len(found)} lists of as many "
            'modules, so that the stack cannot be told. Leave out the step "prune".'
        )
    return found[0]


def find_widths(model: nn.Module, kind: str) -> list[Width]:
    """The heads ("heads") or feed-forward channels ("channels") of every layer.

    Raises:
        UnsupportedModelError: A layer has no matrices of the known names.
    """
    table = HEADS if kind == "heads" else CHANNELS
    widths = []
    for place, layer in enumerate(find_stack(model).layers):
        known = dict(layer.named_modules())
        for into, out_of in table:
            named = [known.get(name) for name in (*into, out_of)]
            modules = [module for module in named if isinstance(module, nn.Linear)]
            if len(modules) == len(named):
                break
        else:
            raise UnsupportedModelError(
                f"the {kind} of {type(layer).__name__} cannot be told, as no matrices are named "
                f"like {', '.join(names[0] + ' … ' + end for names, end in table)}. "
                f"Write {kind}: 0; layers and embeddings can still be pruned."
            )
        *entering, last = modules
        units = last.in_features
        if kind == "heads":
            attention = known[out_of.rsplit(".", 1)[0]] if "." in out_of else layer
            units = _groups(layer, attention, entering[1])
        widths.append(Width(kind, place, tuple(entering), last, units))
    return widths


def _groups(layer: nn.Module, attention: nn.Module, key: nn.Linear) -> int:
    """Heads of keys; as many as heads, where no two share theirs."""
    for module in (attention, *layer.modules()):
        for name in ("attention_head_size", "head_dim"):
            size = getattr(module, name, None)
            if isinstance(size, int) and size > 0 and key.out_features % size == 0:
                return key.out_features // size
    raise UnsupportedModelError(
        f"the size of a head of {type(layer).__name__} cannot be told. Write heads: 0."
    )


def keep_layers(model: nn.Module, keep: Sequence[int]) -> None:
    """Leaves out all layers but ``keep`` (ascending), in the model and in its config."""
    stack = find_stack(model)
    layers = stack.layers
    _set_layers(model, stack, layers, keep)
    for place, old in enumerate(keep):
        for module in layers[old].modules():
            # The place in the cache of keys and values.
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = place  # type: ignore[assignment]


@contextmanager
def only_layers(model: nn.Module, keep: Sequence[int]) -> Iterator[None]:
    """Runs the block with those layers only (and without a cache); afterwards all are back."""
    stack = find_stack(model)
    before = stack.layers
    config: Any = model.config
    attributes = copy.copy(config.__dict__)
    try:
        _set_layers(model, stack, before, keep)
        yield
    finally:
        setattr(stack.owner, stack.name, nn.ModuleList(before))
        config.__dict__.update(attributes)


def _set_layers(
    model: nn.Module, stack: Stack, layers: Sequence[nn.Module], keep: Sequence[int]
) -> None:
    setattr(stack.owner, stack.name, nn.ModuleList(layers[place] for place in keep))
    config: Any = model.config
    types = getattr(config, "layer_types", None)
    config.num_hidden_layers = len(keep)
    if isinstance(types, list | tuple) and len(types) == len(layers):
        config.layer_types = [types[place] for place in keep]
