"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685), for bases too big to train whole.

The adapters are PEFT's; they go into the model in place and are merged when training is done,
so that everything else sees a plain model.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from torch import nn

from tierwise.runtime.errors import MissingExtraError


def add_adapters(model: Any, rank: int) -> None:
    """Freezes the model and puts an adapter of that rank beside every linear layer but the head.

    Raises:
        MissingExtraError: PEFT is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError(
            "lora_rank needs the package 'peft': pip install 'tierwise[compress]'"
        )
    from peft import LoraConfig, inject_adapter_in_model

    head = model.get_output_embeddings()
    names = sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        }
    )
    model.requires_grad_(False)
    # With alpha = 2 · rank and weights of the second matrix at zero, training starts at the model.
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), model)


def merge_adapters(model: nn.Module) -> None:
    """Adds every adapter to its layer's weights and takes it out."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer) and isinstance(module, nn.Module):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.get_base_layer())
