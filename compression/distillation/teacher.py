"""The teacher: a frozen model that says what should come next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tierwise.runtime.errors import UnsupportedModelError


def load_model(checkpoint: Path, dtype: torch.dtype) -> Any:
    """A ``transformers`` decoder from a local folder; none of its code is run."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=dtype, local_files_only=True, trust_remote_code=False
    )


def pick_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def backbone_of(model: nn.Module) -> nn.Module:
    """The model without its output layer."""
    found: nn.Module = model.base_model  # type: ignore[assignment]
    return found


def head_of(model: nn.Module) -> nn.Linear:
    """The output layer.

    Raises:
        UnsupportedModelError: There is none, or it has a bias.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no plain output layer, which distillation needs"
        )
    return head


def soft_cap(model: nn.Module) -> float | None:
    """Gemma 2's limit on its logits: cap · tanh(logits / cap)."""
    value = getattr(getattr(model, "config", None), "final_logit_softcapping", None)
    return None if value is None else float(value)


def project(hidden: Tensor, weight: Tensor, cap: float | None) -> Tensor:
    """Logits of hidden states, shape (..., vocabulary), in float32."""
    logits = (hidden.to(weight.dtype) @ weight.T).float()
    return logits if cap is None else torch.tanh(logits / cap) * cap


class Teacher:
    """A frozen model in bfloat16 (half the time of float32 where the processor knows it).

    Args:
        model: A decoder of transformers.
        device: Where it runs.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        self.device = device
        self._weight = head_of(model).weight
        self._cap = soft_cap(model)

    @classmethod
    def load(cls, checkpoint: Path, device: torch.device | None = None) -> Teacher:
        return cls(load_model(checkpoint, torch.bfloat16), device or pick_device())

    @torch.no_grad()
    def hidden(self, tokens: Tensor) -> Tensor:
        """What the output layer reads, shape (batch · length, width).

        Args:
            tokens: Shape (batch, length), padded on the right.
        """
        out = backbone_of(self.model)(input_ids=tokens, use_cache=False)
        last: Tensor = out.last_hidden_state
        return last.reshape(-1, last.shape[-1])

    @torch.no_grad()
    def hidden_after(self, tokens: Tensor, layers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """`hidden`, and the outputs of some layers, each (batch · length, width).

        Args:
            tokens: As of `hidden`.
            layers: That a student came from. Its own last state went through its last norm, so
                that of the last of them there is none, unless it is the teacher's last as well.
        """
        out = backbone_of(self.model)(input_ids=tokens, use_cache=False, output_hidden_states=True)
        width = out.last_hidden_state.shape[-1]
        if layers and layers[-1] + 2 != len(out.hidden_states):
            layers = layers[:-1]
        states = [out.hidden_states[layer + 1].reshape(-1, width) for layer in layers]
        return out.last_hidden_state.reshape(-1, width), states

    @torch.no_grad()
    def logits(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """At those rows of `hidden`, shape (m, vocabulary), float32."""
        return project(hidden[rows], self._weight, self._cap)
