"""A training run on disk: everything that is needed to go on as if nothing had happened.

One safetensors file holds weights, optimizer moments and random states (no pickle); its header
holds the counters and a hash of the data. It replaces the one before it in one step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tierwise.compression.distillation.tasks import Counters
from tierwise.compression.distillation.tensor_files import load_tensors, save_tensors


def save_state(
    file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, counters: Counters
) -> None:
    """Writes a run's state, whole or not at all.

    Raises:
        DiskFullError: There is no room; the state before it is kept.
    """
    tensors = {f"model/{name}": tensor for name, tensor in trainable(model).items()}
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            tensors[f"optimizer/{index}/{name}"] = torch.as_tensor(value)
    tensors["random/cpu"] = torch.get_rng_state()
    save_tensors(file, tensors, {"counters": counters.model_dump_json()})


def load_state(
    file: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> Counters | None:
    """Puts a run's state back; None where there is none, or a damaged one.

    Args:
        optimizer: None to take the weights only.
    """
    known = load_tensors(file)
    if known is None:
        return None
    arrays, header = known
    parameters = trainable(model)
    names = {name.removeprefix("model/") for name in arrays if name.startswith("model/")}
    if names != parameters.keys():
        return None
    try:
        counters = Counters.model_validate_json(header.get("counters", ""))
    except ValidationError:
        return None
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(arrays[f"model/{name}"])
    if optimizer is not None:
        state: dict[int, dict[str, Any]] = {}
        for name, tensor in arrays.items():
            kind, _, rest = name.partition("/")
            if kind == "optimizer":
                index, _, moment = rest.partition("/")
                state.setdefault(int(index), {})[moment] = tensor
        optimizer.load_state_dict(
            {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
        )
        torch.set_rng_state(arrays["random/cpu"])
    return counters


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
