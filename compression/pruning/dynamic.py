"""Gradual pruning within any training loop, with weights that can come back.

The share of zeros rises on a cubic curve (Zhu & Gupta, arXiv 1710.01878). Masks are drawn anew
every so many steps. Between, the loop sees sparse weights while the dense ones are kept and
take every update, those of masked weights too (Lin et al., "Dynamic model pruning with feedback",
arXiv 2006.07253): a weight that went too early grows until it is back.

Zeros save neither bytes nor seconds in llama.cpp: see `sparsity`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tierwise.compression.pruning.sparsity import (
    SparsityReport,
    checked_share,
    layer_mask,
    sparsity_of,
)
from tierwise.runtime.errors import ConfigError

MaskFunction = Callable[[Tensor, float], Tensor]
"""Scores of shape (out, in) and the share that goes become True where a weight stays."""


def cubic_share(step: int, *, final: float, begin: int, end: int, initial: float = 0.0) -> float:
    """Share of zeros at a step: steep at first, while there is much that is redundant.

    Source: Zhu & Gupta, arXiv 1710.01878, equation 1.
    """
    if step < begin:
        return initial
    done = min(1.0, (step - begin) / max(1, end - begin))
    return final + (initial - final) * (1 - done) ** 3


class DynamicPruner:
    """Prunes the linear layers of a model while any loop trains it.

    ::

        pruner = DynamicPruner(model, 0.8, end=900)
        for batch in batches:
            loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            pruner.step()
        report = pruner.finish()

    The model's own parameters hold the sparse weights at any time, so that whatever saves or
    measures it sees the sparse model, and an optimizer made before or after works. In between the
    dense weights take as much memory once more. Weights that a module other than a linear layer
    shares (tied embeddings) stay dense. Sharded parameters (FSDP) are not known here.

    Args:
        model: Any model; it is changed in place.
        final: Share of each layer's weights that is zero at the end, 0..1.
        end: Step at which it is reached; masks stay as they are from then on.
        begin: Step at which pruning starts.
        every: Steps between two masks.
        initial: Share of zeros at ``begin``.
        mask: How weights are compared: `sparsity.layer_mask` over the matrix, as in the paper, or
            `sparsity.unstructured_mask` within rows.
        only: Whether to prune the linear layer of that name; all if not given.

    Raises:
        ConfigError: The schedule makes no sense, or there is nothing to prune.
    """

    def __init__(
        self,
        model: nn.Module,
        final: float,
        *,
        end: int,
        begin: int = 0,
        every: int = 10,
        initial: float = 0.0,
        mask: MaskFunction = layer_mask,
        only: Callable[[str], bool] | None = None,
    ) -> None:
        if not 0 <= begin < end or every < 1:
            raise ConfigError(
                f"begin is {begin}, end {end} and every {every}; pruning must begin at step 0 or "
                "later, end after that, and draw masks every 1 or more steps"
            )
        self._final, self._initial = checked_share(final), checked_share(initial)
        self._begin, self._end, self._every = begin, end, every
        self._mask_of = mask
        self._model = model
        self._weights = {
            name: weight for name, weight in _linear_weights(model) if only is None or only(name)
        }
        if not self._weights:
            raise ConfigError("there is no linear layer to prune; check the argument 'only'")
        self._dense = {name: w.detach().clone() for name, w in self._weights.items()}
        self._masks = {
            name: torch.ones_like(w, dtype=torch.bool) for name, w in self._weights.items()
        }
        self._step = 0
        self._finished = False
        if begin == 0 and initial > 0:
            self._draw()

    @property
    def share(self) -> float:
        """Share of zeros that the schedule wants at the present step."""
        return cubic_share(
            self._step, final=self._final, begin=self._begin, end=self._end, initial=self._initial
        )

    def step(self) -> float:
        """To be called after each step of the optimizer; returns the share wanted now.

        A step that the optimizer left out (gradients not finite) counts in the schedule all the
        same.

        Raises:
            ConfigError: `finish` was called before.
        """
        if self._finished:
            raise ConfigError("step() was called after finish(); make a new DynamicPruner")
        self._step += 1
        with torch.no_grad():
            self._absorb()
            due = self._step >= self._begin and (self._step - self._begin) % self._every == 0
            if self._step <= self._end and (due or self._step == self._end):
                self._draw()
            else:
                self._apply()
        return self.share

    def finish(self) -> SparsityReport:
        """Lets the dense weights go; the model stays as sparse as it is. Returns what it reached.

        The report counts the zeros of all linear layers, also of those that were not pruned.
        """
        self._finished = True
        self._dense.clear()
        self._masks.clear()
        return sparsity_of(self._model)

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs beside the model and the optimizer: tensors and ints."""
        return {"step": self._step, "dense": dict(self._dense), "masks": dict(self._masks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken; the model's weights become those of then.

        Raises:
            ConfigError: The state is of another model or choice of layers.
        """
        if state["dense"].keys() != self._weights.keys():
            raise ConfigError(
                f"the state is of {len(state['dense'])} layers that are not the "
                f"{len(self._weights)} pruned here; resume with the same model and options"
            )
        self._step = int(state["step"])
        for name, weight in self._weights.items():
            self._dense[name] = state["dense"][name].to(weight.device, weight.dtype, copy=True)
            self._masks[name] = state["masks"][name].to(weight.device, copy=True)
        with torch.no_grad():
            self._apply()

    def _absorb(self) -> None:
        """Takes the optimizer's updates over into the dense weights.

        Where a weight was masked it stood at 0, so that what stands there now is its update.
        """
        for name, weight in self._weights.items():
            dense = self._dense[name] = self._dense[name].to(weight.device)
            mask = self._masks[name] = self._masks[name].to(weight.device)
            torch.where(mask, weight, dense + weight, out=dense)

    def _draw(self) -> None:
        for name in self._weights:
            self._masks[name] = self._mask_of(self._dense[name].abs().float(), self.share)
        self._apply()

    def _apply(self) -> None:
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(self._dense[name] * self._masks[name])


def _linear_weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Weights of linear layers by module name, each once, without those shared with others."""
    elsewhere = {
        id(parameter)
        for module in model.modules()
        if not isinstance(module, nn.Linear)
        for parameter in module.parameters(recurse=False)
    }
    found: dict[int, tuple[str, Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and id(module.weight) not in elsewhere:
            found.setdefault(id(module.weight), (name, module.weight))
    return list(found.values())
