"""Calibration batches, the base's answers to them, and a walk through the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tierwise.compression.pruning.decoder import Decoder, DecoderLayer, evaluating, replaced
from tierwise.runtime.errors import ConfigError, UnsupportedModelError

Batch = Tensor | Mapping[str, Tensor]
"""Token ids, shape (batch, tokens); or these as ``input_ids`` with an ``attention_mask`` that is 0
where there is only padding. Other entries, such as ``labels``, are not looked at."""

_ROWS = 256
"""Tokens whose distributions are compared at once: 50 MB of float32 for 49,152 words."""

_LEAST = -6e4
"""Float16 ends at -65,504."""


def model_inputs(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """What to call the model with.

    Raises:
        ConfigError: Not ids of shape (batch, tokens), or none at all.
    """
    ids = batch if isinstance(batch, Tensor) else batch.get("input_ids")
    if ids is None or ids.ndim != 2 or ids.is_floating_point() or not ids.numel():
        shape = None if ids is None else f"{ids.dtype} of shape {tuple(ids.shape)}"
        raise ConfigError(
            f"a calibration batch must hold token ids of shape (batch, tokens); this has {shape}"
        )
    inputs = {"input_ids": ids.to(device)}
    if not isinstance(batch, Tensor) and "attention_mask" in batch:
        inputs["attention_mask"] = batch["attention_mask"].to(device)
    return inputs


def checked_batches(batches: Sequence[Batch]) -> Sequence[Batch]:
    """The batches, if there are any.

    Raises:
        ConfigError: There are none.
    """
    if not batches:
        raise ConfigError("pruning needs calibration batches, and none were given")
    return batches


def real_tokens(inputs: Mapping[str, Tensor]) -> Tensor:
    """Which tokens are no padding: bool, shape (batch, tokens)."""
    mask = inputs.get("attention_mask")
    ids = inputs["input_ids"]
    if mask is None or mask.ndim != 2:
        return torch.ones_like(ids, dtype=torch.bool)
    return mask.bool()


class BaseLogits:
    """The base's log-probabilities on the batches, computed once for all candidates.

    Kept in float16 where the model is: tokens · vocabulary · 2 bytes. Rounding is symmetric and
    cancels in the mean over tokens.

    Args:
        decoder: The base as it is now.
        batches: Calibration batches.

    Raises:
        UnsupportedModelError: The model has no head that gives logits.
    """

    def __init__(self, decoder: Decoder, batches: Sequence[Batch]) -> None:
        self._decoder = decoder
        self._inputs = [model_inputs(b, decoder.device) for b in checked_batches(batches)]
        with evaluating(decoder.model):
            self._logprobs = [
                [part.log_softmax(-1).clamp_min(_LEAST).half() for part in self._logits(inputs)]
                for inputs in self._inputs
            ]
        self.tokens = sum(len(part) for parts in self._logprobs for part in parts)
        if not self.tokens:
            raise ConfigError("the calibration batches hold nothing but padding")

    def divergence(self, prepare: Callable[[int], None] | None = None) -> float:
        """KL(base ‖ model as it is now), mean over tokens, in nats.

        Args:
            prepare: Called with the number of each batch before it goes through the model.
        """
        total = 0.0
        with evaluating(self._decoder.model):
            for number, inputs in enumerate(self._inputs):
                if prepare is not None:
                    prepare(number)
                parts = zip(self._logprobs[number], self._logits(inputs), strict=True)
                for half, logits in parts:
                    base = half.float()
                    difference = base - logits.log_softmax(-1)
                    total += float(torch.linalg.vecdot(base.exp(), difference).sum())
        return total / self.tokens

    def _logits(self, inputs: dict[str, Tensor]) -> Iterator[Tensor]:
        """Float32 logits of real tokens, some rows at a time, shape (n, vocabulary)."""
        output = self._decoder.model(**inputs, use_cache=False)
        logits = getattr(output, "logits", None)
        if logits is None:
            raise UnsupportedModelError(
                f"a {type(self._decoder.model).__name__} gives no logits to compare. Give the "
                "model with its head, such as AutoModelForCausalLM loads it."
            )
        rows = logits[real_tokens(inputs)] if logits.ndim == 3 else logits
        for start in range(0, len(rows), _ROWS):
            yield rows[start : start + _ROWS].float()


class _Recorder(nn.Module):
    """Notes what the decoder calls a layer with."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.empty(0)
        self.options: dict[str, Any] = {}

    def forward(self, hidden: Tensor, **options: Any) -> Tensor:
        """Hidden states, shape (batch, tokens, width)."""
        self.hidden, self.options = hidden, options
        return hidden


class LayerWalk:
    """Goes through a decoder layer by layer with all batches, so that what is measured in a layer
    sees what was done to those before it (as in Wanda and GPTQ). To be used in `evaluating`.

    Holds one layer's hidden states: tokens · width numbers. While a layer is worked on, `run`
    sends them through it and `rows` gives the real tokens' rows of what a hook sees.
    """

    def __init__(self, decoder: Decoder, batches: Sequence[Batch]) -> None:
        self._decoder = decoder
        self._hidden: list[Tensor] = []
        self._options: list[list[dict[str, Any]]] = []
        self._masks: list[Tensor] = []
        self._mask = torch.empty(0)
        self._layer: Any = None
        recorders = {layer.index: _Recorder() for layer in decoder.layers}
        with evaluating(decoder.model), replaced(decoder, recorders):
            for batch in checked_batches(batches):
                inputs = model_inputs(batch, decoder.device)
                decoder.body(**inputs, use_cache=False)
                self._hidden.append(recorders[0].hidden)
                self._options.append([recorders[i].options for i in range(len(recorders))])
                self._masks.append(real_tokens(inputs))

    def __iter__(self) -> Iterator[DecoderLayer]:
        """Each layer in order; once the caller is done with it, it is run as it is then."""
        for layer in self._decoder.layers:
            self._layer = layer
            yield layer
            self._hidden = list(self._outputs())

    def run(self) -> None:
        """Sends the batches through the layer that is worked on; its hooks see them."""
        for _ in self._outputs():
            pass

    def rows(self, activations: Tensor) -> Tensor:
        """Of activations (batch, tokens, width) the real tokens' rows, float32 (n, width)."""
        return activations[self._mask.to(activations.device)].float()

    def _outputs(self) -> Iterator[Tensor]:
        layer: DecoderLayer = self._layer
        for hidden, options, mask in zip(self._hidden, self._options, self._masks, strict=True):
            self._mask = mask
            output: Tensor = layer.module(hidden, **options[layer.index])
            yield output
